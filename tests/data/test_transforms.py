from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as tv

from upsnet.categories import IGNORE_LABEL
from upsnet.data import transforms as T
from upsnet.data.loader import InferenceInput
from upsnet.data.shapes import Shapes
from upsnet.data.targets import make_target, semantic_truth
from upsnet.inference.predictor import PanopticPredictor
from upsnet.io.images import read_image
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


def augmented(sample, *steps, seed=0):
    rng = np.random.default_rng(seed)
    augmentation = T.Augmentation(steps)
    return augmentation.apply(augmentation.plan(sample.size, rng), sample, rng)


def test_ids_are_looked_up_at_pixel_centres():
    sample = sample_of(np.arange(1, 5)[None])
    for size, expected in (((1, 2), [[2, 4]]), ((1, 8), [[1, 1, 2, 2, 3, 3, 4, 4]]), ((3, 4), [[1, 2, 3, 4]] * 3)):
        assert T.Geometry.whole((1, 4), size).apply(sample).segment_map.tolist() == expected


@pytest.mark.parametrize(
    "step", [T.ResizeShortSide([30, 80], 100), T.JitterCrop((32, 48), (0.5, 2.0)), T.horizontal_flip, T.dihedral_flip]
)
def test_image_and_ids_move_together(sample, step):
    for seed in range(8):
        out = augmented(sample, step, seed=seed)
        assert out.image.shape[:2] == out.segment_map.shape
        assert set(np.unique(out.segment_map)) <= {0, 1, 2, 3}
        assert agreement(out) > 0.75
        np.testing.assert_array_equal(out.image, augmented(sample, step, seed=seed).image)


def test_dihedral_flip_reaches_all_eight_symmetries(sample):
    found = {augmented(sample, T.dihedral_flip, seed=s).segment_map.tobytes() for s in range(64)}
    assert len(found) == 8


