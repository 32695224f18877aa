"""The exported graph gives the model's own segments, at any size that it was exported for."""

import json
import os
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, TINY
from tests.models.upsnet.test_upsnet import lively
from tests.ops.fusion_cases import METHODS, S, T, random_case
from upsnet import PanopticPredictor
from upsnet.categories import known_categories
from upsnet.config import load_config, parse_config
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.export import exporter as export
from upsnet.export.deployed_model import DeployedModel
from upsnet.export.exported_model import METADATA, is_compiled, load_graph
from upsnet.export.exporter import export_graph
from upsnet.io.predictions import prediction_rows
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upsnet.models.upsnet.operator import panoptic_segments

SIZES = ((64, 96), (50, 70), (97, 130), (33, 100))


@pytest.fixture(scope="module")
def lively_checkpoint(tmp_path_factory):
    """An untrained model that finds many things."""
    config = parse_config(TINY, ["model.panoptic.score_threshold=0.3", "data.value_range=[0, 4095]"], source="tiny")
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


def test_a_graph_carries_the_value_range_of_its_model(exported):
    image = Shapes(1, (64, 96), seed=9)[0].image
    predictor = PanopticPredictor.from_checkpoint(exported[0], "cpu")
    assert predictor.make_input.value_range == (0, 4095)
    deep, plain = predictor(np.round(image / 255 * 4095).astype(np.uint16)), predictor(image)
    np.testing.assert_array_equal(deep.segment_ids, plain.segment_ids)
    assert deep.segments == plain.segments


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
        ["data.test_short_side=70", "data.test_max_side=216"],
        ["model.panoptic.method=heuristic"],
        ["model.semantic.conv=deformable", "model.backbone.deformable_from=4"],
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


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("config", ["coco_r50", "upsnet_official_r50_cityscapes", "upsnet_official_r101_dcn_coco"])
def test_the_large_models_are_exported(tmp_path, config, suffix):
    """Random weights far from near-ties; small pictures, for the time that it takes."""
    options = ["data.test_short_side=128", "data.test_max_side=192", "model.pixel_std=[58, 57, 57]"]
    options += ["model.panoptic.method=unified"]
    config = load_config(ROOT / f"configs/{config}.yaml", options)
    categories = known_categories("cityscapes" if config.data.categories == "cityscapes" else "coco")
    torch.manual_seed(0)
    model = build_model(config, categories, pretrained=False)
    for name, parameter in model.backbone.named_parameters():
        if name.endswith("bn3.weight"):  # so that activations stay of one scale
            torch.nn.init.constant_(parameter, 0.3)
    for layer, std in [(model.rpn.cls_logits, 0.5), (model.instance_head.cls_score, 1.0)]:
        torch.nn.init.normal_(layer.weight, std=std)
    for layer in model.semantic_head.score:
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.constant_(model.instance_head.mask_score.bias, 20.0)
    save_checkpoint(tmp_path / "model.pt", Checkpoint(config, categories, model.state_dict()))
    agreement = export_graph(tmp_path / "model.pt", tmp_path / f"model{suffix}")
    assert agreement.instances >= 10


def onnx_weights(path):
    import onnx

    return [torch.tensor(onnx.numpy_helper.to_array(v)) for v in onnx.load(path).graph.initializer]


@pytest.mark.parametrize(
    ("suffix", "precision"), [(".pt2", "bf16"), (".onnx", "fp16"), pytest.param(".pt2", "fp16", marks=pytest.mark.slow)]
)
def test_sixteen_bits_halve_the_file_and_change_little(lively_checkpoint, tmp_path, suffix, precision):
    path = tmp_path / f"model{suffix}"
    agreement = export_graph(lively_checkpoint, path, size=(128, 160), precision=precision)
    assert agreement.disagreement < 0.01
    assert agreement.instances >= 10
    weights = sum(v.numel() for v in load_checkpoint(lively_checkpoint).weights.values())
    kept = torch.export.load(path).state_dict.values() if suffix == ".pt2" else onnx_weights(path)
    assert sum(v.numel() for v in kept if v.element_size() == 2) > 0.9 * weights
    whole, less = (PanopticPredictor.from_checkpoint(p, "cpu") for p in (lively_checkpoint, path))
    picture = Shapes(1, (128, 160), seed=9)[0].image
    assert (whole(picture).segment_ids != less(picture).segment_ids).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (96, 128)])
