"""The SLURM example, with stand-ins for the cluster's commands."""

import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT

COMMANDS = {
    "scontrol": 'echo "scontrol $*" >> words; if [ "$1" = show ]; then echo node1; fi',
    # As torchrun: it ends with an error when SIGTERM has stopped it. srun's own SIGTERM would end the step at once.
    "srun": 'echo "srun $*" >> words; trap "echo killed >> words; exit 15" TERM\n'
    'touch step; while [ -e step ] && [ ! -e asked ]; do sleep 0.02; done; [ ! -e asked ]',
    "scancel": 'echo "scancel $*" >> words; touch asked',
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
@pytest.mark.parametrize("received", [signal.SIGUSR1, signal.SIGTERM, None])
def test_a_job_that_is_told_to_stops_its_step_and_at_its_time_limit_is_queued_again(tmp_path, received):
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    cluster = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "64",
    }  # fmt: skip
    job = subprocess.Popen(
        ["bash", ROOT / "examples" / "slurm_train.sh", "a.yaml", "runs/a", "seed=1"], cwd=tmp_path, env=cluster
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "step").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if received:
        job.send_signal(received)
    else:
        (tmp_path / "step").unlink()  # the run comes to its end
    code = job.wait(60)
    words = (tmp_path / "words").read_text()
    assert "--cpus-per-task=64" in words
    assert "--rdzv-endpoint node1:29500" in words
    assert "--config a.yaml --output runs/a --resume seed=1\n" in words
    assert "killed" not in words
    assert (code != 0) == ("scancel --signal=TERM 7.0" in words) == (received is not None)
    assert ("scontrol requeue 7" in words) == (received == signal.SIGUSR1), "a job that is cancelled stays cancelled"