def natural(size, seed=0):
    """A smooth picture, with a segment map of blocks."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8 + 2, size[1] // 8 + 2, 3), dtype=np.uint8)
    image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    ids = np.kron(rng.integers(0, 4, (size[0] // 16 + 1, size[1] // 16 + 1)), np.ones((16, 16)))
    return replace(sample_of(ids[: size[0], : size[1]]), image=image)


def step_by_step(geometry, sample):
    """What a geometry means: everything is resized, then cut, mirrored and transposed."""
    (height, width), (new_height, new_width) = geometry.source, geometry.scaled
    image = T.resample(sample.image, geometry.source, geometry.scaled)
    rows = ((np.arange(new_height) + 0.5) * height / new_height).astype(int)
    columns = ((np.arange(new_width) + 0.5) * width / new_width).astype(int)
    ids = sample.segment_map[rows[:, None], columns]
    window = tuple(slice(start, start + length) for start, length in zip(geometry.corner, geometry.window, strict=True))
    image, ids = image[window], ids[window]
    if geometry.flip_x:
        image, ids = image[:, ::-1], ids[:, ::-1]
    if geometry.flip_y:
        image, ids = image[::-1], ids[::-1]
    return (image.swapaxes(0, 1), ids.T) if geometry.transpose else (image, ids)


@pytest.mark.parametrize("size", [(90, 131), (128, 160)])
def test_planned_pixels_are_those_of_the_steps_one_by_one(size):
    """Ids to the bit; colours to two levels, because rows and columns of a window are rounded on another grid."""
    sample = natural(size)
    plan = T.Augmentation([T.JitterCrop((40, 56), (0.8, 6.0)), T.dihedral_flip]).plan
    warped = 0
    for seed in range(20):
        geometry = plan(size, np.random.default_rng(seed))
        out = geometry.apply(sample)
        image, ids = step_by_step(geometry, sample)
        np.testing.assert_array_equal(out.segment_map, ids)
        assert np.abs(out.image.astype(int) - image).max() <= 2
        warped += geometry.scaled[0] * geometry.scaled[1] > T.WARP_COST * geometry.window[0] * geometry.window[1]
    assert 3 < warped < 17, "both routines were met"
    whole = T.Geometry.whole(size, (100, 140))
    np.testing.assert_array_equal(whole.apply(sample).image, T.resample(sample.image, sample.size, (100, 140)))


@pytest.mark.parametrize("size", [(90, 131), (128, 160)])
def test_a_window_at_the_border_is_that_of_the_whole_picture(size):
    sample, scaled, window = natural(size), (size[0] * 5, size[1] * 5), (40, 56)
    for corner in ((0, 0), (scaled[0] - 40, 0), (0, scaled[1] - 56), (scaled[0] - 40, scaled[1] - 56)):
        geometry = T.Geometry(size, scaled, corner, window)
        out, (image, ids) = geometry.apply(sample), step_by_step(geometry, sample)
        np.testing.assert_array_equal(out.segment_map, ids)
        assert np.abs(out.image.astype(int) - image).max() <= 1


@pytest.mark.parametrize("size", [(512, 768), (503, 755)])
@pytest.mark.parametrize("factor", [2, 4])
def test_an_image_read_smaller_gives_the_pixels_of_the_whole_one(size, factor):
    """The reference is the filter over the whole image: the same place, colours three levels apart."""
    sample = natural(size)
    geometry = T.Geometry(size, (size[0] * 2 // (3 * factor), size[1] * 2 // (3 * factor)), (5, 9), (50, 70))
    assert geometry.reduction == factor
    padded = cv2.copyMakeBorder(sample.image, 0, -size[0] % factor, 0, -size[1] % factor, cv2.BORDER_REPLICATE)
    blocks = padded.reshape(padded.shape[0] // factor, factor, -1, factor, 3).astype(float).mean((1, 3))
    reduced = geometry.apply(replace(sample, image=blocks.round().astype(np.uint8)))
    whole = geometry.apply(sample)
    np.testing.assert_array_equal(reduced.segment_map, whole.segment_map)
    assert np.abs(reduced.image.astype(int) - whole.image).max() <= 1
    filtered = np.asarray(Image.fromarray(sample.image).resize(geometry.scaled[::-1], Image.Resampling.BILINEAR))
    expected = filtered[5:55, 9:79]
    assert np.abs(whole.image.astype(int) - expected).mean() < 3
    shift, response = cv2.phaseCorrelate(expected.mean(2).astype(np.float32), whole.image.mean(2).astype(np.float32))
    assert response > 0.5
    assert np.abs(shift).max() < 0.1


def test_fine_texture_does_not_become_a_pattern():
    """Stripes of one pixel are grey when they shrink; linear interpolation alone shows waves of full contrast."""
    stripes = np.zeros((900, 1200, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for scaled in ((600, 800), (413, 551), (300, 400), (77, 103)):
        found = T.resample(stripes, (900, 1200), scaled)[:, 2:-2]
        assert np.abs(found.astype(int) - 127).max() <= (45 if scaled[0] == 600 else 25)


def test_training_and_prediction_see_the_same_pixels_of_a_large_jpeg(tmp_path, make_config):
    """A JPEG of 4000 x 3000 with stripes of full contrast: from its file the two are equal to the bit. An array is
    reduced by OpenCV, not by the JPEG decoder: two levels apart here, a fifth of a level on natural images."""
    size, scaled = (3000, 4000), (800, 1067)
    image = natural(size).image
    image[::2] //= 2
    Image.fromarray(image).save(tmp_path / "large.jpg", quality=95)
    geometry = T.Geometry.whole(size, scaled)
    training = geometry.apply(
        replace(
            sample_of(np.zeros(size, int)),
            image=read_image(tmp_path / "large.jpg", apply_exif=False, reduction=geometry.reduction),
        )
    )
    config = make_config("data.test_short_side=800", "data.test_max_side=1333").data
    predictor = PanopticPredictor(nn.Identity(), None, InferenceInput(config))
    pixels, whole_size = predictor._pixels(tmp_path / "large.jpg")
    assert pixels.shape[:2] == (1500, 2000), "a large JPEG is read at a part of its size"
    batch = predictor.make_input([pixels], [whole_size])
    assert batch.original_sizes == [size]
    np.testing.assert_array_equal(batch.images[0, :, :800, :1067].permute(1, 2, 0).numpy(), training.image)
    array = predictor.make_input([read_image(tmp_path / "large.jpg", apply_exif=False)])
    difference = np.abs(array.images.int() - batch.images.int())
    assert difference.float().mean() < 2


def test_a_turned_jpeg_is_read_for_its_upright_size(tmp_path, make_config):
    """For a network of fixed size the reduction of 600 x 400 and of 400 x 600 differ."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(natural((600, 400)).image).save(tmp_path / "turned.jpg", exif=exif)
    config = make_config("data.test_short_side=80", "data.test_max_side=134").data
    predictor = PanopticPredictor(nn.Identity(), None, InferenceInput(config, network_size=(96, 192)))
    pixels, size = predictor._pixels(tmp_path / "turned.jpg")
    assert size == (400, 600)
    make_input = predictor.make_input
    assert make_input.reduction((400, 600)) != make_input.reduction((600, 400))
    assert make_input([pixels], [size]).original_sizes == [(400, 600)]


