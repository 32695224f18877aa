"""Files that cannot be read and workers that die, with and without worker processes."""

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from upsnet.data.coco import CocoPanoptic
from upsnet.data.loader import test_loader as make_test_loader
from upsnet.data.loader import train_loader
from upsnet.data.reading import BeingRead, TrainingItems
from upsnet.data.sampler import Key
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.data.transforms import Augmentation, JitterCrop
from upsnet.io.panoptic_json import PanopticJson
from upsnet.io.predictions import write_samples
from upsnet.structures import Sample

NUM_IMAGES = 12


@pytest.fixture
def root(tmp_path):
    data = Shapes(NUM_IMAGES, (48, 64))
    write_samples((data[i] for i in range(NUM_IMAGES)), CATEGORIES, tmp_path, "train")
    return tmp_path


def open_root(root, kind=CocoPanoptic):
    return kind(root / "train", root / "annotations" / "panoptic_train.json")


def damage(root, pictures=(), truths=()):
    for index in pictures:
        path = root / "train" / f"{index:06d}.png"
        path.write_bytes(path.read_bytes()[:200])
    for index in truths:
        (root / "annotations" / "panoptic_train" / f"{index:06d}.png").write_bytes(b"no image")


def batches_of(dataset, make_config, *, workers, limit=10, stop=9):
    config = make_config(f"data.num_workers={workers}", f"data.max_unreadable={limit}")
    return train_loader(dataset, config.data, batch_size=4, seed=1, start=0, stop=stop)