def test_a_compiled_file_predicts_as_the_model_does(lively_checkpoint, tmp_path, size):
    path = tmp_path / "model.pt2"
    agreement = export_graph(lively_checkpoint, path, size=size, compile_for=torch.device("cpu"))
    assert is_compiled(path)
    assert agreement.disagreement < 1e-4
    predictor = PanopticPredictor.from_checkpoint(path, trust=True)
    assert predictor.device.type == "cpu"
    assert sum(s.is_thing for s in predictor(Shapes(1, (50, 70), seed=9)[0].image).segments) >= 1
    with pytest.raises(ValueError, match="runs on cpu here, expected meta: it was compiled for one kind of device"):
        load_graph(path, "meta", trust=True)


def run_example(command, model, picture, output):
    """`examples/onnx_infer.py` by a Python: the id map and the segments that it writes."""
    script = ROOT / "examples/onnx_infer.py"
    done = subprocess.run(
        [*command, str(script), "--model", str(model), "--input", str(picture), "--output", str(output)],
        capture_output=True, text=True, cwd=output.parent, env={"PATH": os.environ["PATH"]}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(output / "scene.png")), json.loads((output / "scene.json").read_text())


def check_example(command, checkpoint, model, run_tool, folder):
    """The example writes what `predict.py` does, for an image of 12 bits."""
    picture = folder / "scene.png"
    values = np.round(Shapes(1, (97, 130), seed=9)[0].image / 255 * 4095).astype(np.uint16)
    cv2.imwrite(str(picture), values[..., ::-1])
    code, _, err = run_tool("predict", "--checkpoint", checkpoint, "--input", picture, "--output", folder / "ours")
    assert code == 0, err
    ours = np.asarray(Image.open(folder / "ours/scene.png")), json.loads((folder / "ours/scene.json").read_text())
    theirs = run_example(command, model, picture, folder / "theirs")
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(ours[1]["segments_info"], theirs[1]["segments_info"], strict=True):
        assert a.pop("score") == pytest.approx(b.pop("score"), abs=1e-5)
    assert ours[1] == theirs[1]
    assert len(ours[1]["segments_info"]) > 5


WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['upsnet'] = None; import runpy; "


def hidden(path):
    """A Python in which torch and this package cannot be imported."""
    code = f"{WITHOUT_TORCH}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", code]


def test_onnx_runs_without_torch_and_without_this_package(lively_checkpoint, exported, run_tool, tmp_path):
    path, _ = exported
    if path.suffix != ".onnx":
        pytest.skip("a .pt2 needs both")
    check_example(hidden(path), lively_checkpoint, path, run_tool, tmp_path)


OFFICIAL = [
    "model.panoptic.method=official", "model.roi_align=inclusive", "model.min_box=1", "model.fpn_gap=true",
    "data.test_short_side=70", "data.test_max_side=216",
]  # fmt: skip


def test_an_official_model_is_exported_with_another_fusion(lively_checkpoint, run_tool, tmp_path):
    path = changed(lively_checkpoint, tmp_path, overrides=OFFICIAL)
    model = tmp_path / "model.onnx"
    export = ("export", "--checkpoint", path, "--format", "onnx", "--output", model)
    code, _, err = run_tool(*export)
    assert code == 2
    assert "can be neither exported nor recorded as a CUDA graph; add the override model.panoptic.method=unified" in err
    assert not model.exists()
    unified = changed(path, tmp_path, overrides=["model.panoptic.method=unified"])
    code, out, _ = run_tool(*export, "model.panoptic.method=unified")
    assert code == 0
    assert "differing pixels: stuff 0, things 0, void 0" in out
    check_example(hidden(path), unified, model, run_tool, tmp_path)


def test_a_checkpoint_is_exported_with_overrides(lively_checkpoint, run_tool, tmp_path):
    slim = tmp_path / "slim.pt"
    options = ("--output", slim, "model.panoptic.score_threshold=0.25")
    assert run_tool("export", "--checkpoint", lively_checkpoint, *options)[0] == 0
    assert load_checkpoint(slim).config.model.panoptic.score_threshold == 0.25
    code, _, err = run_tool("export", "--checkpoint", lively_checkpoint, "--output", slim, "model.fpn_channels=8")
    assert code == 2
    assert "belongs to another model" in err


