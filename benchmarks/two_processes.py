#!/usr/bin/env python
"""Two processes of one thread against one process of two threads, on the CPU: wall time of a training step.

    python benchmarks/two_processes.py | tee -a benchmarks/results/two_processes.jsonl

Both train the same batches of `shapes`; the first ten steps are left out. Run it on a machine that does nothing else.
`one_over_two` above 1 means that two processes are faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
LOOK = 10


def seconds_per_step(processes: int, threads: int, iterations: int, folder: Path) -> float:
    """Median over the intervals of `metrics.jsonl` after the first, from the rate that the run logs."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "tools" / "train.py")]
    options = [
        f"train.iterations={iterations}",
        f"train.log_every={LOOK}",
        f"train.checkpoint_every={iterations}",
        f"train.evaluate_every={iterations}",
        "data.val={format: shapes, num_images: 2, seed: 1}",
        "evaluate.panels=0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    arguments = ["--config", str(ROOT / "configs" / "shapes_r18.yaml"), "--output", str(folder)]
    subprocess.run([*command, *arguments, *options], env=environment, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [row["speed"]["images_per_s"] for row in rows if "speed" in row][1:]
    batch_size = 8
    return batch_size / statistics.median(rates)


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one = seconds_per_step(1, 2, args.iterations, Path(folder) / "one")
        two = seconds_per_step(2, 1, args.iterations, Path(folder) / "two")
    row = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "iterations": args.iterations,
        "one_process_s": round(one, 4),
        "two_processes_s": round(two, 4),
        "one_over_two": round(one / two, 3),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
