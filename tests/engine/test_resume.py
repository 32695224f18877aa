"""Nothing is lost: kills, signals, broken files, full disks, and other data."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import time

import numpy as np
import pytest
import torch

from tests.engine.processes import Training, assert_same_end, iteration, needs_fork, train
from upsnet.data.reading import WholeItems
from upsnet.data.sampler import Key
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.engine import evaluate as evaluation
from upsnet.engine.resume import CheckpointFiles
from upsnet.engine.signals import StopSignals
from upsnet.engine.train import Trainer
from upsnet.io.predictions import write_samples
from upsnet.models.checkpoint import Checkpoint, load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def kill_and_resume(folder, kills, *options, every, last):
    """Kills a run at random moments; each time it has lost one interval at most."""
    reached = multiprocessing.get_context("fork").Value("i", 0)

    def count(trainer):
        reached.value = trainer.iteration

    rng = random.Random(time.time_ns())
    for target in sorted(rng.sample(range(1, last), kills)):
        run = Training(folder, "--resume", *options, before_step=count)
        while reached.value < target and run.process.exitcode is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        run.kill()
        run.wait()
        left = CheckpointFiles(folder, 2).newest()[0]
        assert reached.value - (left.training["iteration"] if left else 0) <= every
    train(folder, "--resume", *options)
    assert not list(folder.glob(".*.pt")), "halves of files are cleared"


@needs_fork
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(whole, tmp_path):
    kill_and_resume(tmp_path / "run", 1, every=3, last=9)
    assert_same_end(tmp_path / "run", whole)


@needs_fork
def test_a_run_that_is_killed_after_an_evaluation_ends_as_one_that_was_not(whole, tmp_path):
    """An evaluation leaves the model as training wants it: the one does not run again, the other goes on."""

    def patch():
        save = Trainer._save

        def save_and_die(trainer):
            save(trainer)
            if trainer.best_iteration and not trainer.evaluation_due:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer._save = save_and_die

    assert Training(tmp_path / "run", patch=patch).wait()[0] == -signal.SIGKILL
    assert iteration(tmp_path / "run") == 6
    train(tmp_path / "run", "--resume")
    assert_same_end(tmp_path / "run", whole)


@needs_fork
@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    options = ("train.iterations=30", "train.checkpoint_every=1")
    train(tmp_path / "whole", *options)
    kill_and_resume(tmp_path / "run", 10, *options, every=1, last=30)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_at_the_next_step_and_loses_nothing(whole, tmp_path, number):
    def ask(trainer):
        if trainer.iteration == 1:
            os.kill(os.getpid(), number)

    code, words = Training(tmp_path / "run", before_step=ask).wait()
    assert code == 128 + number
    assert f"stopped by {number.name} at iteration 2 of 9" in words
    assert iteration(tmp_path / "run") == 2, "inside an interval of the log and of the checkpoints"
    if number == signal.SIGTERM:
        train(tmp_path / "run", "--resume")
        assert_same_end(tmp_path / "run", whole)


@needs_fork
def test_a_signal_during_an_evaluation_stops_it_and_it_is_made_again(whole, tmp_path):
    def slow_evaluation():
        meters = evaluation._Meters.update

        def ask(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            meters(*args)

        evaluation._Meters.update = ask

    code, words = Training(tmp_path / "run", patch=slow_evaluation).wait()
    assert code == 143, words
    assert iteration(tmp_path / "run") == 6
    assert not (tmp_path / "run" / "model.pt").exists()
    train(tmp_path / "run", "--resume")
    assert_same_end(tmp_path / "run", whole)


@needs_fork
def test_a_signal_to_all_processes_of_a_job_stops_an_evaluation_whose_data_workers_it_ends(tmp_path):
    """As `srun` and a terminal send it: to the workers as well."""

    def end_group():
        os.setpgrp()
        read = WholeItems.__getitem__

        def ask(items, index):
            if index == 2:
                os.killpg(0, signal.SIGTERM)
                time.sleep(60)
            return read(items, index)

        WholeItems.__getitem__ = ask

    options = ("data.num_workers=1", "data.val.num_images=3", "train.iterations=1", "train.warmup_iterations=0")
    code, words = Training(tmp_path / "run", *options, patch=end_group).wait()
    assert code == 143, words
    assert "stopped by SIGTERM at iteration 1 of 1" in words
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["evaluation_due"]


def test_a_second_interrupt_aborts_and_the_same_one_sent_twice_does_not():
    outside = signal.signal(signal.SIGINT, before := signal.default_int_handler)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        signals._since -= 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, outside) is before


def test_a_hangup_that_the_launcher_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


@needs_fork
def test_a_checkpoint_that_is_cut_is_stepped_over_and_named(whole, tmp_path):
    def die(trainer):
        if trainer.iteration == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    folder = tmp_path / "run"
    assert Training(folder, before_step=die).wait()[0] == -signal.SIGKILL
    assert sorted(p.name for p in folder.glob("last*.pt")) == ["last-00000003.pt", "last.pt"]
    content = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(content[: len(content) // 2])
    words = train(folder, "--resume")
    assert "last.pt: cannot be read as a checkpoint" in words
    assert "going on from last-00000003.pt in its place" in words
    assert_same_end(folder, whole)
    (folder / "last.pt").write_bytes(b"")
    code, words = Training(folder, "--resume", "seed=5").wait()
    assert code == 2
    assert re.search(r"seed is 5, expected 0 as in .*last-\d+.pt", words), "the file that was read"


def test_a_checkpoint_of_which_one_bit_is_wrong_is_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt: cannot be read as a checkpoint \(.* is damaged\)"):
        load_checkpoint(checkpoint)


def test_a_folder_without_one_checkpoint_that_can_be_read_is_an_error(make_config, tmp_path):
    for name in ("last.pt", "last-00000003.pt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"last.pt: cannot be read.*; .*last-00000003.pt: cannot be read"):
        Trainer(make_config(), tmp_path, CPU, resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        Trainer(make_config(), tmp_path, CPU)


def test_resume_in_an_empty_folder_begins(make_config, tmp_path):
    trainer = Trainer(make_config(), tmp_path / "run", CPU, resume=True)
    assert trainer.iteration == 0
    assert trainer.notes == []


def test_the_newest_checkpoints_are_kept(config, tmp_path, model, dataset):
    for keep, names in ((1, ["last.pt"]), (3, ["last-00000002.pt", "last-00000003.pt", "last.pt"])):
        folder = tmp_path / str(keep)
        folder.mkdir()
        files = CheckpointFiles(folder, keep)
        for number in (1, 2, 3, 4, 4):
            files.save(Checkpoint(config, dataset.categories, {}, {"number": number}), number)
        assert sorted(p.name for p in folder.iterdir()) == names
        assert load_checkpoint(folder / "last.pt").metrics == {"number": 4}


def test_a_folder_that_cannot_hold_the_run_is_an_error_before_the_first_step(make_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(OSError, match=r"file/run: Not a directory; .*--output"):
        Trainer(make_config(), tmp_path / "file" / "run", CPU).run()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"run: File too large; .*--output"):
            Trainer(make_config(), tmp_path / "run", CPU).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "run").iterdir()) == []
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr("upsnet.engine.resume.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"run: 0.0\d GB needed, 0.00 GB free"):
        Trainer(make_config(), tmp_path / "run", CPU).run()


@needs_fork
def test_a_disk_that_fills_up_is_named_and_the_older_checkpoint_stays(tmp_path):
    def limit(trainer):
        if trainer.iteration == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    code, words = Training(tmp_path / "run", before_step=limit).wait()
    assert code == 2
    assert re.findall("^error: .*", words, re.MULTILINE) == re.findall(
        "^error: .*cannot be written.*", words, re.MULTILINE
    )
    assert iteration(tmp_path / "run") == 3
    assert "Traceback" not in words


def test_other_data_is_named_when_a_run_goes_on(make_config, tmp_path, monkeypatch):
    data = Shapes(4, (48, 64))
    for name in ("a", "b"):
        write_samples((data[i] for i in range(4)), CATEGORIES, tmp_path / "data", name)
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path / "data"))

    def source(name):
        return f"{{format: coco, image_dir: {name}, annotation_file: annotations/panoptic_{name}.json}}"

    options = (
        "train.iterations=1",
        "train.warmup_iterations=0",
        "data.train=" + source("a"),
        "data.val=" + source("b"),
        "evaluate.panels=0",
    )
    config = make_config(*options)
    Trainer(config, tmp_path / "run", CPU).run()
    assert Trainer(config, tmp_path / "run", CPU, resume=True).iteration == 1
    annotations = tmp_path / "data" / "annotations" / "panoptic_a.json"
    document = json.loads(annotations.read_text())
    document["annotations"].pop()
    annotations.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="another than in") as error:
        Trainer(config, tmp_path / "run", CPU, resume=True)
    message = str(error.value)
    for part in ("data.train.number of images is 3, expected 4", "data.train.image ids", "data.train.annotation file"):
        assert part in message
    assert "data.val" not in message
    assert "categories" not in message


def test_every_key_of_the_config_that_differs_is_named(make_config, tmp_path):
    same = ("train.iterations=1", "train.warmup_iterations=0", "evaluate.instance=false", "model.backbone.norm=gn")
    free = ("evaluate.panels=0", "model.backbone.checkpoint_activations=true")
    Trainer(make_config(*same), tmp_path, CPU).run()
    with pytest.raises(ValueError, match=r"seed is 3, expected 0; train.lr is 0.5, expected 0.02 as in .*last.pt"):
        Trainer(make_config(*same, *free, "train.lr=0.5", "seed=3"), tmp_path, CPU, resume=True)


def test_training_draws_from_no_generator_of_the_process(make_config, tmp_path):
    """Why a checkpoint holds none: every random choice is a function of (seed, epoch, image)."""
    trainer = Trainer(make_config("model.instance.mask_layers=2"), tmp_path, CPU)
    batches = [next(iter(trainer._loader())), next(iter(trainer._loader()))]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    trainer._step(trainer.model, batches)
    trainer._loader().loader.dataset[Key(0, 0)]
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])
