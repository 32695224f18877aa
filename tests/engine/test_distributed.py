"""Several processes: they do what one does, see every image once, and end together when one of them fails."""

import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import timedelta
from itertools import islice

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.conftest import ROOT
from tests.engine.processes import SMALL, assert_same_end, iteration, needs_fork, rows, train, train_group
from upsnet.config import parse_config
from upsnet.data import loader as data_loader
from upsnet.data.loader import BatchSampler, open_dataset
from upsnet.engine import distributed
from upsnet.engine.optim import learning_rate
from upsnet.engine.resume import CheckpointFiles
from upsnet.engine.train import Trainer
from upsnet.models.build import build_model
from upsnet.models.checkpoint import load_checkpoint

STEADY = (
    "model.backbone.norm=gn", "train.lr=0.002", "train.log_every=1", "train.evaluate_every=20",
    "train.checkpoint_every=20",
)  # fmt: skip
"""No batch statistics, which depend on how a batch is split; and steps so small that one RoI, chosen otherwise where
rounding decides, does not grow into another run."""


def assert_two_follow_one(folder, steps, batch_size, accumulate=1, *more, of_two=(), patch=None):
    whole = batch_size * accumulate
    options = (*STEADY, f"train.iterations={steps}", *more)
    train(folder / "one", *options, f"train.batch_size={whole}")
    options = (*options, f"train.batch_size={batch_size}", f"train.accumulate={accumulate}", *of_two)
    codes, words = train_group(folder / "two", 2, *options, patch=patch)
    assert codes == [0, 0], words
    assert words[1] == "", "the first process speaks for all"
    ours, theirs = rows(folder / "one"), rows(folder / "two")
    assert len(ours) == len(theirs) == steps + 1
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name.startswith(("loss_", "gradient", "lr")):
                assert b[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (a["iteration"], name)
    assert theirs[-1]["pq"] == pytest.approx(ours[-1]["pq"], abs=0.5)


@needs_fork
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2)])
def test_two_processes_with_flat_gradients_follow_one(tmp_path, batch_size, accumulate):
    """One all-reduce after the backward pass in place of DDP's hooks: 20 steps of 8 images, whole and in two parts."""
    assert_two_follow_one(tmp_path, 20, batch_size, accumulate, of_two=("train.cuda_graph=true",))


@needs_fork
def test_two_processes_follow_one(tmp_path):
    assert_two_follow_one(tmp_path, steps=6, batch_size=4)


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2)])
def test_two_processes_follow_one_for_twenty_steps_of_eight_images(tmp_path, batch_size, accumulate):
    assert_two_follow_one(tmp_path, 20, batch_size, accumulate)


@needs_fork
def test_gradients_travel_once_an_update(tmp_path):
    """`no_sync` on all but the last part of an update."""

    def count():
        hook = nn.parallel.DistributedDataParallel.forward

        def forward(model, *args):
            sys.stderr.write(f"gradients travel: {model.require_backward_grad_sync}\n")
            return hook(model, *args)

        nn.parallel.DistributedDataParallel.forward = forward

    options = ("train.iterations=2", "train.accumulate=3", "train.evaluate_every=2")
    codes, words = train_group(tmp_path / "run", 2, *options, patch=count)
    assert codes == [0, 0], words
    sent = [line.rpartition(" ")[2] for line in words[1].splitlines() if line.startswith("gradients travel")]
    assert sent == ["False", "False", "True"] * 2


@needs_fork
@pytest.mark.slow
def test_a_run_of_two_that_is_killed_goes_on_bit_for_bit(tmp_path):
    def die(trainer):
        if trainer.iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    options = ("train.iterations=6", "train.evaluate_every=6")
    codes, _ = train_group(tmp_path / "run", 2, *options, before_step=die)
    assert codes == [-signal.SIGKILL] * 2
    for folder in ("run", "whole"):
        assert train_group(tmp_path / folder, 2, "--resume", *options)[0] == [0, 0]
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    words = train(tmp_path / "run", "--resume", *options)
    assert "number of processes: 1, 2 before" in words


