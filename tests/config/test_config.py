import pytest
import yaml

from tests.conftest import ROOT, TINY
from upsnet.config import load_config, parse_config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_file_loads_and_survives_a_round_trip(path):
    config = load_config(path)
    assert parse_config(config.dump(), source="dump") == config
    assert path.read_text().startswith("#"), "a config opens with its command, hardware, time and score"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.backbone.widht=3", ["model.backbone.widht", "width"]),
        ("model.backbone.width=8", ["model.backbone.width", "multiple of 16"]),
        ("modle.x=1", ["modle", "model"]),
        ("train.lr=-1", ["train.lr", "-1", "greater than 0"]),
        ("model.heads=all", ["model.heads", "'both', 'semantic' or 'instance'"]),
        ("data.train.num_imgs=3", ["data.train.num_imgs", "num_images"]),
        ("data.val.format=voc", ["data.val", "'coco', 'shapes'"]),
        ("train.iterations=soon", ["train.iterations", "soon", "integer"]),
        ("model.rpn.anchor_sizes=[[1], [2, 3]]", ["model.rpn", "equal length"]),
        ("seed", ["key=value"]),
        ("train.steps=[1,2", ["train.steps", "not valid YAML"]),
        ("train.steps=[5, 2]", ["train", "must increase"]),
        ("data.coco=3", ["data.coco"]),
        ("data.categories=[{id: 1, nam: x, isthing: 0}]", ["data.categories.0.name", "missing"]),
        ("data.categories=cocoo", ["data.categories", "'coco' or 'cityscapes'"]),
        ("data.size_divisor=2", ["data.size_divisor"]),
        ("model.backbone.width=1600000", ["model.backbone.width", "1600000", "less than or equal to 512"]),
        ("data.augment.crop_size=[1000000, 64]", ["data.augment.crop_size", "less than or equal to 65536"]),
        ("data.value_range=[5, 5]", ["data.value_range", "low < high"]),
        ("data.value_range=[0, .inf]", ["data.value_range", "finite number"]),
        ("data.value_range=[0, 1, 2]", ["data.value_range", "at most 2"]),
        ("model.rpn.aspect_ratios=[]", ["model.rpn.aspect_ratios", "at least 1"]),
        ("model.rpn.anchor_sizes=[[], []]", ["model.rpn.anchor_sizes", "at least 1"]),
        ("train.batch_size=1000000000", ["train.batch_size", "less than or equal to 8192"]),
        ("train.lr=.nan", ["train.lr", "nan", "finite number"]),
        ("train.lr=.inf", ["train.lr", "inf", "finite number"]),
        ("model.loss.mask=1e300", ["model.loss.mask", "1e300"]),
        ("seed=18446744073709551616", ["seed", "18446744073709551616"]),
        (f"model.backbone.name={'x' * 5000}", ["model.backbone.name", " ... "]),
        (f"{'x' * 5000}=1", ["unknown key", " ... "]),
        (f"data.train.format={'x' * 5000}", ["data.train", " ... ", "'shapes'"]),
        ("'data[1]'=1", ["unknown key", "data[1]"]),
        ("data.train.'[x'=1", ["unknown key", "data.train", "[x"]),
        ("seed=!!bool x", ["seed=!!bool x", "not valid YAML"]),
        ("seed=" + "[" * 3000, ["seed=[", "nested too deeply"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_the_remedy(override, parts):
    with pytest.raises(ValueError, match=r"^(a\.yaml: |override )") as error:
        parse_config(TINY, [override], source="a.yaml")
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert all(part in text for part in parts), text


def test_a_model_that_nothing_can_judge_is_refused():
    for setting in ("false", "last"):
        with pytest.raises(ValueError, match=r"a.yaml: model.heads=instance .* evaluate.instance=true"):
            parse_config(TINY, ["model.heads=instance", f"evaluate.instance={setting}"], source="a.yaml")


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"a.yaml: key 'train.iterations' is missing"):
        parse_config({**TINY, "train": {}}, source="a.yaml")


def test_overrides_change_nested_values_and_nothing_else(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(TINY))
    config = load_config(path, ["model.backbone.width=16", "data.augment.short_sides=[32, 64]"])
    assert config.model.backbone.width == 16
    assert config.data.augment.short_sides == (32, 64)
    assert config.model.backbone.name == "resnet18"


@pytest.mark.parametrize("text", ["a: [", "- 1", "model: 3"])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_config(path)
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
