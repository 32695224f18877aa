"""Configs, checkpoints and exported files from strangers: a result, or one line that names the file."""

import io
import json
import lzma
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import strategies as st

from tests.conftest import TINY
from tests.fuzz.harness import fuzz, limited_memory
from tests.fuzz.strategies import ODD_VALUES, changed, damaged
from upsnet.config import load_config
from upsnet.export.archive import is_plain_expression
from upsnet.export.exported_model import load_graph
from upsnet.models.checkpoint import load_checkpoint
from upsnet.text import parse_yaml

FORMAT1 = Path(__file__).parents[1] / "files" / "format1"
YAML = yaml.safe_dump(TINY)
TEXTS = st.sampled_from([
    "!!bool x", "!!timestamp x", "!!int x", "!!python/object/apply:os.system [ls]", "&a [*a]", "2001-99-99", "0x", "- - -",
    "{a: &x [1, 1], b: [*x, *x]}", "[" * 3000, "{" * 3000, "\x00", "\ud800", "1" * 5000, ".inf", ".nan", "1e400", "---\n---", "%",
    "? ", "'", '"', "{1: 2}", "[[1]: 2]", "=", "<<: 1", "@",
])  # fmt: skip


def refused(read, path, *, name=None):
    """The result, or None where it was refused in one line that names the file."""
    try:
        with limited_memory():
            return read(path)
    except (OSError, ValueError) as error:
        text = str(error)
        assert (str(path) if name is None else name) in text, text
        assert "\n" not in text, text
        assert "MemoryError" not in text, text
        assert len(text) < 2000, text
        return None


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(content) -> Path:
    path = Path(tempfile.mkdtemp()) / "file.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def remove(path):
    path.unlink()
    path.parent.rmdir()


@fuzz(damaged(YAML.encode()) | TEXTS.map(lambda text: f"seed: {text}\n".encode("utf-8", "surrogatepass")), examples=150)
def test_damaged_yaml(content):
    path = write(content)
    refused(load_config, path)
    remove(path)


@fuzz(changed(TINY), examples=40)
def test_odd_values_in_configs(document):
    text = yaml.safe_dump(document, allow_unicode=True).replace("'@deep@'", "[" * 3000 + "]" * 3000)
    path = write(text)
    config = refused(load_config, path)
    remove(path)
    if config is not None:
        assert load_config_again(config) == config


def load_config_again(config):
    path = write(yaml.safe_dump(config.dump()))
    found = load_config(path)
    remove(path)
    return found


KEYS = st.sampled_from([
    "seed", "train.lr", "train.batch_size", "model.backbone.width", "model.rpn.aspect_ratios", "model.rpn.anchor_sizes",
    "data.augment.crop_size", "data.test_short_side", "data.train", "model", "a.b.c", "", ".", "model..x", "data.categories",
])  # fmt: skip


@fuzz(KEYS, TEXTS | ODD_VALUES.map(lambda value: repr(value)[:200]), examples=150)
def test_odd_overrides(key, text):
    path = write(YAML)
    override = f"{key}={text}"
    try:
        with limited_memory():
            load_config(path, [override])
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000
    remove(path)


def test_aliases_of_aliases_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with limited_memory(), pytest.raises(ValueError, match="more than 100000 values"):
        parse_yaml("\n".join(lines), source="file")


CHECKPOINT = lzma.decompress((FORMAT1 / "model.pt.xz").read_bytes())


@fuzz(damaged(CHECKPOINT), examples=25)
def test_damaged_checkpoints(content):
    path = write(content)
    refused(load_checkpoint, path)
    remove(path)


VALUES = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)
DESCRIPTION = {key: value for key, value in VALUES.items() if key != "weights"}


@fuzz(changed(DESCRIPTION), examples=40)
def test_odd_values_in_checkpoints(document):
    if not isinstance(document, dict):
        return
    memory = io.BytesIO()
    try:
        torch.save({**document, "weights": VALUES["weights"]}, memory)
    except (RecursionError, RuntimeError):
        return
    path = write(memory.getvalue())
    found = refused(load_checkpoint, path)
    if found is not None:
        refused(lambda _: found.build(), path, name="")
    remove(path)


@fuzz(st.sampled_from(sorted(VALUES["weights"])), st.sampled_from([float("nan"), float("inf")]), examples=10)
def test_weights_that_are_not_finite_are_named(name, value):
    weights = dict(VALUES["weights"])
    if not weights[name].is_floating_point():
        return
    weights[name] = torch.full_like(weights[name], value)
    memory = io.BytesIO()
    torch.save({**VALUES, "weights": weights}, memory)
    path = write(memory.getvalue())
    with pytest.raises(ValueError, match=rf"{path.name}: weight {name} has \d+ values that are not finite"):
        load_checkpoint(path)
    remove(path)


@fuzz(st.sampled_from(["model.pt2", "model.onnx"]).flatmap(
    lambda name: st.tuples(st.just(name), damaged(lzma.decompress((FORMAT1 / f"{name}.xz").read_bytes())))
), examples=8)  # fmt: skip
def test_damaged_exported_files(case):
    name, content = case
    path = write(content)
    path = path.rename(path.with_name(name))
    refused(lambda p: load_graph(p, "cpu"), path)
    remove(path)


@pytest.mark.parametrize("text", [
    "s0", "Mul(Integer(16), Symbol('s38', positive=True, integer=True))", "Max(1, s0 // 2) + 3 * u1", "FloorDiv(s0, 4)", "oo",
])  # fmt: skip
def test_arithmetic_is_plain(text):
    assert is_plain_expression(text)


@pytest.mark.parametrize("text", [
    "__import__('os').system('x')", "s0.__class__", "(lambda: 0)()", "[x for x in s0]", "Symbol('a; import os')", "open(s0)",
    "'text'", "Symbol(s0, commutative=exit())", "exec(chr(1))", "Max(1)(2)", "s0 if s1 else s2", "f'{s0}'", "x" * 10, "(" * 500,
])  # fmt: skip
def test_code_is_not(text):
    assert not is_plain_expression(text)


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path):
    from upsnet.io.files import read_json

    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: not valid JSON \(nested too deeply\)"):
        read_json(path)
    path.write_text(json.dumps({"a": 10**1000}))
    assert read_json(path)