@pytest.mark.slow
def test_the_example_runs_where_only_its_four_packages_are(lively_checkpoint, run_tool, tmp_path):
    model = tmp_path / "model.onnx"
    export_graph(lively_checkpoint, model)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    packages = ["numpy", "onnxruntime", "opencv-python-headless", "pillow"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode != 0
    check_example([str(python)], lively_checkpoint, model, run_tool, tmp_path)


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
    torch.library.opcheck(panoptic_segments, (*case, sizes, canvas, S, T, method, 0.3, 0, 48, 64))


def test_the_file_tells_what_it_is(exported):
    path, _ = exported
    if path.suffix == ".onnx":
        import onnx

        metadata = json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == METADATA))
    else:
        with zipfile.ZipFile(path) as file:
            metadata = json.loads(file.read(next(n for n in file.namelist() if n.endswith(METADATA))))
    assert metadata["network_size"] is None
    assert {"id", "name", "isthing", "color"} <= metadata["categories"][0].keys()
    assert metadata["config"]["data"]["test_max_side"] == 1333
    assert metadata["versions"]["torch"] == torch.__version__


def test_a_graph_that_disagrees_is_not_written(lively_checkpoint, tmp_path, monkeypatch):
    def other(model, *rest):
        for name, parameter in model.named_parameters():
            if "score" in name:
                parameter.data += 0.5 * torch.randn_like(parameter)
        return compare(model, *rest)

    compare = export.compare
    monkeypatch.setattr(export, "compare", other)
    with pytest.raises(ValueError, match=r"model\.pt2: not written: .* differs from the model on \d+\.\d+ %"):
        export_graph(lively_checkpoint, tmp_path / "model.pt2", size=(128, 160))
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_named(lively_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--size 100 96: expected multiples of 32"):
        export_graph(lively_checkpoint, tmp_path / "m.pt2", size=(100, 96))
    with pytest.raises(ValueError, match="--batch-size 0: expected 1 to 256"):
        export_graph(lively_checkpoint, tmp_path / "m.pt2", batch_size=0)
    with pytest.raises(ValueError, match="--precision bf16: ONNX runtimes hardly compute it, expected fp32 or fp16"):
        export_graph(lively_checkpoint, tmp_path / "m.onnx", precision="bf16")
    with pytest.raises(ValueError, match=r"--compile makes machine code of a \.pt2"):
        export_graph(lively_checkpoint, tmp_path / "m.onnx", compile_for=torch.device("cpu"))
    with pytest.raises(
        ValueError, match="cuda_graph=True with UPSNet on cpu, expected a checkpoint on a GPU, and Triton"
    ):
        PanopticPredictor.from_checkpoint(lively_checkpoint, "cpu", cuda_graph=True)
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt2: cannot be read as an exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "text.pt2", "cpu")
    (tmp_path / "none.onnx").write_text("hello")
    with pytest.raises(ValueError, match="device 'gpu' is not available here"):
        PanopticPredictor.from_checkpoint(tmp_path / "none.onnx", "gpu")
    with pytest.raises(FileNotFoundError, match=r"none\.pt2: no such exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "none.pt2", "cpu")


def test_larger_blocks(lively_checkpoint, tmp_path):
    path = changed(lively_checkpoint, tmp_path, overrides=["data.size_divisor=64"])
    assert export_graph(path, tmp_path / "model.pt2").disagreement == 0
    picture = Shapes(1, (40, 100))[0].image
    assert PanopticPredictor.from_checkpoint(tmp_path / "model.pt2", "cpu")(picture).segment_ids.shape == (40, 100)


def test_options_of_a_graph_need_its_format(lively_checkpoint, run_tool, tmp_path):
    for options in (["--output", tmp_path / "m.onnx"], ["--output", tmp_path / "m.pt", "--precision", "bf16"]):
        code, _, err = run_tool("export", "--checkpoint", lively_checkpoint, *options)
        assert code == 2
        assert "need --format pt2 or --format onnx" in err
    assert not list(tmp_path.iterdir())
