"""The commands of docs/ run in their order, in a folder that holds what a newcomer has: photographs and annotations."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.convert import forms, forms_more
from upsnet.cli.convert import CONVERTED
from upsnet.data.coco import CocoPanoptic

GUIDE = ROOT / "docs" / "custom_dataset.md"
PROGRAMS = ROOT / "docs" / "annotation_programs.md"
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


def blocks(kind, document=GUIDE):
    """The fenced blocks of a document of one language; "" for what commands print."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language == kind]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder like that of the repository, without timm: the guide tells the results of random weights."""
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\n\nsys.modules['timm'] = None\n")
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.delenv("UPSNET_DATASETS", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
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


@pytest.fixture
def exports(tmp_path, upsnet_command, monkeypatch):
    """A folder with the images of `examples/fruits` as each annotation program exports them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    fruits = ROOT / "examples" / "fruits" / "annotations.json"
    code, _, err = upsnet_command(
        "convert", "coco", "--annotations", fruits, "--background", "table", "--output", tmp_path / "whole"
    )
    assert code == 0, err
    data = forms.opened(tmp_path / "whole")
    samples, categories = [data[i] for i in range(len(data))], data.categories
    for part, split in ((samples[:3], "train"), (samples[3:], "valid")):
        path = forms.write_coco(part, categories, tmp_path / "roboflow" / split, forms.outlines)
        path.rename(path.with_name("_annotations.coco.json"))
    forms_more.write_yolo(samples, categories, tmp_path / "yolo")
    forms_more.write_cvat(samples, categories, tmp_path / "cvat")
    forms_more.write_label_studio(samples, categories, tmp_path / "label_studio")
    forms_more.write_supervisely(samples, categories, tmp_path / "supervisely")
    forms_more.write_voc(samples, categories, tmp_path / "voc")
    write_small_files(samples, categories, tmp_path)
    return data


def write_small_files(samples, categories, folder):
    """LabelMe files, mask files and id PNGs."""
    for sample in samples:
        stem = sample.file_name.removesuffix(".jpg")
        for place in ("labelme", "masks/images", "ids/images"):
            forms.save(folder / place / sample.file_name, sample.image)
        shapes = []
        for number, (category, mask) in enumerate(forms_more.things(sample, categories)):
            for outline in forms.outlines(mask):
                shapes.append((category.name, "polygon", np.reshape(outline, (-1, 2)).tolist(), number))
            forms.save(folder / f"masks/masks/{stem}/{category.name}_{number}.png", mask)
        document = json.dumps(forms.labelme(sample.file_name, sample.size, shapes))
        (folder / "labelme" / f"{stem}.json").write_text(document)
        is_thing = np.concatenate([[False], sample.classes >= categories.num_stuff])
        values = np.array([0, *(categories[channel].id for channel in sample.classes)], np.uint8)
        forms.save(
            folder / f"ids/instances/{stem}.png", (sample.segment_map * is_thing[sample.segment_map]).astype(np.uint8)
        )
        forms.save(folder / f"ids/semantic/{stem}.png", values[sample.segment_map])
    rows = [f"- {{name: {c.name}, isthing: {int(c.is_thing)}, id: {c.id}}}" for c in categories.categories]
    (folder / "ids" / "classes.yaml").write_text("\n".join(rows))


def test_every_program_of_the_documents_gives_the_same_data(exports, tmp_path, upsnet_command):
    """The commands of docs/annotation_programs.md, each on what its program exports of the same images."""
    expected = Counter()
    for i in range(len(exports)):
        for category, mask in forms_more.things(exports[i], exports.categories):
            expected[category.name] += int(mask.sum())
    commands = [words for block in blocks("bash", PROGRAMS) for words in programs(block)]
    converted = [words for words in commands if "--output" in words]
    for name, *args in converted:
        code, _, err = upsnet_command(name, *args, "--workers", "1")
        assert code == 0, f"{args}: {err}"
        found = Counter()
        for json_path in (tmp_path / args[args.index("--output") + 1] / "annotations").glob("*.json"):
            split = json_path.stem.removeprefix("panoptic_")
            data = forms.opened(json_path.parents[1], split)
            for i in range(len(data)):
                for category, mask in forms_more.things(data[i], data.categories):
                    found[category.name] += int(mask.sum())
        del found["table"]  # where the program has it as a label, too
        assert found == expected, args
    assert {words[1] for words in converted} == set(CONVERTED)


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
