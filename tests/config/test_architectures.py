"""The `model` section is that of the architecture that it names; without a name it is UPSNet's."""

import pytest
import yaml

from tests.conftest import TINY
from tests.models.panoptic_deeplab.deeplab import MODEL
from upsnet.config import PanopticDeepLabConfig, UPSNetConfig, load_config, parse_config

DEEPLAB = {**TINY, "model": MODEL}
MINIMAL = {**TINY, "model": {"architecture": "panoptic_deeplab"}}


def test_the_architecture_is_upsnet_unless_it_is_named(tmp_path):
    for values in (TINY, {key: value for key, value in TINY.items() if key != "model"}):
        assert isinstance(parse_config(values, source="a").model, UPSNetConfig)
    path = tmp_path / "deeplab.yaml"
    path.write_text(yaml.safe_dump(DEEPLAB))
    config = load_config(path, ["model.aspp.rates=[2]", "model.loss.center=3"])
    assert isinstance(config.model, PanopticDeepLabConfig)
    assert config.model.aspp.rates == (2,)
    assert config.model.loss.weights() == {"loss_semantic": 1, "loss_center": 3, "loss_offset": 0.01}
    assert parse_config(config.dump(), source="dump") == config


def test_each_architecture_has_its_own_defaults():
    ours, upsnet = (parse_config(values, source="a").model for values in (MINIMAL, {**TINY, "model": {}}))
    assert (ours.backbone.norm, ours.backbone.freeze_at, ours.backbone.output_stride) == ("bn", 0, 16)
    assert (upsnet.backbone.norm, upsnet.backbone.freeze_at, upsnet.backbone.output_stride) == ("frozen_bn", 2, 32)
    assert parse_config(MINIMAL, ["model.backbone.width=32"], source="a").model.backbone.norm == "bn"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.architecture=deeplab", ["'model'", "'deeplab'", "'upsnet', 'panoptic_deeplab'"]),
        ("model.fpn_channels=64", ["unknown key 'model.fpn_channels'", "expected one of architecture, backbone"]),
        ("model.panoptic.nms_kernal=3", ["unknown key 'model.panoptic.nms_kernal'", "nms_kernel"]),
        ("model.panoptic.nms_kernel=4", ["'model.panoptic.nms_kernel' is 4", "odd"]),
        ("model.backbone.output_stride=4", ["'model.backbone.output_stride' is 4", "8, 16 or 32"]),
        ("model.semantic.low_level_channels=[8, 8, 8, 8]", ["'model.semantic.low_level_channels'", "at most 3"]),
        ("model.loss.hard_pixels=0", ["'model.loss.hard_pixels' is 0", "greater than 0"]),
        ("model.target.sigma=0", ["'model.target.sigma' is 0"]),
        ("model.aspp.dropout=1", ["'model.aspp.dropout' is 1", "less than 1"]),
        ("model.panoptic_deeplab=3", ["unknown key 'model.panoptic_deeplab'"]),
        ("model=3", ["'model' is 3", "dictionary"]),
    ],
)
def test_a_mistake_is_one_line_with_the_key_as_it_was_written(override, parts):
    with pytest.raises(ValueError, match=r"^a\.yaml: ") as error:
        parse_config(DEEPLAB, [override], source="a.yaml")
    text = str(error.value)
    assert "\n" not in text
    assert all(part in text for part in parts), text


def test_keys_of_the_other_architecture_are_unknown():
    with pytest.raises(ValueError, match=r"^a: unknown key 'model\.") as error:
        parse_config(TINY, ["model.architecture=panoptic_deeplab"], source="a")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"backbone.output_stride=16: the pyramid of UPSNet needs 32"):
        parse_config(TINY, ["model.backbone.output_stride=16"], source="a")
