"""The command line as a user meets it: what it writes, and one line for each mistake."""

import json
import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.doctor import check_run as data_check
from upsnet.io.images import write_image
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.io.predictions import PanopticWriter, truth_rows, write_samples
from upsnet.metrics.schema import Metrics
from upsnet.models.checkpoint import load_checkpoint


def one_line(result, *parts, code=2):
    found, _, err = result
    line = [text for text in err.splitlines() if text.startswith("error: ")]
    assert found == code
    assert len(line) == 1, err
    assert "Traceback" not in err
    assert all(part in line[0] for part in parts), line[0]


def test_train_evaluate_predict_export_in_a_row(run_tool, tiny_yaml, tmp_path):
    run = tmp_path / "run"
    code, out, err = run_tool("train", "--config", tiny_yaml, "--output", run, "train.iterations=3")
    assert code == 0, err
    assert "best PQ" in out
    code, out, err = run_tool("evaluate", "--checkpoint", run / "model.pt", "--output", tmp_path / "eval")
    assert code == 0, err
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert set(metrics) == {"format", "panoptic", "semantic", "semantic_from_panoptic", "instance_ap", "panoptic_ap"}
    assert {"All", "Things", "Stuff", "per_class"} < set(metrics["panoptic"])

    data = Shapes(3, (64, 96), seed=1)
    write_samples((data[i] for i in range(3)), CATEGORIES, tmp_path / "truth", "val")
    gt = tmp_path / "truth" / "annotations" / "panoptic_val.json"
    code, out, err = run_tool(
        "evaluate", "--gt", gt, "--pred", tmp_path / "eval/predictions/panoptic.json", "--output", tmp_path / "files"
    )
    assert code == 0, err
    files = json.loads((tmp_path / "files" / "metrics.json").read_text())
    for name in ("panoptic", "semantic_from_panoptic", "panoptic_ap"):
        assert files[name] == metrics[name] is not None, "the written predictions score as the model did"
    assert files["semantic"] is files["instance_ap"] is None, "files hold neither the semantic head nor instances"
    for document in (files, metrics):
        Metrics.model_validate(document)
    of_model, of_files = (json.loads((tmp_path / name / "per_image.json").read_text()) for name in ("eval", "files"))
    assert [row["image_id"] for row in of_files["images"]] == [0, 1, 2]
    assert of_model == of_files

    code, out, err = run_tool("export", "--checkpoint", run / "last.pt", "--output", tmp_path / "slim.pt")
    assert code == 0, err
    assert (tmp_path / "slim.pt").stat().st_size < (run / "last.pt").stat().st_size
    folder = tmp_path / "truth" / "val"
    code, out, err = run_tool(
        "predict", "--checkpoint", tmp_path / "slim.pt", "--input", folder, "--output", tmp_path / "p"
    )
    assert code == 0, err
    names = {f"{i:06d}{end}" for i in range(3) for end in (".png", ".json", "_overlay.jpg")}
    assert {p.name for p in (tmp_path / "p").iterdir()} == names
    segments = json.loads((tmp_path / "p" / "000001.json").read_text())
    ids = read_panoptic_png(tmp_path / "p" / "000001.png")
    assert {row["id"] for row in segments["segments_info"]} == set(np.unique(ids)) - {0}
    assert (segments["height"], segments["width"]) == ids.shape


