"""Steps that turn an older config into today's."""

import logging

import pytest
import yaml

from tests.conftest import TINY
from upsnet.config import load, load_config, migrate, parse_config
from upsnet.config.migrate import migrate_config, rename_key, require_known_format


@pytest.fixture
def two_steps(monkeypatch):
    """Format 2 renamed a key; format 3 moved it into another section."""
    steps = (rename_key("train.learning_rate", "train.base_lr"), rename_key("train.base_lr", "optimizer.lr"))
    monkeypatch.setattr(migrate, "STEPS", steps)


def test_steps_apply_in_order_and_leave_the_input_alone(two_steps):
    values = {"train": {"learning_rate": 1, "iterations": 5}}
    found, changes = migrate_config(values, 1)
    assert found == {"train": {"iterations": 5}, "optimizer": {"lr": 1}}
    assert changes == ["key 'train.learning_rate' is now 'train.base_lr'", "key 'train.base_lr' is now 'optimizer.lr'"]
    assert values == {"train": {"learning_rate": 1, "iterations": 5}}


def test_only_the_steps_since_a_files_format_apply(two_steps):
    assert migrate_config({"train": {"learning_rate": 1}}, 2)[0] == {"train": {"learning_rate": 1}}
    assert migrate_config({"train": {"base_lr": 1}}, 2)[0] == {"train": {}, "optimizer": {"lr": 1}}
    assert migrate_config({"train": {"base_lr": 1}}, 3) == ({"train": {"base_lr": 1}}, [])


@pytest.mark.parametrize("values", [{}, {"train": None}, {"train": 3}, {"train": {"lr": 1}}, {"optimizer": 2}])
def test_steps_do_nothing_to_configs_that_they_do_not_concern(two_steps, values):
    assert migrate_config(values, 1) == (values, [])


def test_an_old_key_in_a_yaml_file_works_with_a_warning(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"),))
    path = tmp_path / "old.yaml"
    train = {("learning_rate" if key == "lr" else key): value for key, value in TINY["train"].items()}
    path.write_text(yaml.safe_dump({**TINY, "train": train}))
    with caplog.at_level(logging.WARNING):
        assert load_config(path).train.lr == TINY["train"]["lr"]
    assert caplog.messages == [
        f"warning: {path}: key 'train.learning_rate' is now 'train.lr'; use the new key in the file or in the override"
    ]


def test_an_old_key_as_an_override_works(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"),))
    without = {**TINY, "train": {key: value for key, value in TINY["train"].items() if key != "lr"}}
    assert parse_config(without, ["train.learning_rate=0.5"], source="a.yaml").train.lr == 0.5


def test_both_names_of_a_key_in_a_file_are_an_error_that_names_them(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"),))
    both = {**TINY, "train": {**TINY["train"], "learning_rate": 0.5}}
    with pytest.raises(
        ValueError, match=r"^a\.yaml: key 'train\.learning_rate' is the old name of 'train\.lr', and both"
    ):
        parse_config(both, source="a.yaml")


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.5, "x" * 1000])
def test_what_is_no_format_number_is_refused(number):
    with pytest.raises(ValueError, match=r"^model\.pt: has format .{1,50}, expected a whole number"):
        require_known_format(number, source="model.pt")


def test_a_newer_format_is_refused_with_the_remedy():
    newest = migrate.current_format()
    require_known_format(newest, source="model.pt")
    with pytest.raises(ValueError, match=rf"expected 1 to {newest}; a newer upsnet wrote it: pip install --upgrade"):
        require_known_format(newest + 1, source="model.pt")


def test_an_override_beats_the_file_whichever_of_them_has_the_old_key(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"),))
    old = {("learning_rate" if key == "lr" else key): value for key, value in TINY["train"].items()}
    for train in (old, TINY["train"]):
        for override in ("train.learning_rate=0.5", "train.lr=0.5"):
            config = parse_config({**TINY, "train": train}, [override], source="a.yaml")
            assert config.train.lr == 0.5
            assert config.train.iterations == TINY["train"]["iterations"]


def test_an_override_may_replace_a_section_with_old_keys(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"),))
    config = parse_config(TINY, ["train={iterations: 3, warmup_iterations: 0, learning_rate: 0.5}"], source="a.yaml")
    assert config.train.lr == 0.5
    assert config.train.batch_size == 16, "the other keys have their defaults again"


def test_an_override_with_a_moved_key_keeps_the_rest_of_both_sections(two_steps):
    values = load.merge_override({"train": {"iterations": 5}, "optimizer": {"name": "sgd"}}, "train.learning_rate=2")[0]
    assert values == {"train": {"iterations": 5}, "optimizer": {"name": "sgd", "lr": 2}}


def test_an_unknown_key_in_a_file_may_mean_that_the_file_is_newer():
    with pytest.raises(ValueError, match=r"unknown key 'model\.colour'.*a newer upsnet may have written the file"):
        parse_config({**TINY, "model": {"colour": 1}}, source="model.pt", file_format=migrate.current_format())


def test_losses_of_format_1_are_found_in_the_model(caplog):
    """Format 2 moved the section `loss` into `model`, where each architecture has its own."""
    old = {**TINY, "loss": {"panoptic": 0.5, "class": 2.0}}
    with caplog.at_level(logging.WARNING):
        config = parse_config(old, ["loss.semantic=0.25", "model.fpn_channels=32"], source="a.yaml")
    weights = config.model.loss.weights()
    assert (weights["loss_panoptic"], weights["loss_class"], weights["loss_semantic"]) == (0.5, 2.0, 0.25)
    assert config.model.fpn_channels == 32
    assert config.model.backbone.width == TINY["model"]["backbone"]["width"]
    assert caplog.messages == [
        "warning: a.yaml: key 'loss' is now 'model.loss'; use the new key in the file or in the override"
    ]
    assert parse_config(old, source="model.pt", file_format=1).model.loss.panoptic == 0.5
    with pytest.raises(ValueError, match="unknown key 'loss'"):
        parse_config(old, source="model.pt", file_format=2)
