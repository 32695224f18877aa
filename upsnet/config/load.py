"""Finds, reads and validates configs.

config = load_config("shapes_r18", ["train.iterations=100"])
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upsnet.config.errors import explain
from upsnet.config.migrate import migrate_config
from upsnet.config.run import Config
from upsnet.text import parse_yaml, shown

PACKAGE = Path(__file__).parents[1]
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""Where the configs of this project are: in an installed package, or beside the package in a checkout."""

logger = logging.getLogger(__name__)

_MOVED = object()
"""In the place of the value of a key that a migration has moved."""


def list_configs() -> dict[str, Path]:
    """Lists the configs of this project: name -> path."""
    for folder in CONFIG_FOLDERS:
        if paths := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in paths}
    return {}


def find_config(config: str | Path) -> Path:
    """Finds the file of a config.

    Args:
        config: path of a YAML file, or the name of a config of this project (`shapes_r18`).

    Raises:
        FileNotFoundError: neither exists. The message lists similar names.
    """
    path = Path(config)
    if path.exists() and not path.is_dir():  # a named pipe is allowed
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
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML ({error}), expected UTF-8") from None
    values = parse_yaml(text, source=str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected keys {', '.join(Config.model_fields)}")
    return parse_config(values, overrides, source=str(path))


def parse_config(
    values: dict[str, Any], overrides: Sequence[str] = (), *, source: str, file_format: int | None = None
) -> Config:
    """Builds a `Config` from nested dictionaries: applies the overrides, migrates old keys, and validates.

    Args:
        values: nested dictionaries, as YAML gives them.
        overrides: as in `load_config`.
        source: the file to name in errors.
        file_format: format number of the file that holds the config. None: a person wrote the values, so old keys of
            any format are migrated, with a warning.

    Raises:
        ValueError: as `load_config`.
    """
    try:
        values, changes = migrate_config(values, file_format or 1)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    changes = [] if file_format is not None else changes
    for override in overrides:
        values, more = merge_override(values, override)
        changes += more
    for change in dict.fromkeys(changes):
        logger.warning("warning: %s: %s; use the new key in the file or in the override", source, change)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, Config)}{_remedy(error, file_format)}") from None


def merge_override(values: dict[str, Any], override: str) -> tuple[dict[str, Any], list[str]]:
    """Applies one `key=value` to nested dictionaries; the key may be of an older format.

    Returns:
        The merged values, and one line for each key that was migrated.

    Raises:
        ValueError: the text has another form, or the value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"override {shown(override)}: expected key=value, for example train.iterations=100")
    value = parse_yaml(text, source=f"override {shown(override)}")
    keys = key.strip().split(".")
    alone, changes = migrate_config(_with({}, keys, value), 1)
    inner: Any = alone
    for name in keys:
        inner = inner.get(name, _MOVED) if isinstance(inner, dict) else _MOVED
    # If the key has not moved, its value replaces the old value. If a migration moved it, the result is merged.
    return (_merged(values, alone) if inner is _MOVED else _with(values, keys, inner)), changes


def _merged(values: Any, more: Any) -> Any:
    """Merges nested dictionaries; a value of `more` replaces the value of `values`."""
    if not isinstance(values, dict) or not isinstance(more, dict):
        return more
    return {**values, **{key: _merged(values.get(key), value) for key, value in more.items()}}


def _remedy(error: ValidationError, file_format: int | None) -> str:
    """What to do if a file, and not a person, wrote an unknown key: a newer version may have added it."""
    if file_format is None or all(problem["type"] != "extra_forbidden" for problem in error.errors()):
        return ""
    return "; a newer upsnet may have written the file: pip install --upgrade upsnet"


def _with(values: Any, keys: list[str], value: Any) -> Any:
    """A copy of nested dictionaries with one value replaced."""
    if not keys:
        return value
    base = values if isinstance(values, dict) else {}
    return {**base, keys[0]: _with(base.get(keys[0]), keys[1:], value)}
