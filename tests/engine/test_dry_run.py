"""`upsnet train --dry-run`: what it measures, and that it leaves nothing behind."""

import re

import pytest
import torch

from tests.conftest import TINY
from upsnet.config import parse_config
from upsnet.data.loader import open_dataset
from upsnet.data.shapes import Shapes
from upsnet.engine.dry_run import dry_run, largest_batch
from upsnet.engine.train import Trainer
from upsnet.ops.sizes import MULTIPLES_OF_32


def test_a_dry_run_tells_memory_time_and_disk_and_writes_nothing(run_tool, tiny_yaml, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run_tool("train", "--config", tiny_yaml, "--output", tmp_path / "run", "--dry-run")
    assert code == 0, err
    assert sorted(tmp_path.rglob("*")) == before
    for pattern in (
        r"largest batch: \d+ images of \d+x\d+ in this process, up to \d+ instances an image",
        r"memory: \d+\.\d+ GB",
        r"step: \d+\.\d+ s, \d+\.\d images/s",
        r"data: \d+\.\d+ s for the images of a step",
        r"6 iterations: at most 0:00:\d\d",
        r"disk: 0\.\d+ GB for checkpoints",
    ):
        assert re.search(pattern, out), (pattern, out)


def test_a_dry_run_tells_which_initial_weights_were_taken(run_tool, tiny_yaml, tmp_path, checkpoint):
    code, out, err = run_tool(
        "train", "--config", tiny_yaml, "--output", tmp_path / "run", "--dry-run", "--init", checkpoint
    )
    assert code == 0, err
    assert re.search(r"checkpoint of this project: .* tensors loaded", out), out


def test_the_largest_batch_is_at_the_largest_scale(make_config):
    config = make_config("data.augment.short_sides=[32, 64]", "data.augment.max_side=200", "train.batch_size=3")
    batch = largest_batch(open_dataset(config.data, "train"), config, MULTIPLES_OF_32)
    assert len(batch) == 3
    assert all(min(size) == 64 for size in batch.network_sizes)


def test_the_largest_batch_holds_images_of_one_aspect_as_in_training(make_config):
    class Mixed(Shapes):
        def size(self, index):
            return (64, 96) if index % 2 else (96, 64)

        def __getitem__(self, index):
            return Shapes(1, self.size(index))[0]

    batch = largest_batch(Mixed(6, (64, 96)), make_config("train.batch_size=4"), MULTIPLES_OF_32)
    assert len(set(batch.network_sizes)) == 1


def test_more_images_than_the_set_has_are_repeated(make_config):
    config = make_config("train.batch_size=30")
    assert len(largest_batch(Shapes(2, (64, 96)), config, MULTIPLES_OF_32)) == 30


def test_too_little_memory_names_the_keys_that_help(make_config, tmp_path, monkeypatch):
    def step(trainer, model, group):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(MemoryError, match=r"Halve train.batch_size and double train.accumulate, .*mask_slots=32"):
        dry_run(make_config(), tmp_path)


def test_a_batch_norm_with_one_value_per_channel_is_a_clear_error(tmp_path):
    small = {"format": "shapes", "num_images": 4, "image_size": [32, 32]}
    data = {**TINY["data"], "train": small, "val": small}
    options = ["model.backbone.norm=bn", "train.batch_size=1", "data.num_workers=0"]
    config = parse_config({**TINY, "data": data}, options, source="tiny")
    with pytest.raises(ValueError, match=r"1 image of 32x32 in a process leaves .*set model\.backbone\.norm=gn"):
        Trainer(config, tmp_path, torch.device("cpu")).run()
