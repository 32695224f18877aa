"""Crafted `.pt2` files are refused before torch loads them."""

import io
import json
import lzma
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from upsnet import PanopticPredictor
from upsnet.export import exported_model
from upsnet.export.archive import require_harmless

STORED = lzma.decompress((Path(__file__).parents[1] / "files" / "format1" / "model.pt2.xz").read_bytes())


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rewrite(path, change, **options):
    """Writes the stored file with `change(name, content)`, which gives the new name and content, or None."""
    with zipfile.ZipFile(io.BytesIO(STORED)) as source, zipfile.ZipFile(path, "w", **options) as target:
        for name in source.namelist():
            if (changed := change(name, source.read(name))) is not None:
                target.writestr(*changed)


def in_json(ending, change):
    """A change of the JSON file whose name ends so."""

    def apply(name, content):
        if not name.endswith(ending):
            return name, content
        document = json.loads(content)
        change(document)
        return name, json.dumps(document)

    return apply


def first_node(document):
    return document["graph_module"]["graph"]["nodes"][0]


def first_expression(value):
    """The first object with an `expr_str`."""
    if isinstance(value, dict):
        if "expr_str" in value:
            return value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        if (found := first_expression(inner)) is not None:
            return found
    return None


def evil_sample_inputs(path):
    memory = io.BytesIO()
    torch.save((Evil(path),), memory)
    return lambda name, content: (name, memory.getvalue() if "/sample_inputs/" in name else content)


CODE = "__import__('pathlib').Path('{}').touch()"
CASES = {
    "sample inputs": (lambda trap: evil_sample_inputs(trap), "holds more than tensors"),
    "pickled weight": (
        lambda trap: in_json("weights_config.json", lambda d: next(iter(d["config"].values())).update(use_pickle=True)),
        "asks to unpickle a tensor",
    ),
    "function of the system": (
        lambda trap: in_json("models/model.json", lambda d: first_node(d).update(target="torch.os.system")),
        r"calls 'torch\.os\.system', which no exported model",
    ),
    "function with a long name": (
        lambda trap: in_json(
            "models/model.json", lambda d: first_node(d).update(target="torch.ops.aten.add.Tensor.__class__")
        ),
        "which no exported model",
    ),
    "expression": (
        lambda trap: in_json("models/model.json", lambda d: first_expression(d).update(expr_str=CODE.format(trap))),
        "expected arithmetic",
    ),
    "guard": (
        lambda trap: in_json("models/model.json", lambda d: d.update(guards_code=[CODE.format(trap)])),
        "expected a comparison of sizes",
    ),
    "name above": (
        lambda trap: lambda name, content: ("../evil" if name.endswith("byteorder") else name, content),
        r"file '\.\./evil' in the archive leaves its folder",
    ),
    "absolute name": (
        lambda trap: lambda name, content: ("/tmp/evil" if name.endswith("byteorder") else name, content),
        "is absolute",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_crafted_file_is_refused_before_torch_sees_it(tmp_path, monkeypatch, case):
    make, message = CASES[case]
    trap, path = tmp_path / "trap", tmp_path / "model.pt2"
    rewrite(path, make(trap))

    def load(*_, **__):
        raise AssertionError("torch has loaded the file")

    monkeypatch.setattr(torch.export, "load", load)
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read as an exported model .*{message}"):
        PanopticPredictor.from_checkpoint(path, "cpu")
    assert not trap.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2"]


def test_the_trap_works():
    """Unpickling the crafted sample inputs does make the file."""
    path = Path("/dev/null")
    assert pickle.loads(pickle.dumps(Evil(path))).name == "/dev/null"


def test_a_compressed_archive_is_refused(tmp_path):
    """A few kilobytes could hold gigabytes."""
    rewrite(tmp_path / "model.pt2", lambda name, content: (name, content), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed, expected it as it is"):
        require_harmless(tmp_path / "model.pt2")


def test_a_sound_file_passes(tmp_path):
    (tmp_path / "model.pt2").write_bytes(STORED)
    require_harmless(tmp_path / "model.pt2")


def test_a_compiled_file_needs_trust(tmp_path, monkeypatch, run_tool):
    path = tmp_path / "model.pt2"

    def change(name, content):
        return name.replace("/models/model.json", "/data/aotinductor/model/code.so"), content

    rewrite(path, change)
    with pytest.raises(ValueError, match=r"^\S+model\.pt2: a compiled \.pt2 is machine code; .*--trust \(trust=True\)"):
        PanopticPredictor.from_checkpoint(path, "cpu")
    loaded = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *args, **options: loaded.append(args))
    monkeypatch.setattr(exported_model, "_pt2_description", lambda p: json.dumps({"compiled_for": "cpu", "format": 1}))
    with pytest.raises(ValueError, match=r"no 'config'|network_size"):
        PanopticPredictor.from_checkpoint(path, "cpu", trust=True)
    assert len(loaded) == 1
    code, _, err = run_tool("predict", "--checkpoint", path, "--input", tmp_path, "--output", tmp_path / "out")
    assert code == 2
    assert "no image" in err or "--trust" in err


def test_exports_hold_no_sample_inputs(checkpoint, tmp_path):
    from upsnet import export_graph

    export_graph(checkpoint, tmp_path / "model.pt2", size=(64, 96), verify=False)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        sizes = [info.file_size for info in archive.infolist() if "/sample_inputs/" in info.filename]
    assert not any(sizes), "or a pickle of nothing"


@pytest.mark.parametrize("change", [lambda c: {**c, "id": 999}, lambda c: {**c, "id": 2**40}])
def test_a_graph_of_other_categories_is_one_line(tmp_path, change):
    def edit(document):
        document["categories"] = [change(document["categories"][0]), *document["categories"][1:]]

    path = tmp_path / "model.pt2"
    rewrite(path, in_json("upsnet.json", edit))
    with pytest.raises(ValueError, match=r"id|description lacks"):
        PanopticPredictor.from_checkpoint(path, "cpu")(torch.zeros(64, 96, 3, dtype=torch.uint8).numpy())