@needs_fork
def test_a_failure_of_one_process_ends_all_with_its_message(tmp_path):
    def bad_picture(trainer):
        if trainer.iteration == 2 and distributed.rank() == 1:
            trainer.train_set.__class__.__getitem__ = lambda *_: (_ for _ in ()).throw(ValueError("a.jpg: broken"))

    def bad_step(trainer):
        if trainer.iteration == 2 and distributed.rank() == 1:
            raise FloatingPointError("something in the middle of a step")

    for hook, message in (
        (
            bad_picture,
            "error: 7 training images cannot be read, expected one of their orientation to be: a.jpg: broken",
        ),
        (bad_step, "error: something in the middle"),
    ):
        codes, words = train_group(tmp_path / hook.__name__, 2, before_step=hook)
        assert codes == [1, 2]
        assert "error" not in words[0].lower()
        assert words[1].startswith(message)
        assert words[1].count("\n") == 1


@needs_fork
def test_the_process_that_holds_the_store_may_be_the_one_that_fails(tmp_path):
    def bad_step(trainer):
        if trainer.iteration == 2 and distributed.rank() == 0:
            raise FloatingPointError("something in the middle of a step")

    codes, words = train_group(tmp_path / "run", 2, before_step=bad_step)
    assert codes == [2, 1]
    assert words[0] == "error: something in the middle of a step\n"
    assert not any(line.startswith(("error", "Traceback")) for line in words[1].splitlines())


@needs_fork
def test_a_loss_that_is_not_finite_is_told_by_the_process_that_had_it(tmp_path):
    """One step later it has spread to all."""

    def poison(trainer):
        if distributed.rank() == 1 and trainer.iteration == 1:
            loss = trainer.model.loss
            trainer.model.loss = lambda batch: (found := loss(batch)) | {"loss_box": found["loss_box"] * float("nan")}

    codes, words = train_group(tmp_path / "run", 2, before_step=poison)
    assert codes == [1, 2], words
    assert "error" not in words[0]
    assert words[1].startswith("error: iteration 1: loss_box=nan; images ")
    assert words[1].count(".png") == 1, "this process's image of the batch"


@needs_fork
def test_processes_that_see_different_folders_are_told_so(tmp_path):
    def blind():
        if os.environ["RANK"] == "1":
            CheckpointFiles.newest = lambda files: (None, [])

    train(tmp_path / "run", "train.iterations=2", "train.checkpoint_every=1", "train.evaluate_every=2")
    codes, words = train_group(
        tmp_path / "run", 2, "--resume", "train.iterations=2", "train.evaluate_every=2", patch=blind
    )
    assert 0 not in codes
    assert "checkpoints of iterations 2, 0, expected the same" in "".join(words)


