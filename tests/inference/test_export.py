"""The exported graph gives the model's own segments, at any size that it was exported for."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upsnet import PanopticPredictor
from upsnet.config import parse_config
from upsnet.data.predictions import prediction_rows
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upsnet.inference import export
from upsnet.inference.deploy import DeployedModel, panoptic_segments
from upsnet.inference.export import compare, export_graph
from upsnet.models.build import build_model

from ..conftest import TINY
from ..models.test_upsnet import lively
from ..ops.fusion_cases import METHODS, S, T, random_case

SIZES = ((64, 96), (50, 70), (97, 130), (33, 100))


@pytest.fixture(scope="module")
def lively_checkpoint(tmp_path_factory):
    """An untrained model that finds many things."""
    config = parse_config(TINY, ["model.panoptic.score_threshold=0.3"], source="tiny")
    torch.manual_seed(0)
    model = lively(build_model(config, CATEGORIES))
    path = tmp_path_factory.mktemp("lively") / "model.pt"
    save_checkpoint(path, Checkpoint(config, CATEGORIES, model.state_dict()))
    return path


@pytest.fixture(scope="module", params=[".pt2", ".onnx"])
def exported(request, lively_checkpoint):
    """A graph for any size, verified."""
    if request.param == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = lively_checkpoint.with_suffix(request.param)
    return path, export_graph(lively_checkpoint, path)


def same(checkpoint, path, pictures):
    """Number of things in predictions that a checkpoint and a file make alike; scores to the last digits."""
    eager, other = (PanopticPredictor.from_checkpoint(p, "cpu") for p in (checkpoint, path))
    things = 0
    for picture in pictures:
        expected, found = eager(picture), other(picture)
        np.testing.assert_array_equal(found.segment_ids, expected.segment_ids)
        ours, theirs = (prediction_rows(p) for p in (found, expected))
        for row, other_row in zip(ours, theirs, strict=True):
            assert row.pop("score") == pytest.approx(other_row.pop("score"), abs=1e-5)
        assert ours == theirs
        things += sum(s.is_thing for s in found.segments)
    return things


def test_a_graph_of_any_size_predicts_as_the_model_does(lively_checkpoint, exported):
    path, agreement = exported
    assert agreement.disagreement == 0
    assert agreement.instances >= 10, "the case must show something"
    pictures = [Shapes(1, size, seed=9)[0].image for size in SIZES]
    assert same(lively_checkpoint, path, pictures) >= 10


def changed(lively_checkpoint, folder, weights=None, overrides=()):
    """The checkpoint with other weights or another config."""
    old = load_checkpoint(lively_checkpoint)
    config = parse_config(old.config.dump(), overrides, source="changed")
    model = build_model(config, old.categories, pretrained=False)
    kept = {k: v for k, v in old.weights.items() if k in model.state_dict()}
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if ".offset." in name:
            torch.nn.init.normal_(value, std=0.05)
    state = {**model.state_dict(), **kept, **(weights or {})}
    save_checkpoint(folder / "model.pt", Checkpoint(config, old.categories, state))
    return folder / "model.pt"


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_graph_without_detections_predicts_as_the_model_does(lively_checkpoint, tmp_path, suffix):
    bias = torch.tensor([99.0] + [0.0] * 4)
    path = changed(lively_checkpoint, tmp_path, {"instance_head.cls_score.bias": bias})
    target = path.with_suffix(suffix)
    assert export_graph(path, target, size=(64, 96), verify=False) is None
    assert same(path, target, [Shapes(1, (64, 96))[0].image]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (128, 160)])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.panoptic.method=heuristic"],
        ["model.semantic.conv=deformable"],
        ["model.roi_align=legacy"],
        ["model.roi_align=inclusive", "model.min_box=1"],
        ["model.fpn_gap=true"],
        ["model.instance.max_detections=5"],
        ["model.panoptic.stuff_area_limit=400"],
        ["model.panoptic.overlap_threshold=0"],
    ],
    ids=lambda o: o[0].rpartition(".")[2],
)
def test_every_kind_of_model_is_exported(lively_checkpoint, tmp_path, overrides, suffix, size):
    path = changed(lively_checkpoint, tmp_path, overrides=overrides)
    agreement = export_graph(path, path.with_suffix(suffix), size=size)
    assert agreement.disagreement < 1e-4, "near-ties"
    assert agreement.instances >= 5


def test_official_rounding_goes_into_pt2_only(lively_checkpoint, tmp_path):
    path = changed(lively_checkpoint, tmp_path, overrides=["model.panoptic.method=official"])
    assert export_graph(path, path.with_suffix(".pt2"), size=(128, 160)).disagreement == 0
    with pytest.raises(ValueError, match="official, which has no ONNX form yet"):
        export_graph(path, path.with_suffix(".onnx"))


def test_onnx_runs_without_torch_and_without_this_package(lively_checkpoint, exported, run_tool, tmp_path):
    path, _ = exported
    if path.suffix != ".onnx":
        pytest.skip("a .pt2 needs both")
    Image.fromarray(Shapes(1, (97, 130), seed=9)[0].image).save(tmp_path / "scene.png")
    code, _, err = run_tool(
        "predict", "--checkpoint", lively_checkpoint, "--input", tmp_path / "scene.png", "--output", tmp_path / "ours"
    )
    assert code == 0, err
    script = Path(__file__).parents[2] / "examples/onnx_infer.py"
    block = "import sys; sys.modules['torch'] = sys.modules['upsnet'] = sys.modules['PIL'] = None; import runpy; "
    arguments = ["--model", str(path), "--input", str(tmp_path / "scene.png"), "--output", str(tmp_path / "theirs")]
    code = f"{block}sys.argv = {['onnx_infer.py', *arguments]!r}; runpy.run_path({str(script)!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    ours, theirs = (np.asarray(Image.open(tmp_path / name / "scene.png")) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (json.loads((tmp_path / name / "scene.json").read_text()) for name in ("ours", "theirs"))
    for a, b in zip(ours["segments_info"], theirs["segments_info"], strict=True):
        assert a.pop("score") == pytest.approx(b.pop("score"), abs=1e-5)
    assert ours == theirs
    assert len(ours["segments_info"]) > 5


def test_a_graph_of_fixed_size_and_batch_makes_pictures_fit(lively_checkpoint, tmp_path):
    path = tmp_path / "fixed.pt2"
    assert export_graph(lively_checkpoint, path, size=(96, 128), batch_size=2).disagreement == 0
    predictor = PanopticPredictor.from_checkpoint(path, "cpu")
    sizes = ((200, 150), (64, 96), (64, 96), (64, 96), (200, 150))
    pictures = [Shapes(5, size)[i].image for i, size in enumerate(sizes)]
    for picture, found in zip(pictures, predictor(pictures), strict=True):
        alone = predictor(picture)
        assert found.segment_ids.shape == picture.shape[:2]
        np.testing.assert_array_equal(found.segment_ids, alone.segment_ids)
        assert found.segments == alone.segments


def test_the_table_describes_the_map(lively_checkpoint):
    checkpoint = load_checkpoint(lively_checkpoint)
    model = DeployedModel(checkpoint.build(), checkpoint.categories)
    picture = torch.from_numpy(Shapes(1, (64, 96))[0].image).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = model(picture, torch.tensor([[64, 96]]), torch.zeros(90, 130))
    ids = found["segment_ids"][0].numpy()
    assert set(np.unique(ids)) - {0} == set((found["valid"][0].nonzero()[:, 0] + 1).tolist())
    for row in found["valid"][0].nonzero()[:, 0].tolist():
        y, x = (ids == row + 1).nonzero()
        assert found["area"][0, row] == len(x)
        assert found["box"][0, row].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        category = checkpoint.categories[checkpoint.categories.channels[int(found["category_id"][0, row])]]
        assert bool(found["is_thing"][0, row]) == category.is_thing
    assert (found["area"][~found["valid"]] == 0).all()
    assert (found["box"][~found["valid"]] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_operator_is_well_formed(method):
    case = random_case(2, 2, 7, (40, 60), (40, 60))
    sizes, canvas = torch.tensor([[40, 60], [33, 50]]), torch.zeros(21, 37)
    torch.library.opcheck(panoptic_segments, (*case, sizes, canvas, S, T, method, 0.3, 0))


def test_the_file_tells_what_it_is(exported):
    path, _ = exported
    if path.suffix == ".onnx":
        import onnx

        metadata = json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == export.METADATA))
    else:
        with zipfile.ZipFile(path) as file:
            metadata = json.loads(file.read(next(n for n in file.namelist() if n.endswith(export.METADATA))))
    assert metadata["network_size"] is None
    assert {"id", "name", "isthing", "color"} <= metadata["categories"][0].keys()
    assert metadata["config"]["data"]["test_max_side"] == 1333
    assert metadata["versions"]["torch"] == torch.__version__


def test_a_graph_that_disagrees_is_not_written(lively_checkpoint, tmp_path, monkeypatch):
    def other(checkpoint, path):
        changed = {k: v + 0.5 * torch.randn_like(v) if "score" in k else v for k, v in checkpoint.weights.items()}
        return compare(Checkpoint(checkpoint.config, checkpoint.categories, changed), path)

    monkeypatch.setattr(export, "compare", other)
    with pytest.raises(ValueError, match=r"model\.pt2: not written: .* differs from the model on \d+\.\d+ %"):
        export_graph(lively_checkpoint, tmp_path / "model.pt2", size=(128, 160))
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_named(lively_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--size 100 96: expected multiples of 32"):
        export_graph(lively_checkpoint, tmp_path / "m.pt2", size=(100, 96))
    with pytest.raises(ValueError, match="--batch-size 0: expected at least 1"):
        export_graph(lively_checkpoint, tmp_path / "m.pt2", batch_size=0)
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt2: cannot be read as an exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "text.pt2", "cpu")
    with pytest.raises(FileNotFoundError, match=r"none\.pt2: no such exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "none.pt2", "cpu")
