"""Finding, reading and checking configs.

config = load_config("shapes_r18", ["train.iterations=100"])
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from upsnet.config.errors import explain
from upsnet.config.migrate import migrate_config
from upsnet.config.run import Config

PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""Where the configs of this project are: in an installed package, or beside the package in a checkout."""

logger = logging.getLogger(__name__)


def list_configs() -> dict[str, Path]:
    """The configs that come with this project: name -> path."""
    for folder in CONFIG_FOLDERS:
        if paths := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in paths}
    return {}


def find_config(config: str | Path) -> Path:
    """The path of a config.

    Args:
        config: path of a YAML file, or the name of one that comes with this project (`shapes_r18`).

    Raises:
        FileNotFoundError: neither exists. The message lists similar names.
    """
    path = Path(config)
    if path.is_file():
        return path
    shipped = list_configs()
    if str(config) in shipped:
        return shipped[str(config)]
    near = difflib.get_close_matches(path.stem, shipped, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else f"expected a path, or one of {', '.join(shipped)}"
    raise FileNotFoundError(f"{config}: no such config file; {remedy}")


def load_config(config: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies overrides.

    Args:
        config: path or name, as `find_config` takes it.
        overrides: `key=value`, values in YAML, for example `model.backbone.width=32`.

    Raises:
        FileNotFoundError, ValueError: one line that names the file, the key, the allowed values, and the value found.
    """
    path = find_config(config)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected keys {', '.join(Config.model_fields)}")
    return parse_config(values, overrides, source=str(path))


def parse_config(
    values: dict[str, Any], overrides: Sequence[str] = (), *, source: str, file_format: int | None = None
) -> Config:
    """Validates plain values.

    Args:
        values: nested dictionaries, as YAML gives them.
        overrides: as in `load_config`.
        source: the file to name in errors.
        file_format: format number of the file that holds the config. None: the values were written by hand, so keys of
            any older format are renamed, with a warning.

    Raises:
        ValueError: as `load_config`.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected key=value, for example train.iterations=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"override {override!r}: the value is not valid YAML") from None
        values = _with(values, key.strip().split("."), value)
    try:
        values, changes = migrate_config(values, file_format or 1)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if file_format is None:
        for change in changes:
            logger.warning("warning: %s: %s; please change the file", source, change)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, Config)}") from None


def _with(values: Any, keys: list[str], value: Any) -> Any:
    """A copy of nested dictionaries with one value replaced."""
    if not keys:
        return value
    base = values if isinstance(values, dict) else {}
    return {**base, keys[0]: _with(base.get(keys[0]), keys[1:], value)}
