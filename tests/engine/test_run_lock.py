"""One training writes into a folder: a second one is refused, and a lock ends with its process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.engine.processes import Training, needs_fork
from upsnet.engine.run_lock import LOCK_NAME, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from upsnet.engine.run_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    )
    assert process.stdout.readline().strip() == "held"
    return process


def test_the_second_process_is_told_who_holds_the_folder(tmp_path):
    process = hold(tmp_path / "run")
    try:
        with (
            pytest.raises(
                OSError, match=rf"run: another training .*process {process.pid} on .*choose another --output"
            ),
            lock_folder(tmp_path / "run"),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lock_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")


def checkpoints(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".yaml")}


@needs_fork
def test_a_second_training_ends_at_once_and_leaves_the_first_alone(tmp_path):
    def wait(trainer):
        if trainer.iteration == 1:
            (tmp_path / "stepping").touch()
            time.sleep(20)

    first = Training(tmp_path / "run", before_step=wait)
    deadline = time.monotonic() + 60
    while not (tmp_path / "stepping").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    before = checkpoints(tmp_path / "run")
    second = Training(tmp_path / "run", "--resume", rank=0)
    second.process.join(60)
    assert second.process.exitcode == 2
    assert checkpoints(tmp_path / "run") == before
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.join(10)
    with lock_folder(tmp_path / "run"):
        pass
