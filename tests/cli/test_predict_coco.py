"""`upsnet predict --coco` writes a set that `upsnet evaluate` takes; `--no-exif` predicts the pixels as stored."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.models.upsnet.test_upsnet import lively
from upsnet import PanopticPredictor
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.io.predictions import write_samples
from upsnet.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path, model, make_config):
    """An untrained model that finds things."""
    path, config = tmp_path / "checkpoint" / "model.pt", make_config("model.panoptic.score_threshold=0.3")
    save_checkpoint(path, Checkpoint(config, CATEGORIES, lively(model).state_dict()))
    return path


@pytest.fixture
def truth(tmp_path):
    """Three images 000000.png to 000002.png with ids 0 to 2; the JSON and the folder."""
    data = Shapes(3, (48, 64), seed=1)
    write_samples((data[i] for i in range(3)), CATEGORIES, tmp_path / "truth", "val")
    return tmp_path / "truth" / "annotations" / "panoptic_val.json", tmp_path / "truth" / "val"


@pytest.fixture
def predict(upsnet_command, checkpoint, truth, tmp_path):
    """Runs `upsnet predict` on the images; gives exit code, the last line of errors, and the JSON that it wrote."""

    def run(*args, inputs=None, json_path=tmp_path / "out" / "panoptic.json"):
        words = ("predict", "--checkpoint", checkpoint, "--input", inputs or truth[1], "--coco", json_path, *args)
        code, _, err = upsnet_command(*words)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        document = json.loads(json_path.read_text()) if json_path.exists() else None
        return code, errors[-1] if errors else "", document

    return run


def test_a_set_of_predictions_is_evaluated_against_its_ground_truth(predict, upsnet_command, truth, tmp_path):
    (json_path, _), renamed = truth, tmp_path / "renamed.json"
    document = json.loads(json_path.read_text())
    for row in document["images"] + document["annotations"]:
        key = "id" if "id" in row else "image_id"
        row[key] = 900 + 7 * row[key]
    renamed.write_text(json.dumps(document))
    shutil.copytree(json_path.with_suffix(""), renamed.with_suffix(""))
    code, error, found = predict("--images-json", renamed)
    assert code == 0, error
    assert [row["id"] for row in found["images"]] == [900, 907, 914]
    assert found["categories"] == CATEGORIES.to_json()
    written = tmp_path / "out" / "panoptic.json"
    for row in found["annotations"]:
        ids = read_panoptic_png(written.with_suffix("") / row["file_name"])
        assert {s["id"] for s in row["segments_info"]} == set(np.unique(ids).tolist()) - {0}
    assert sorted(path.name for path in written.parent.iterdir()) == ["panoptic", "panoptic.json"]
    code, _, err = upsnet_command("evaluate", "--gt", renamed, "--pred", written, "--strict", "--workers", 1)
    assert code == 0, err
    code, _, err = upsnet_command(
        "evaluate", "--gt", written, "--pred", written, "--strict", "--workers", 1, "--output", tmp_path / "same"
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "same" / "metrics.json").read_text())["panoptic"]
    assert scores["All"]["pq"] == pytest.approx(100), "the predictions match themselves"


def test_the_set_holds_what_the_predictor_gives(predict, checkpoint, truth, tmp_path):
    code, error, found = predict("--output", tmp_path / "overlays")
    assert code == 0, error
    predictor = PanopticPredictor.from_checkpoint(checkpoint, "cpu")
    assert [(row["id"], row["file_name"]) for row in found["images"]] == [(i, f"{i:06d}.png") for i in range(3)]
    things = 0
    for row in found["annotations"][:2]:
        prediction = predictor(truth[1] / row["file_name"])
        ids = read_panoptic_png(tmp_path / "out" / "panoptic" / row["file_name"])
        np.testing.assert_array_equal(ids, prediction.segment_ids)
        assert [(s["id"], s["category_id"], s["area"]) for s in row["segments_info"]] == [
            (s.id, s.category_id, s.area) for s in prediction.segments
        ]
        things += sum(s.is_thing for s in prediction.segments)
    assert things, "the case must show something"
    names = sorted(path.name for path in (tmp_path / "overlays").iterdir())
    assert names == [f"{i:06d}_overlay.jpg" for i in range(3)]


def test_only_the_images_of_the_json_are_predicted(predict, tmp_path):
    rows = [{"id": name, "file_name": f"{name}.png", "height": 48, "width": 64} for name in ("000002", "000000")]
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps({"images": rows}))
    code, error, found = predict("--images-json", path)
    assert code == 0, error
    assert [row["id"] for row in found["images"]] == ["000002", "000000"]


def test_images_that_fail_are_named_and_the_others_written(predict, truth, tmp_path):
    (truth[1] / "000001.png").write_bytes(b"nothing")
    with Image.open(truth[1] / "000002.png") as image:
        image.resize((32, 48)).save(truth[1] / "000002.png")
    code, error, found = predict("--images-json", truth[0])
    assert code == 1
    assert "2 of 3 images failed" in error
    for part in ("000001.png: cannot be read", "000002.png: 32 x 48 pixels, expected 64 x 48 as in the JSON"):
        assert part in error
    assert [row["id"] for row in found["images"]] == [0]
    shutil.rmtree(tmp_path / "out")
    (truth[1] / "000000.png").unlink()
    code, error, found = predict("--images-json", truth[0])
    assert (code, found) == (2, None)
    assert "3 of 3 images failed" in error
    assert "000000.png: no such image" in error


def test_stems_are_ids(predict, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("000000000139.jpg", "b 7.png", "12345678901234567890.png", "\u0663.png"):
        Image.fromarray(Shapes(1, (48, 64))[0].image).save(folder / name)
    code, error, found = predict(inputs=folder)
    assert code == 0, error
    assert {row["id"] for row in found["images"]} == {139, "b 7", "12345678901234567890", "\u0663"}
    Image.new("RGB", (8, 8)).save(folder / "139.png")
    code, error, _ = predict(inputs=folder)
    assert code == 2
    assert "139.png: has the image id 139 of 000000000139.jpg, expected an id for each image" in error


def test_no_exif_predicts_the_pixels_as_stored(predict, upsnet_command, checkpoint, tmp_path):
    folder, exif = tmp_path / "turned", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    Image.fromarray(Shapes(1, (48, 64))[0].image).save(folder / "5.jpg", exif=exif)
    path = tmp_path / "info.json"
    path.write_text(json.dumps({"images": [{"id": 5, "file_name": "5.jpg", "height": 48, "width": 64}]}))
    code, error, _ = predict("--images-json", path, inputs=folder)
    assert code == 2
    assert "5.jpg: 48 x 64 pixels, expected 64 x 48 as in the JSON; --no-exif takes the pixels as stored" in error
    code, error, found = predict("--images-json", path, "--no-exif", inputs=folder)
    assert code == 0, error
    assert (found["images"][0]["height"], found["images"][0]["width"]) == (48, 64)
    for options, size in (((), (64, 48)), (("--no-exif",), (48, 64))):
        code, _, err = upsnet_command(
            "predict", "--checkpoint", checkpoint, "--input", folder, "--output", tmp_path / "plain", *options
        )
        assert code == 0, err
        assert read_panoptic_png(tmp_path / "plain" / "5.png").shape == size
        with Image.open(tmp_path / "plain" / "5_overlay.jpg") as image:
            assert (image.height, image.width) == size


def test_mistakes_in_the_options(predict, upsnet_command, checkpoint, truth, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    json_path, folder = truth
    for words, part in (
        (("--images-json", tmp_path / "none.json"), "none.json"),
        (("--images-json", checkpoint), "model.pt"),
        (("--output", folder), "is the folder of the input"),
    ):
        code, error, _ = predict(*words)
        assert code == 2
        assert part in error
    (tmp_path / "empty.json").write_text('{"images": []}')
    assert "empty.json: lists no image" in predict("--images-json", tmp_path / "empty.json")[1]
    (tmp_path / "empty.json").unlink()
    code, error, _ = predict("--images-json", json_path, json_path=json_path)
    assert (code, "is the file of --images-json" in error) == (2, True)
    code, error, _ = predict(json_path=folder.with_suffix(".json"))
    assert (code, "its PNGs would go into the folder of the input" in error) == (2, True)
    (tmp_path / "clip.mp4").write_bytes(b"")
    code, error, _ = predict(inputs=tmp_path / "clip.mp4")
    assert (code, "--coco with a video" in error) == (2, True)
    (tmp_path / "clip.mp4").unlink()
    start = ("predict", "--checkpoint", checkpoint, "--input", folder)
    for words, part in (
        ((), "--output or --coco is required"),
        (("--output", tmp_path / "o", "--images-json", json_path), "--images-json needs --coco"),
        (("--coco", tmp_path / "o"), "expected a name that ends in .json"),
    ):
        code, _, err = upsnet_command(*start, *words)
        assert code == 2
        assert part in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
