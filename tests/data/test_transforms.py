import numpy as np
import pytest

from upsnet.data import transforms as T
from upsnet.data.categories import IGNORE_LABEL
from upsnet.data.shapes import Shapes
from upsnet.data.targets import make_target, semantic_truth
from upsnet.structures import Sample


def sample_of(ids, classes=(0, 3, 4)):
    """An image whose colour encodes its ids, so that any drift between the two shows."""
    image = np.repeat((ids * 40).astype(np.uint8)[..., None], 3, axis=2)
    return Sample(image, ids.astype(np.int32), np.array(classes), np.zeros(len(classes), dtype=bool), 0, "x")


@pytest.fixture
def sample():
    ids = np.zeros((40, 60), dtype=np.int32)
    ids[:, :20], ids[:20, 20:40], ids[20:, 40:] = 1, 2, 3
    return sample_of(ids)


def agreement(sample):
    """Share of pixels whose colour is that of their id (edges are blended)."""
    return np.mean(sample.image[..., 0] == sample.segment_map * 40)


def test_ids_are_looked_up_at_pixel_centres():
    ids = np.arange(1, 5, dtype=np.int32)[None]
    assert T.resize_ids(ids, (1, 2)).tolist() == [[2, 4]]
    assert T.resize_ids(ids, (1, 8)).tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]]
    assert T.resize_ids(ids, (3, 4)).tolist() == [[1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    "step", [T.ResizeShortSide([30, 80], 100), T.JitterCrop((32, 48), (0.5, 2.0)), T.horizontal_flip, T.dihedral_flip]
)
def test_image_and_ids_move_together(sample, step):
    for seed in range(8):
        out = step(sample, np.random.default_rng(seed))
        assert out.image.shape[:2] == out.segment_map.shape
        assert set(np.unique(out.segment_map)) <= {0, 1, 2, 3}
        assert agreement(out) > 0.85
        again = step(sample, np.random.default_rng(seed))
        np.testing.assert_array_equal(out.image, again.image)


def test_dihedral_flip_reaches_all_eight_symmetries(sample):
    found = {T.dihedral_flip(sample, np.random.default_rng(s)).segment_map.tobytes() for s in range(64)}
    assert len(found) == 8


def test_short_side_respects_the_maximum():
    assert T.fit_size((480, 640), 800, 1333) == (800, 1067)
    assert T.fit_size((400, 1200), 800, 1333) == (444, 1333)
    assert T.fit_size((1, 5000), 800, 1333) == (1, 1333)


def test_crop_has_its_size_or_the_whole_image(sample):
    out = T.JitterCrop((16, 16), (1.5, 1.5))(sample, np.random.default_rng(0))
    assert out.size == (16, 16)
    out = T.JitterCrop((400, 400), (0.5, 0.5))(sample, np.random.default_rng(0))
    assert out.size == (133, 200)


def test_photometric_changes_colours_and_no_ids(sample):
    out = T.Photometric(0.4, 0.1)(sample, np.random.default_rng(0))
    assert out.image.dtype == np.uint8
    assert not np.array_equal(out.image, sample.image)
    assert out.segment_map is sample.segment_map


def test_targets_of_a_hand_made_map():
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 0], [3, 1, 1, 1]])
    target = make_target(sample_of(ids), num_stuff=3, seed=5)
    assert target.boxes.tolist() == [[2, 0, 4, 2], [0, 2, 1, 3]]
    assert target.labels.tolist() == [1, 2]
    assert target.instance_map.tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [2, 0, 0, 0]]
    assert target.semantic_map.tolist() == [[0, 0, 3, 3], [0, 0, 3, IGNORE_LABEL], [4, 0, 0, 0]]
    assert semantic_truth(sample_of(ids)).tolist() == target.semantic_map.tolist()


def test_a_thing_that_augmentation_cut_away_is_gone():
    sample = Shapes(1)[0]
    whole = make_target(sample, 3, 0)
    corner = Sample(
        sample.image[:40, :40], sample.segment_map[:40, :40], sample.classes, sample.is_crowd, sample.image_id, "x"
    )
    part = make_target(corner, 3, 0)
    assert len(part.labels) < len(whole.labels)
    assert int(part.instance_map.max()) == len(part.labels)


@pytest.mark.parametrize(("size", "scale"), [((30, 47), 40 / 30), ((21, 80), 66 / 80), ((33, 20), 40 / 20)])
def test_exact_resizing_follows_one_scale(size, scale):
    """The formula pixel by pixel, for a short side of 40 and a long one of 66 at most."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = T.resize_exactly(image, 40, 66)
    assert T.exact_scale(size, 40, 66) == scale
    assert found.dtype == np.float32
    assert found.shape[:2] == (round(size[0] * scale), round(size[1] * scale))
    weights = []
    for new, old in zip(found.shape, size, strict=False):
        position = np.clip((np.arange(new) + 0.5) / scale - 0.5, 0, old - 1)
        weights.append(np.clip(1 - np.abs(position[:, None] - np.arange(old)), 0, None))
    expected = np.einsum("yh,xw,hwc->yxc", *weights, image)
    np.testing.assert_allclose(found, expected, atol=1e-3)
