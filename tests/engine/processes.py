"""Runs `upsnet train` in forked processes: what signals, kills and peers do, without the seconds an import takes."""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import random
import signal
import socket
import sys

import cv2
import pytest
import torch
import yaml

from tests.conftest import TINY
from upsnet.cli.main import main
from upsnet.engine.train import Trainer
from upsnet.models.checkpoint import load_checkpoint

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")

SMALL = {
    **TINY,
    "data": {
        **TINY["data"],
        "train": {"format": "shapes", "num_images": 7, "image_size": [64, 64]},
        "val": {"format": "shapes", "num_images": 2, "image_size": [64, 64], "seed": 1},
    },
    "train": {
        **TINY["train"], "iterations": 9, "log_every": 4, "checkpoint_every": 3, "evaluate_every": 6, "momentum": 0.9,
    },
    "evaluate": {"batch_size": 1, "panels": 0, "instance": False},
}  # fmt: skip


class Training:
    """One forked run of the tool.

    Args:
        output: folder of the run; the process's words go beside it.
        arguments: of the tool, after config and output.
        before_step: called with the trainer before every step, and whatever else the process should be made to do.
        rank, world_size, port: of a group.
    """

    def __init__(self, output, *arguments, before_step=None, patch=None, rank=0, world_size=1, port=0):
        self.words = output.parent / f"{output.name}.{rank}.txt"
        config = output.parent / "small.yaml"
        if not config.exists():  # a member of the group may be reading it
            config.write_text(yaml.safe_dump(SMALL))
        argv = ["upsnet", "--config", config, "--output", output, *arguments]
        group = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        environment = {**group, "MASTER_PORT": port} if world_size > 1 else {}
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self._main, args=(argv, environment, before_step, patch))
        self.process.start()

    def _main(self, argv, environment, before_step, patch):
        with self.words.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.dump_traceback_later(100, exit=True)  # the words of a process that hangs
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        os.environ.update({k: str(v) for k, v in environment.items()})
        sys.argv = [str(part) for part in argv]
        for number in (signal.SIGINT, signal.SIGHUP):  # whoever runs the tests may ignore them
            signal.signal(number, signal.SIG_DFL)
        if before_step is not None:
            step = Trainer._step

            def hooked(trainer, *rest):
                before_step(trainer)
                step(trainer, *rest)

            Trainer._step = hooked
        if patch is not None:
            patch()
        sys.exit(main(["train", *sys.argv[1:]]))

    def wait(self):
        """Exit code (negative: the signal that killed it) and what it wrote."""
        self.process.join(120)
        if self.process.exitcode is None:
            self.kill()
            pytest.fail(f"still running: {self.words.read_text()[-2000:]}")
        return self.process.exitcode, self.words.read_text()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)


def train(output, *arguments, **options):
    """Runs the tool to its end, which must be a good one."""
    code, words = Training(output, *arguments, **options).wait()
    assert code == 0, words[-3000:]
    return words


def free_port():
    """Below the range that the system hands out to others between our look and our use."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port between 20000 and 30000")


def train_group(output, world_size, *arguments, **options):
    """Runs a group to its end: exit codes and words of all processes."""
    port = free_port()
    group = [
        Training(output, *arguments, rank=rank, world_size=world_size, port=port, **options)
        for rank in range(world_size)
    ]
    ends = [member.wait() for member in group]
    return [code for code, _ in ends], [words for _, words in ends]


def rows(folder):
    """`metrics.jsonl` without what depends on the hour."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "speed"} for row in found]


def iteration(folder):
    return load_checkpoint(folder / "last.pt").training["iteration"]


def assert_same_end(ours, theirs):
    """Every row once, with the same losses, and the same weights and optimiser state, bit for bit."""
    assert rows(ours) == rows(theirs)
    a, b = (load_checkpoint(folder / "last.pt") for folder in (ours, theirs))
    assert all(torch.equal(a.weights[k], b.weights[k]) for k in b.weights)
    states = [c.training["optimizer"]["state"] for c in (a, b)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n]["momentum_buffer"], s["momentum_buffer"]) for n, s in states[1].items())
    for name in ("iteration", "best", "best_iteration", "evaluation_due"):
        assert a.training[name] == b.training[name]