def test_a_video_becomes_a_video_and_a_folder_of_frames(run_tool, checkpoint, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for i in range(4):
        writer.write(np.ascontiguousarray(Shapes(4, (64, 96))[i].image[..., ::-1]))
    writer.release()
    code, _, err = run_tool("predict", "--checkpoint", checkpoint, "--input", path, "--output", tmp_path / "out")
    assert code == 0, err
    assert len(list((tmp_path / "out" / "clip").glob("*.png"))) == 4
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip_overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    one_line(
        run_tool(
            "predict", "--checkpoint", checkpoint, "--input", tmp_path / "broken.mp4", "--output", tmp_path / "out"
        ),
        "broken.mp4",
        "no frame",
    )


def test_mistakes_before_training(run_tool, tiny_yaml, tmp_path):
    start = ("train", "--output", tmp_path / "run", "--config")
    one_line(run_tool(*start, tiny_yaml, "model.backbone.depth=3"), "tiny.yaml", "model.backbone.depth")
    one_line(run_tool(*start, tmp_path / "no.yaml"), "no.yaml", "no such config file")
    one_line(run_tool(*start, tiny_yaml, "--init", tmp_path / "none.pt"), "none.pt")
    one_line(run_tool(*start, tiny_yaml, "model.backbone.freeze_at=2"), "random weights would be frozen")
    one_line(run_tool(*start, tiny_yaml, "model.backbone.weights=missing.pth"), "missing.pth", "IMAGENET1K_V1")
    assert not (tmp_path / "run").exists()


def coco_yaml(tmp_path, **changes):
    import yaml

    source = {
        "format": "coco",
        "image_dir": str(tmp_path / "set" / "train"),
        "annotation_file": str(tmp_path / "set" / "annotations" / "panoptic_train.json"),
    }
    path = tmp_path / "coco.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "train": source, "val": source, **changes}}))
    return path


@pytest.fixture
def on_disk(tmp_path):
    data = Shapes(4, (48, 64))
    write_samples((data[i] for i in range(4)), CATEGORIES, tmp_path / "set", "train")
    return coco_yaml(tmp_path)


def test_mistakes_in_the_data(run_tool, on_disk, tmp_path):
    start = ("train", "--config", on_disk, "--output", tmp_path / "run", "train.iterations=2")
    picture = tmp_path / "set" / "train" / "000001.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    one_line(run_tool(*start), "train/000001.png", "cannot be read as an image")
    picture.unlink()
    one_line(run_tool(*start), "train/000001.png", "no such image")
    picture.write_bytes(whole)
    annotations = tmp_path / "set" / "annotations" / "panoptic_train.json"
    text = annotations.read_text()
    document = json.loads(text)
    document["annotations"][2]["segments_info"].pop()
    annotations.write_text(json.dumps(document))
    one_line(run_tool(*start), "000002.png", "segment id", "is not in")
    document = json.loads(text)
    document["annotations"][0]["segments_info"][0]["category_id"] = 55
    annotations.write_text(json.dumps(document))
    one_line(run_tool(*start), "panoptic_train.json", "category_id 55")
    annotations.write_text(text)
    rows = [{**row, "color": None} for row in CATEGORIES.to_json()][:-1]
    changed = coco_yaml(tmp_path, categories=rows)
    result = run_tool("train", "--config", changed, "--output", tmp_path / "run")
    one_line(result, "panoptic_train.json", "class 'star' is none of the model")


def test_a_worker_that_meets_a_bad_file_names_it(run_tool, on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(data_check, "SAMPLED", 1)  # the look before the training does not meet it
    (tmp_path / "set" / "train" / "000003.png").write_bytes(b"nothing")
    start = ("train", "--config", on_disk, "--output", tmp_path / "run")
    one_line(run_tool(*start, "train.iterations=4", "data.num_workers=1"), "train/000003.png")


def test_mistakes_in_prediction(run_tool, checkpoint, tmp_path):
    start = ("predict", "--checkpoint", checkpoint, "--output", tmp_path / "out", "--input")
    one_line(run_tool(*start, tmp_path / "none.jpg"), "none.jpg", "no such")
    (tmp_path / "empty").mkdir()
    one_line(run_tool(*start, tmp_path / "empty"), "empty", "no image")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "a.png")
    for inputs in (photos, photos / "a.png"):
        wrong = ("predict", "--checkpoint", checkpoint, "--input", inputs, "--output", photos)
        one_line(run_tool(*wrong), "folder of the input")
    one_line(run_tool(*start, photos, "--device", "cuda:77"), "cuda:77", "not available")
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(Shapes(1, (64, 64))[0].image).save(folder / "good.png")
    Image.fromarray(Shapes(1, (64, 64))[0].image).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])
    one_line(run_tool(*start, folder), "1 of 2 images failed", "cut.jpg", code=1)
    one_line(run_tool(*start, folder / "cut.jpg"), "1 of 1 images failed", "cut.jpg")
    assert (tmp_path / "out" / "good.png").exists(), "the others are done all the same"
    Image.fromarray(Shapes(1, (64, 64))[0].image).save(folder / "good.jpg")
    one_line(run_tool(*start, folder), "good.png: has the name of", "rename one")


