"""Steps that turn an older config into today's."""

import logging

import pytest
import yaml

from tests.conftest import TINY
from upsnet.config import load_config, migrate, parse_config
from upsnet.config.migrate import migrate_config, renamed, require_known_format


@pytest.fixture
def two_steps(monkeypatch):
    """Format 2 renamed a key; format 3 moved it into another section."""
    steps = (renamed("train.learning_rate", "train.base_lr"), renamed("train.base_lr", "optimizer.lr"))
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
    monkeypatch.setattr(migrate, "STEPS", (renamed("train.learning_rate", "train.lr"),))
    path = tmp_path / "old.yaml"
    train = {("learning_rate" if key == "lr" else key): value for key, value in TINY["train"].items()}
    path.write_text(yaml.safe_dump({**TINY, "train": train}))
    with caplog.at_level(logging.WARNING):
        assert load_config(path).train.lr == TINY["train"]["lr"]
    assert caplog.messages == [f"warning: {path}: key 'train.learning_rate' is now 'train.lr'; please change the file"]


def test_an_old_key_as_an_override_works(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (renamed("train.learning_rate", "train.lr"),))
    without = {**TINY, "train": {key: value for key, value in TINY["train"].items() if key != "lr"}}
    assert parse_config(without, ["train.learning_rate=0.5"], source="a.yaml").train.lr == 0.5


def test_both_names_of_a_key_are_an_error_that_names_them(monkeypatch):
    monkeypatch.setattr(migrate, "STEPS", (renamed("train.learning_rate", "train.lr"),))
    with pytest.raises(
        ValueError, match=r"^a\.yaml: key 'train\.learning_rate' is the old name of 'train\.lr', and both"
    ):
        parse_config(TINY, ["train.learning_rate=0.5"], source="a.yaml")


@pytest.mark.parametrize("number", [0, -1, 2, "1", None, 1.5])
def test_unknown_formats_are_refused(number):
    with pytest.raises(ValueError, match=r"^model\.pt: has format .*, expected 1 to 1; a newer upsnet wrote it"):
        require_known_format(number, source="model.pt")