def test_a_reduction_leaves_half_as_many_pixels_again_as_are_wanted():
    for scaled, factor in (((100, 200), 1), ((34, 66), 1), ((33, 66), 2), ((16, 33), 4), ((8, 16), 8), ((1, 1), 8)):
        assert T.Geometry.whole((100, 200), scaled).reduction == factor


def test_a_sample_of_another_size_than_planned_is_refused(sample):
    with pytest.raises(ValueError, match=r"x: size \(40, 60\), expected \(40, 61\)"):
        T.Geometry.whole((40, 61)).apply(sample)
    with pytest.raises(ValueError, match=r"x: size \(30, 60\), expected \(40, 60\)"):
        T.Geometry.whole((40, 60)).apply(replace(sample, image=sample.image[:30]))


def test_short_side_respects_the_maximum():
    assert T.fit_size((480, 640), 800, 1333) == (800, 1067)
    assert T.fit_size((400, 1200), 800, 1333) == (444, 1333)
    assert T.fit_size((1, 5000), 800, 1333) == (1, 1333)


def test_crop_has_its_size_or_the_whole_image(sample):
    assert augmented(sample, T.JitterCrop((16, 16), (1.5, 1.5))).size == (16, 16)
    assert augmented(sample, T.JitterCrop((400, 400), (0.5, 0.5))).size == (133, 200)


def test_crops_reach_every_window():
    plan = T.Augmentation([T.JitterCrop((8, 8), (1.5, 1.5))]).plan
    corners = {plan((8, 8), np.random.default_rng(seed)).corner for seed in range(200)}
    assert corners == {(top, left) for top in range(5) for left in range(5)}


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high):
        return self.values.pop(0)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.1, 1.4])
def test_photometric_is_torchvisions_but_for_rounding(factor):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())
    for at, adjust in enumerate((tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)):
        factors = [1.0, 1.0, 1.0]
        factors[at] = factor
        found = T.Photometric(0.5, 0)(image, Fixed(*factors))
        expected = adjust(planes, factor).numpy().transpose(1, 2, 0)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert np.array_equal(found, image) == (factor == 1)
    hue = T.Photometric(0.5, 0.1)(image, Fixed(1.0, 1.0, 1.0, 0.08))
    np.testing.assert_array_equal(hue, tv.adjust_hue(planes, 0.08).numpy().transpose(1, 2, 0))


def test_colours_are_drawn_after_the_geometry(sample):
    augmentation = T.Augmentation([T.dihedral_flip], T.Photometric(0.4, 0.1))
    rng = np.random.default_rng(0)
    out = augmentation.apply(augmentation.plan(sample.size, rng), sample, rng)
    assert not np.array_equal(out.image, augmented(sample, T.dihedral_flip).image)
    np.testing.assert_array_equal(out.segment_map, augmented(sample, T.dihedral_flip).segment_map)


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