def test_mistakes_with_checkpoints(run_tool, checkpoint, tmp_path):
    values = torch.load(checkpoint, weights_only=True)
    values["config"]["model"]["fpn_channels"] = 24
    torch.save(values, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, part in (
        ("other.pt", "belongs to another model"),
        ("text.pt", "text.pt"),
        ("none.pt", "no such checkpoint"),
    ):
        one_line(run_tool("export", "--checkpoint", tmp_path / name, "--output", tmp_path / "x.pt"), part)
        one_line(run_tool("evaluate", "--checkpoint", tmp_path / name), part)
    assert not (tmp_path / "x.pt").exists()


def test_files_that_contradict_each_other_are_reported_or_with_strict_refused(run_tool, tmp_path):
    data = Shapes(2, (48, 64))
    for name in ("gt", "pred"):
        write_samples((data[i] for i in range(2)), CATEGORIES, tmp_path / name, "val")
    gt, pred = (tmp_path / name / "annotations" / "panoptic_val.json" for name in ("gt", "pred"))
    (pred.with_suffix("") / "000001.png").unlink()
    code, out, err = run_tool("evaluate", "--gt", gt, "--pred", pred, "--boundary", "--workers", 1)
    assert code == 0
    assert all(name in out for name in ("pq ", "miou_from_panoptic ", "pq_dagger ", "boundary_pq ", "pq_low "))
    assert "warning: " in err
    assert "000001.png: no such panoptic PNG" in err
    one_line(run_tool("evaluate", "--gt", gt, "--pred", pred, "--strict"), "000001.png", "no such panoptic PNG")
    for wrong in (["--workers", "0"], ["--instances", tmp_path / "none.json", "--strict"]):
        assert run_tool("evaluate", "--gt", gt, "--pred", pred, *wrong)[0] == 2
    assert run_tool("evaluate", "--checkpoint", "m.pt", "--strict")[0] == 2


def test_options_that_do_not_go_together(run_tool, checkpoint, tmp_path):
    for args in (["--gt", "a.json"], [], ["--gt", "a", "--pred", "b", "seed=3"], ["--gt", "a", "--checkpoint", "b"]):
        code, _, err = run_tool("evaluate", *args)
        assert code == 2
        assert "usage:" in err


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "export", "check_data"])
def test_help_has_an_example(run_tool, name):
    code, out, _ = run_tool(name, "--help")
    assert code == 0
    assert f"\n  upsnet {'doctor' if name == 'check_data' else name} --" in out


def test_weights_are_converted_with_a_report(run_tool, checkpoint, tiny_yaml, tmp_path):
    arguments = ("--config", tiny_yaml, "--output", tmp_path / "converted.pt")
    code, out, err = run_tool("convert_weights", "--weights", checkpoint, *arguments)
    assert code == 0, err
    assert "checkpoint of this project" in out
    assert "tensors loaded" in out
    ours, theirs = (load_checkpoint(p).weights for p in (tmp_path / "converted.pt", checkpoint))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    torch.save({"encoder": torch.zeros(1)}, tmp_path / "other.pth")
    one_line(run_tool("convert_weights", "--weights", tmp_path / "other.pth", *arguments), "other.pth", "1 tensors")


def test_images_that_differ_in_the_suffix_are_evaluated_with_a_png_each(run_tool, tiny_yaml, checkpoint, tmp_path):
    """a.jpg and a.png of one data set, whose ground truth has PNGs of its own."""
    data = Shapes(2, (48, 64))
    writer = PanopticWriter(tmp_path / "set" / "panoptic.json", data.categories, ["a.jpg", "a.png"])
    for name, sample in zip(("a.jpg", "a.png"), (data[0], data[1]), strict=True):
        write_image(tmp_path / "set" / "images" / name, sample.image)
        rows = truth_rows(sample.segment_map, sample.classes, sample.is_crowd, data.categories)
        writer.add(sample.image_id, name, sample.segment_map, rows)
    writer.close()
    source = f"{{format: coco, image_dir: {tmp_path}/set/images, annotation_file: {tmp_path}/set/panoptic.json}}"
    code, _, err = run_tool(
        "evaluate", "--checkpoint", checkpoint, "--output", tmp_path / "out", f"data.val={source}", "data.num_workers=0"
    )
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "out" / "predictions" / "panoptic").iterdir())
    assert names == ["a.jpg.png", "a.png.png"]


def test_a_folder_of_files_from_strangers_ends_with_the_good_ones_predicted(run_tool, checkpoint, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "good.png", Shapes(1, (48, 64))[0].image)
    write_image(folder / "also.jpg", Shapes(1, (48, 64))[0].image)
    (folder / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:100])
    (folder / "dangling.png").symlink_to(tmp_path / "absent.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "._good.png").write_bytes(b"resource fork")
    (folder / "folder.png").mkdir()
    code, _, err = run_tool("predict", "--checkpoint", checkpoint, "--input", folder, "--output", tmp_path / "out")
    assert code == 1
    assert "4 of 6 images failed" in err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{stem}{end}" for stem in ("good", "also") for end in (".png", ".json", "_overlay.jpg")}


def test_weights_that_are_not_finite_are_named_by_every_command(run_tool, checkpoint, tmp_path):
    values = torch.load(checkpoint, weights_only=True)
    values["weights"]["fpn.inner_blocks.0.bias"][0] = float("nan")
    torch.save(values, checkpoint)
    write_image(tmp_path / "in" / "a.png", Shapes(1, (48, 64))[0].image)
    out = ("--output", tmp_path / "out")
    for words in (
        ("predict", "--input", tmp_path / "in" / "a.png", *out),
        ("evaluate", *out),
        ("export", "--format", "onnx", "--output", tmp_path / "m.onnx"),
    ):
        code, _, err = run_tool(words[0], "--checkpoint", checkpoint, *words[1:])
        assert code == 2
        assert "weight fpn.inner_blocks.0.bias has 1 values that are not finite" in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "m.onnx").exists()
