from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from upsnet.data.loader import InferenceInput, collate, open_dataset, train_loader
from upsnet.data.loader import test_loader as make_test_loader
from upsnet.data.sampler import BatchSampler, image_seed
from upsnet.ops.sizes import InputForm

SIZES = [(10, 20)] * 7 + [(20, 10)] * 6


def test_batches_hold_one_orientation_and_every_image_comes_equally_often():
    batches = list(BatchSampler(SIZES, 4, seed=0, start=0, stop=13))
    assert all(len({SIZES[key.image][1] > SIZES[key.image][0] for key in batch}) == 1 for batch in batches)
    counts = Counter(key.image for batch in batches for key in batch)
    assert set(counts.values()) <= {3, 4, 5}


def test_training_can_start_anywhere_in_the_same_order():
    whole = list(BatchSampler(SIZES, 4, seed=3, start=0, stop=20))
    assert list(BatchSampler(SIZES, 4, seed=3, start=8, stop=20)) == whole[8:]
    assert list(BatchSampler(SIZES, 4, seed=4, start=0, stop=20)) != whole


def test_ranks_share_a_batch_without_overlap():
    whole = list(BatchSampler(SIZES, 4, seed=0, start=0, stop=5))
    parts = [list(BatchSampler(SIZES, 4, seed=0, start=0, stop=5, rank=r, world_size=2)) for r in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(a + b)
        assert len(a) == len(b)
    with pytest.raises(ValueError, match=r"batch_size 4 over 3"):
        BatchSampler(SIZES, 4, seed=0, start=0, stop=5, world_size=3)


def test_seeds_differ_by_image_and_epoch():
    seeds = {image_seed(0, epoch, index, n) for epoch in range(10) for index in range(50) for n in range(3)}
    assert len(seeds) == 1500
    assert min(seeds) >= 0


def test_workers_change_nothing(make_config):
    config = make_config(
        "data.augment.photometric=0.3", "data.augment.crop_size=[48, 64]", "data.augment.copy_paste=0.5"
    )
    data = open_dataset(config.data, "train")
    runs = []
    for workers in (0, 2):
        changed = config.data.model_copy(update={"num_workers": workers})
        runs.append(list(train_loader(data, changed, batch_size=2, seed=1, start=0, stop=3)))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.target.instance_map, b.target.instance_map)
        assert a.file_names == b.file_names


def test_a_batch_pads_with_nothing(dataset):
    small, large = dataset[0], dataset[1]
    cut = type(small)(small.image[:40, :50], small.segment_map[:40, :50], small.classes, small.is_crowd, 0, "cut")
    batch = collate([(cut, 1), (large, 2)], 3, 32)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.image_sizes.tolist() == [[40, 50], [64, 96]]
    assert not batch.images[0, :, 40:].any()
    assert (batch.target.semantic_map[0, :, 50:] == 255).all()
    assert not batch.target.instance_map[0, 40:].any()
    assert (batch.target.labels > 0).sum(1).tolist() == [
        len(np.unique(cut.segment_map[np.isin(cut.segment_map, np.flatnonzero(cut.classes >= 3) + 1)])),
        int((large.classes >= 3).sum()),
    ]


def test_the_test_loader_sees_every_image_once_over_any_number_of_ranks(config, dataset):
    for world_size in (1, 3):
        ids = [
            truth.image_id
            for rank in range(world_size)
            for batch in make_test_loader(dataset, config.data, batch_size=3, rank=rank, world_size=world_size)
            for truth in batch.truths
        ]
        assert sorted(ids) == list(range(len(dataset)))


def test_inference_input_resizes_by_the_configured_rule(make_config):
    config = make_config("data.test_short_side=48", "data.test_max_side=80")
    batch = InferenceInput(config.data)([np.zeros((100, 300, 3), np.uint8), np.zeros((96, 96, 3), np.uint8)])
    assert batch.network_sizes == [(27, 80), (48, 48)]
    assert batch.original_sizes == [(100, 300), (96, 96)]
    assert batch.images.shape == (2, 3, 64, 96)


def test_config_categories_must_be_those_of_the_data(make_config):
    rows = [{"id": 1, "name": "sky", "isthing": 0}]
    with pytest.raises(ValueError, match=r"class .* is none of the model"):
        open_dataset(make_config(f"data.categories={rows}").data, "train")


def test_the_loader_is_endless(config, dataset):
    batches = islice(train_loader(dataset, config.data, batch_size=4, seed=0, start=0, stop=10**6), 9)
    assert sum(len(b) for b in batches) == 36


def test_batches_have_the_form_that_the_architecture_takes(make_config, dataset):
    form = InputForm(remainder=1)
    assert form.padded_size((1, 33)) == (1, 33)
    assert form.padded_size((2, 34)) == (33, 65)
    assert form.padded_size((2, 66), 64) == (65, 129)
    config = make_config("data.test_short_side=48", "data.test_max_side=80").data
    images = [np.zeros((100, 300, 3), np.uint8), np.zeros((96, 96, 3), np.uint8)]
    assert InferenceInput(config, form)(images).images.shape == (2, 3, 65, 97)
    own_size = InferenceInput(config, InputForm(resizes_images=True))(images)
    assert own_size.network_sizes == [(100, 300), (96, 96)]
    for batch in train_loader(dataset, config, batch_size=2, seed=0, start=0, stop=1, form=form):
        assert all(side % 32 == 1 for side in batch.images.shape[2:])
    for batch in make_test_loader(dataset, config, batch_size=2, form=form):
        assert all(side % 32 == 1 for side in batch.images.shape[2:])


def test_a_network_input_without_bounds_is_refused_before_the_model_runs(make_config):
    """A PNG of 164 KB can hold 13000 x 13000 pixels, which no test size makes smaller."""
    config = make_config("data.max_network_pixels=10000").data
    make = InferenceInput(config)
    assert make([np.zeros((100, 100, 3), np.uint8)]).network_sizes == [(100, 100)]
    message = "image of 101 x 100: 101 x 100 pixels of network input, expected at most 10000; set data.test_short_side"
    with pytest.raises(ValueError, match=message):
        make([np.zeros((100, 101, 3), np.uint8)])
    resized = InferenceInput(config.model_copy(update={"test_short_side": 50, "test_max_side": 100}))
    assert resized([np.zeros((1000, 1100, 3), np.uint8)]).network_sizes == [(50, 55)]
