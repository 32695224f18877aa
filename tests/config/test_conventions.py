"""`model.conventions`: presets, what may be given beside them, and that a dumped config means the same."""

import pytest

from tests.conftest import TINY
from upsnet.config import load_config, parse_config
from upsnet.config.conventions import PRESETS


def model_of(*overrides):
    return parse_config(TINY, overrides, source="test").model


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_what_is_not_given(name):
    plain, filled = (load_config("coco_r50", options).model for options in ([], [f"model.conventions={name}"]))
    changed = {key for key, value in filled.model_dump().items() if value != plain.model_dump()[key]}
    assert changed == {"conventions", *PRESETS[name]}
    for key, value in PRESETS[name].items():
        found = filled.model_dump()[key]
        assert {k: found[k] for k in value} == value if isinstance(value, dict) else found == value


def test_what_is_given_stays():
    found = model_of("model.conventions=upsnet_official", "model.roi_align=aligned", "model.pixel_std=[2, 2, 2]")
    assert found.roi_align == "aligned"
    assert found.pixel_std == (2, 2, 2)
    assert found.min_box == 1
    assert found.backbone.stride_in_1x1
    assert found.backbone.width == TINY["model"]["backbone"]["width"]


def test_a_dumped_config_means_the_same():
    config = load_config("upsnet_official_r50_coco")
    assert parse_config(config.dump(), source="test") == config


def test_an_unknown_convention_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"model.conventions.*'upsnet_official', 'torchvision_maskrcnn' or 'detectron2'"
    ):
        model_of("model.conventions=mmdetection")


def test_torchvision_rounds_its_anchors():
    """Its rule: round half of the width and half of the height to even."""
    shapes = model_of("model.conventions=torchvision_maskrcnn").rpn.shapes()
    exact = load_config("coco_r50").model.rpn.shapes()
    rounded = [[(2 * round(width / 2), 2 * round(height / 2)) for width, height in row] for row in exact]
    assert [[tuple(map(float, shape)) for shape in row] for row in shapes] == rounded
