"""Two processes of half a batch do what one process does with the whole."""

import json
import os
import subprocess
import sys

import pytest

from ..conftest import ROOT


def run(tiny_yaml, output, processes):
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    command = [
        sys.executable,
        *launcher,
        str(ROOT / "tools" / "train.py"),
        "--config",
        str(tiny_yaml),
        "--output",
        str(output),
    ]
    options = ["train.iterations=4", "train.log_every=1", "model.backbone.norm=gn", "train.evaluate_every=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_follow_one(tiny_yaml, tmp_path):
    one, two = (run(tiny_yaml, tmp_path / str(n), n) for n in (1, 2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name, value in a.items():
            if name.startswith("loss_"):
                assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert two[-1]["pq"] == pytest.approx(one[-1]["pq"], abs=0.5)