@needs_fork
def test_processes_started_again_meet_beside_what_others_left_in_the_store():
    """As under torchrun on two nodes: one store for all starts, and each node counts its own restarts."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def join(rank, restarts):
        group = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port}
        agent = {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": restarts}
        os.environ.update({key: str(value) for key, value in {**group, **agent}.items()})
        faulthandler.dump_traceback_later(30, exit=True)
        with distributed.process_group():
            assert distributed.gather(restarts) == [attempt, 0]

    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        nodes = [context.Process(target=join, args=(0, attempt)), context.Process(target=join, args=(1, 0))]
        if attempt == 0:  # one dies on its way, the other waits for it until it is killed
            nodes[1] = context.Process(target=os._exit, args=(3,))
        for node in nodes:
            node.start()
        nodes[1].join(60)
        if attempt == 0:
            nodes[0].kill()
        nodes[0].join(60)
        assert [node.exitcode for node in nodes] == ([-signal.SIGKILL, 3] if attempt == 0 else [0, 0])


def test_more_processes_than_gpus_and_batches_that_cannot_be_shared_are_told(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"train.batch_size 2 over 3 processes, expected a multiple"):
        Trainer(make_config(), tmp_path / "run", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(ValueError, match=r"process 2 of this machine has no GPU, found 2; expected --nproc-per-node 2"),
        distributed.process_group(),
    ):
        pass


def test_processes_that_never_come_are_named():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=0.1))
    with pytest.raises(TimeoutError, match="for processes 1, 2, expected 3 in all"):
        distributed._own_part(store, 0, 3)


@needs_fork
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    def ask(trainer):
        if trainer.iteration == 4 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    codes, words = train_group(tmp_path / "run", 2, before_step=ask)
    assert codes == [143, 143], words
    assert iteration(tmp_path / "run") == 5


def test_three_processes_see_every_image_once():
    """Seven images in batches of six: an evaluation deals them out; training carries the rest into the next epoch."""
    sizes = [(64, 96)] * 4 + [(96, 64)] * 3
    parts = [list(BatchSampler(sizes, 6, seed=0, start=0, stop=14, rank=rank, world_size=3)) for rank in range(3)]
    batches = [sorted(key for part in parts for key in part[step]) for step in range(14)]
    assert all(len(batch) == 6 for batch in batches)
    seen = [key for batch in batches for key in batch]
    assert len(seen) == len(set(seen)), "no image twice in an epoch, over all processes"
    complete = min(epoch for epoch, _ in {(e, i) for e in range(13) for i in range(7)} - {key[:2] for key in seen})
    assert complete >= 10
    for epoch in range(complete):
        assert sorted(key.image for key in seen if key.epoch == epoch) == list(range(7)), "and none left out"
    config = parse_config(SMALL, ["data.val={format: shapes, num_images: 7, image_size: [32, 48]}"], source="small")
    dataset = open_dataset(config.data, "val")
    loaders = [
        data_loader.test_loader(dataset, config.data, batch_size=2, rank=rank, world_size=3) for rank in range(3)
    ]
    tested = [truth.image_id for loader in loaders for batch in loader for truth in batch.truths]
    assert sorted(tested) == list(range(7))


def test_only_batch_norms_that_learn_become_synchronous(make_config, dataset):
    config = make_config("model.backbone.freeze_at=2", "model.backbone.weights=x")
    model = build_model(config, dataset.categories, pretrained=False)
    names = list(model.state_dict())
    distributed.replace_batch_norms(model)
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds["backbone.bn1"] is kinds["backbone.layer1.0.bn1"] is nn.BatchNorm2d
    assert kinds["backbone.layer2.0.bn1"] is kinds["backbone.layer4.1.bn2"] is nn.SyncBatchNorm
    assert list(model.state_dict()) == names


@needs_fork
def test_synchronous_batch_norms_without_gpus_are_refused(tmp_path):
    codes, words = train_group(tmp_path / "run", 2, "train.sync_batch_norm=true")
    assert 2 in codes
    assert 0 not in codes
    assert "train.sync_batch_norm needs one GPU a process" in "".join(words)


def test_the_rate_is_scaled_to_the_batch_by_an_explicit_rule(make_config):
    batch = ("train.lr=0.02", "train.batch_size=4", "train.accumulate=3", "train.warmup_iterations=0")
    assert learning_rate(make_config(*batch).train, 0) == 0.02
    assert learning_rate(make_config(*batch, "train.reference_batch=16").train, 0) == pytest.approx(0.015)


KILLS_ITSELF_ONCE = """
import os, runpy, signal, sys
from upsnet.engine.train import Trainer
step = Trainer._step
def die_once(trainer, *rest):
    if (trainer.iteration, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (5, "1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    step(trainer, *rest)
Trainer._step = die_once
sys.argv[0] = {tool!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_the_run_goes_on_by_itself(tiny_yaml, tmp_path):
    script = tmp_path / "once.py"
    script.write_text(KILLS_ITSELF_ONCE.format(tool=str(ROOT / "tools" / "train.py")))
    for name, program, restarts in (("run", script, 1), ("whole", ROOT / "tools" / "train.py", 0)):
        run = torchrun("--max-restarts", restarts, program, "--config", tiny_yaml, "--output", tmp_path / name)
        words, _ = run.communicate(timeout=500)
        assert run.returncode == 0, words[-3000:]
        assert ("going on from iteration 3" in words) == (name == "run")
    ours, theirs = (load_checkpoint(tmp_path / name / "last.pt").weights for name in ("run", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_ends_all(tiny_yaml, tmp_path, number):
    options = ("train.iterations=100000", "train.checkpoint_every=100000", "train.evaluate_every=100000")
    run = torchrun(ROOT / "tools" / "train.py", "--config", tiny_yaml, "--output", tmp_path / "run", *options)
    words = "".join(islice(iter(run.stdout.readline, ""), 3))
    run.send_signal(number)
    rest, _ = run.communicate(timeout=120)
    assert run.returncode != 0
    assert f"stopped by {number.name}" in words + rest
    saved = load_checkpoint(tmp_path / "run" / "last.pt").training
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert saved["iteration"] in (last["iteration"], last["iteration"] + 1)
