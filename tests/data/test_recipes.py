"""Copy-paste and repeat factors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from upsnet.data.coco import CocoPanoptic
from upsnet.data.copy_paste import paste_things
from upsnet.data.loader import open_dataset, train_loader
from upsnet.data.sampler import BatchSampler, draw_repeats, repeat_factors
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.predictions import write_samples
from upsnet.structures import Sample

NUM_STUFF = 2


def make(rows: list[list[int]], classes: list[int], crowd: list[bool], value: int) -> Sample:
    ids = np.array(rows, dtype=np.int32)
    image = np.full((*ids.shape, 3), value, dtype=np.uint8)
    return Sample(image, ids, np.array(classes), np.array(crowd), value, f"{value}.jpg")


def always(sample: Sample, source: Sample) -> Sample:
    """With a generator that chooses everything."""

    class All:
        def random(self, count: int) -> np.ndarray:
            return np.zeros(count)

    return paste_things(sample, source, NUM_STUFF, All())  # type: ignore[arg-type]


def test_a_thing_brings_its_pixels_its_id_and_its_class() -> None:
    base = make([[1, 1, 2], [1, 0, 2]], [0, 3], [False, False], 10)
    source = make([[0, 1, 1], [2, 1, 3]], [2, 0, 4], [False, False, False], 99)
    pasted = always(base, source)
    assert pasted.segment_map.tolist() == [[1, 3, 3], [1, 3, 4]]
    assert pasted.classes.tolist() == [0, 3, 2, 4]
    assert pasted.is_crowd.tolist() == [False] * 4
    assert pasted.image[..., 0].tolist() == [[10, 99, 99], [10, 99, 99]]
    assert base.segment_map.tolist() == [[1, 1, 2], [1, 0, 2]], "the picture that was read is left alone"


def test_stuff_crowds_and_void_stay_where_they_are() -> None:
    base = make([[1, 1], [2, 0]], [0, 3], [False, True], 10)
    source = make([[1, 2], [0, 0]], [1, 4], [False, True], 99)
    assert always(base, source) is base


def test_pictures_of_other_sizes_meet_at_the_top_left() -> None:
    base = make([[1, 1, 1]], [0], [False], 10)
    source = make([[1, 0], [1, 1]], [2], [False], 99)
    assert always(base, source).segment_map.tolist() == [[2, 1, 1]]


def test_every_pasted_pixel_has_one_class_and_nothing_becomes_void() -> None:
    data = Shapes(2, (64, 64), seed=3)
    num_stuff = data.categories.num_stuff
    for seed in range(20):
        pasted = paste_things(data[0], data[1], num_stuff, np.random.default_rng(seed))
        assert pasted.segment_map.max() <= len(pasted.classes) == len(pasted.is_crowd)
        was_void = data[0].segment_map == 0
        assert not ((pasted.segment_map == 0) & ~was_void).any()
        is_new = pasted.segment_map > len(data[0].classes)
        np.testing.assert_array_equal(pasted.image[is_new], data[1].image[is_new])
        np.testing.assert_array_equal(pasted.image[~is_new], data[0].image[~is_new])
        source_classes = np.concatenate([[-1], data[1].classes])[data[1].segment_map]
        np.testing.assert_array_equal(pasted.classes[pasted.segment_map[is_new] - 1], source_classes[is_new])


def test_a_picture_comes_as_often_as_its_rarest_class_asks() -> None:
    classes = [np.array([0]), np.array([0, 0]), np.array([0, 1]), np.array([], dtype=np.int64)]
    assert repeat_factors(classes, 3, threshold=0.5).tolist() == [1, 1, pytest.approx(2**0.5), 1]
    assert repeat_factors(classes, 3, threshold=0).tolist() == [1] * 4


def test_repeats_have_the_factors_for_their_mean() -> None:
    factors = np.array([1.0, 1.25, 2.5])
    drawn = np.array([draw_repeats(factors, np.random.default_rng(i)) for i in range(2000)])
    np.testing.assert_allclose(drawn.mean(0), factors, atol=0.05)
    assert drawn.min(0).tolist() == [1, 1, 2]
    assert drawn.max(0).tolist() == [1, 2, 3]


def test_repeats_of_an_image_are_spread_over_its_epoch_and_augmented_anew():
    factors = np.array([1.0, 2.5, 1.0, 1.0])
    batches = list(BatchSampler([(8, 8)] * 4, 2, seed=0, start=0, stop=200, factors=factors))
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    counts = Counter(key.image for key in keys)
    assert counts[1] / counts[0] == pytest.approx(2.5, abs=0.15)
    assert list(BatchSampler([(8, 8)] * 4, 2, seed=0, start=7, stop=200, factors=factors)) == batches[7:]


def test_rare_classes_come_more_often_where_the_json_tells_them(make_config, tmp_path):
    data = Shapes(40, (32, 48))
    rare = data.categories.num_stuff
    shows = {i: rare in data[i].classes for i in range(40)}
    chosen = [i for i in shows if not shows[i]][:10] + [i for i in shows if shows[i]][:1]
    write_samples((data[i] for i in chosen), CATEGORIES, tmp_path, "train")
    dataset = CocoPanoptic(tmp_path / "train", tmp_path / "annotations" / "panoptic_train.json")
    config = make_config("data.num_workers=0", "data.repeat_threshold=0.36")
    batches = train_loader(dataset, config.data, batch_size=2, seed=1, start=0, stop=60)
    names = Counter(name for batch in batches for name in batch.file_names)
    others = [names[data[i].file_name] for i in chosen[:-1]]
    assert names[data[chosen[-1]].file_name] == pytest.approx(2 * np.mean(others), rel=0.15)
    with pytest.raises(ValueError, match="repeat_threshold needs classes"):
        train_loader(data, config.data, batch_size=2, seed=1, start=0, stop=1)


def test_the_loader_pastes_and_leaves_other_random_choices_alone(make_config):
    data = open_dataset(make_config().data, "train")
    plain, pasted = (
        next(iter(train_loader(data, make_config(key).data, batch_size=4, seed=1, start=0, stop=1)))
        for key in ("data.augment.copy_paste=0", "data.augment.copy_paste=1")
    )
    kept = (plain.images == pasted.images).all(1)
    assert 0.3 < kept.float().mean() < 1
    assert torch.equal(plain.target.semantic_map[kept], pasted.target.semantic_map[kept])
    assert (pasted.target.labels > 0).sum() > (plain.target.labels > 0).sum()
