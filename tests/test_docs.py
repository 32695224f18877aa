"""The commands of docs/ run in their order, in a folder that holds what a newcomer has: photographs and annotations."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.convert import forms
from upsnet.data.coco import CocoPanoptic

GUIDE = ROOT / "docs" / "custom_dataset.md"
QUICK = {
    "train": (
        "train.iterations=1",
        "train.warmup_iterations=0",
        "evaluate.panels=1",
        "evaluate.instance=false",
        "data.num_workers=0",
    ),
    "export": ("--no-verify",),
}  # fmt: skip
"""Added to these commands in the ordinary walk, for speed; the slow walk runs what is written."""


def blocks(kind):
    """The fenced blocks of the guide of one language; "" for what commands print."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language == kind]


@pytest.fixture(scope="module")
def photos(real_data, tmp_path_factory):
    """Eighteen photographs and `annotations.json`."""
    root, folder = real_data / "fruits_nuts", tmp_path_factory.mktemp("photos")
    samples = []
    for split in ("train", "val"):
        data = CocoPanoptic(root / split, root / "annotations" / f"panoptic_{split}.json")
        samples += [data[i] for i in range(len(data))]
        shutil.copytree(root / split, folder / "from", dirs_exist_ok=True)
    forms.write_coco(samples, data.categories, folder / "photos", forms.outlines, images=folder / "from")
    return folder / "photos"


@pytest.fixture
def newcomer(photos, tmp_path, monkeypatch):
    """A folder with `photos/`, as the guide describes it, and the configs of this repository."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.delenv("UPSNET_DATASETS")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def programs(block):
    """The `upsnet` commands of a block as words, without `upsnet`; None if the block is for the shell."""
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in commands] if all(words[0] == "upsnet" for words in commands) else None


def test_the_guide_from_photographs_to_a_model(newcomer, upsnet_command):
    printed = []
    for block in blocks("bash"):
        commands = programs(block)
        if commands is None:
            subprocess.run(["bash", "-euc", block], cwd=newcomer, check=True)
            continue
        for name, *args in commands:
            code, out, err = upsnet_command(name, *args, *QUICK.get(name, ()))
            assert code == 0, f"{name} {args}: {err}"
            printed.append(out)
    for shown in blocks(""):
        assert any(shown in out for out in printed), f"no command prints:\n{shown}"
    assert any("note: no instance of walnut\n" in out for out in printed)
    for name in (
        "datasets/fruits/classes.yaml", "runs/mine/comparison.jpg", "runs/mine/model.pt", "runs/mine/tensorboard",
        "predictions/6_overlay.jpg", "predictions/6.png", "predictions/6.json", "runs/mine/evaluation/report.html",
        "mine.onnx", "runs/more/model.pt",
    ):  # fmt: skip
        assert (newcomer / name).exists(), name
        assert name.rsplit("/")[-1] in GUIDE.read_text()


def test_the_numberings_of_the_guide_are_those_of_its_example(newcomer, upsnet_command):
    command = next(words for words, *_ in map(programs, blocks("bash")[:1]))
    code, _, err = upsnet_command(*command)
    assert code == 0, err
    data = CocoPanoptic(newcomer / "datasets/fruits/val", newcomer / "datasets/fruits/annotations/panoptic_val.json")
    categories = data.categories
    rows = re.findall(r"^\| (\w+)(?: \(stuff\))? \| (\d+) \| (\d+) \| (\d+|-) \|$", GUIDE.read_text(), re.MULTILINE)
    labels = [str(c - categories.num_stuff + 1) if categories[c].is_thing else "-" for c in range(len(categories))]
    assert rows == [(categories[c].name, str(categories[c].id), str(c), labels[c]) for c in range(len(categories))]


@pytest.mark.slow
def test_the_guide_as_it_is_written(newcomer):
    for block in blocks("bash"):
        subprocess.run(["bash", "-euc", block], cwd=newcomer, check=True)


DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "runs"} & set(path.relative_to(ROOT).parts))
MOVED_ON = {"CHANGELOG.md"}
"""It also names what existed once."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(path):
    """Python files and configs in code marks, by their path in the repository, in the package, or in `tests/`."""
    if path.name in MOVED_ON:
        pytest.skip("names files of the past")
    named = re.findall(r"`((?:[\w.]+/)+[\w.*]+\.(?:py|yaml))", path.read_text())
    roots = (ROOT, ROOT / "upsnet", ROOT / "tests", path.parent)
    wanting = [name for name in named if not any(any(root.glob(name)) for root in roots)]
    assert not wanting


def exists_in_package(name):
    """Whether `package.module` or `package.module.name` exists; the name may be an attribute of a class."""
    path, parts = ROOT / "upsnet", name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if not parts:
        return True
    module = path / f"{parts[0]}.py"
    return module.is_file() and (len(parts) == 1 or re.search(rf"\b{parts[1]}\b", module.read_text()) is not None)


@pytest.mark.parametrize("path", sorted((ROOT / "upsnet").rglob("*.py")), ids=lambda path: path.stem)
def test_modules_that_docstrings_name_exist(path):
    """`package.module.name` in code marks; names that begin with `data.` may be keys of the config."""
    packages = {p.name for p in (ROOT / "upsnet").iterdir() if p.is_dir()} - {"data"}
    named = re.findall(r"`((?:\w+\.)+\w+)`", path.read_text())
    named = [n for n in named if n.split(".")[0] in packages and not n.endswith((".json", ".jsonl"))]
    assert not [name for name in named if not exists_in_package(name)]