@pytest.fixture
def warnings():
    """The lines that the package logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("upsnet").addHandler(handler)
    yield lines
    logging.getLogger("upsnet").removeHandler(handler)


def test_unreadable_files_are_named_once_and_replaced_alike_by_any_number_of_workers(root, make_config, warnings):
    whole = list(batches_of(open_root(root), make_config, workers=0))
    damage(root, pictures=[3], truths=[7])
    runs = [list(batches_of(open_root(root), make_config, workers=workers)) for workers in (0, 2)]
    assert len(warnings) == 4, "each file once a run, though an epoch has three batches"
    assert sum("train/000003.png: cannot be read as an image" in line for line in warnings) == 2
    assert sum("panoptic_train/000007.png: cannot be read as a panoptic PNG" in line for line in warnings) == 2
    met = set()
    for before, a, b in zip(whole, *runs, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.unreadable == b.unreadable
        assert a.file_names == b.file_names
        met |= a.unreadable.keys()
        for row, name in enumerate(before.file_names):
            if name in ("000003.png", "000007.png"):
                assert a.file_names[row] not in ("000003.png", "000007.png")
                assert torch.equal(a.target.seeds[row], before.target.seeds[row])
            elif before.images.shape == a.images.shape:
                assert torch.equal(a.images[row], before.images[row])
    assert met == {3, 7}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_files_end_the_training(root, make_config, workers):
    damage(root, pictures=[1, 4, 5])
    assert len(list(batches_of(open_root(root), make_config, workers=workers, limit=3))) == 9
    with pytest.raises(
        ValueError, match=r"3 training images cannot be read, expected at most 2.*upsnet doctor"
    ) as error:
        list(batches_of(open_root(root), make_config, workers=workers, limit=2))
    assert all(f"{index:06d}.png" in str(error.value) for index in (1, 4, 5))


class Mixed(Shapes):
    """Wide and tall images by turns, of which the first six cannot be read."""

    sizes = [(8, 16), (16, 8)] * 6

    def __getitem__(self, index):
        if index < 6:
            raise ValueError("unreadable")
        ids = np.ones(self.sizes[index], dtype=np.int32)
        return Sample(np.zeros((*ids.shape, 3), np.uint8), ids, np.array([0]), np.array([False]), index, "x")


def test_an_image_is_replaced_by_one_of_its_orientation():
    items = TrainingItems(Mixed(NUM_IMAGES), Augmentation(), 0, Mixed.sizes, 10, BeingRead(0))
    for index in range(6):
        found = {items[Key(epoch, index)].sample.image_id for epoch in range(20)}
        assert found == {number for number in range(6, 12) if number % 2 == index % 2}


def test_an_image_is_augmented_anew_in_each_epoch():
    augmentation = Augmentation([JitterCrop((32, 32), (1.5, 2.0))])
    items = TrainingItems(Shapes(2, (48, 64)), augmentation, 0, [(48, 64)] * 2, 0, BeingRead(0))
    first, again, later, repeated = (items[Key(*key)] for key in ((0, 1), (0, 1), (1, 1), (0, 1, 1)))
    assert first.seed == again.seed
    assert len({first.seed, later.seed, repeated.seed}) == 3
    np.testing.assert_array_equal(first.sample.image, again.sample.image)
    assert not np.array_equal(first.sample.image, later.sample.image)
    assert not np.array_equal(first.sample.image, repeated.sample.image)


def test_a_data_set_without_a_readable_image_says_so(root, make_config):
    damage(root, pictures=range(NUM_IMAGES))
    with pytest.raises(ValueError, match="12 training images cannot be read, expected one of their orientation to be"):
        list(batches_of(open_root(root), make_config, workers=0, limit=100))


def test_an_image_of_another_size_than_the_json_says_is_replaced(root, make_config):
    path = root / "annotations" / "panoptic_train.json"
    document = json.loads(path.read_text())
    document["images"][2]["height"] = 40
    path.write_text(json.dumps(document))
    reasons = [
        text for batch in batches_of(open_root(root), make_config, workers=0) for text in batch.unreadable.values()
    ]
    assert set(reasons) == {"000002.png: size (48, 64), expected (40, 64)"}


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_skips_nothing(root, make_config, workers):
    damage(root, pictures=[5])
    with pytest.raises(ValueError, match=r"000005\.png: cannot be read"):
        list(make_test_loader(open_root(root), make_config(f"data.num_workers={workers}").data, batch_size=2))


class Deadly(CocoPanoptic):
    """Ends its process at one image."""

    def read(self, index, reduction=1):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, reduction)


class Exiting(CocoPanoptic):
    def read(self, index, reduction=1):
        return super().read(index, reduction) if index != 5 else os._exit(1)


@pytest.mark.parametrize("kind", [Deadly, Exiting])
def test_a_worker_that_dies_is_named_with_the_file_it_read(root, make_config, kind):
    with pytest.raises(ChildProcessError, match=r"data worker [\d, ]+ ended while reading 000005\.png:") as error:
        list(batches_of(open_root(root, kind), make_config, workers=2))
    assert "data.num_workers" in str(error.value)
    with pytest.raises(ChildProcessError, match=r"while reading 000005\.png"):
        list(make_test_loader(open_root(root, kind), make_config("data.num_workers=1").data, batch_size=2))


def test_a_worker_that_dies_of_a_replacement_is_named_with_that(root, make_config):
    damage(root, pictures=[index for index in range(NUM_IMAGES) if index != 5])
    with pytest.raises(ChildProcessError, match=r"while reading 000005\.png:"):
        list(batches_of(open_root(root, Deadly), make_config, workers=1, limit=100))


def test_batches_can_be_read_again(root, make_config):
    batches = batches_of(open_root(root), make_config, workers=2, stop=3)
    first, second = list(batches), list(batches)
    assert [batch.file_names for batch in first] == [batch.file_names for batch in second]


class Signalling(CocoPanoptic):
    """Tells the parent as an ending child would."""

    def read(self, index, reduction=1):
        os.kill(os.getppid(), signal.SIGCHLD)
        return super().read(index, reduction)


def test_a_handler_of_the_program_is_called_while_waiting_and_stays(root, make_config, monkeypatch):
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in a process without a loader so far
    calls = []

    def mine(*_):
        calls.append(signal.getsignal(signal.SIGCHLD) is not mine)

    before = signal.signal(signal.SIGCHLD, mine)
    try:
        list(batches_of(open_root(root, Signalling), make_config, workers=1))
        assert any(calls), "while ours waited"
        assert signal.getsignal(signal.SIGCHLD) is mine
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_last_image_has_the_number_minus_one(root):
    data = open_root(root)
    assert data[-1].file_name == data[NUM_IMAGES - 1].file_name
    np.testing.assert_array_equal(data[-1].segment_map, data[NUM_IMAGES - 1].segment_map)
    with pytest.raises(IndexError):
        data[NUM_IMAGES]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_looking_at_annotations_copies_no_memory_of_the_parent(tmp_path):
    """In a forked process, as a data worker is one."""
    rows = [{"id": i + 1, "category_id": 4, "iscrowd": 0} for i in range(10)]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 48, "width": 64} for i in range(6000)]
    annotations = [{"image_id": i, "file_name": f"{i:012d}.png", "segments_info": rows} for i in range(6000)]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES.to_json()}
    (tmp_path / "a.json").write_text(json.dumps(document))
    (tmp_path / "a").mkdir()
    truth = PanopticJson(tmp_path / "a.json")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before, total = private_memory(), 0
        for position in range(len(truth.annotations)):
            total += len(truth.annotations.at(position).classes) + truth.images.size_at(position)[0]
        os.write(writer, f"{private_memory() - before} {total}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    grown, total = map(int, os.read(reader, 100).split())
    assert total == 6000 * (10 + 48)
    assert grown < 500_000, "an object for each image would be 4 MB"


def private_memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def test_rows_by_position_and_by_id_are_the_same(root):
    data = open_root(root)
    annotations = data.truth.annotations
    assert data.image_ids == [annotations.id_at(i) for i in range(NUM_IMAGES)] == list(range(NUM_IMAGES))
    for position, image_id in enumerate(annotations):
        by_id, by_position = annotations[image_id], annotations.at(position)
        assert by_id.file_name == by_position.file_name == annotations.file_name(image_id)
        np.testing.assert_array_equal(by_id.known, by_position.known)
    assert 99 not in annotations
    with pytest.raises(KeyError):
        annotations[99]
