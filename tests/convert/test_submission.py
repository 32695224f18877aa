"""`upsnet evaluate --submission` packs what `upsnet predict` wrote for a test set."""

import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.data.cityscapes_tree import write_tree
from upsnet.categories import known_categories
from upsnet.config import parse_config
from upsnet.convert.submission import pack_predictions
from upsnet.io.annotation import ImageFile
from upsnet.io.files import write_json
from upsnet.io.panoptic_png import read_panoptic_png, write_panoptic_png
from upsnet.metrics.score_files import evaluate_files
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint

CITYSCAPES = known_categories("cityscapes")


def untrained(folder, categories):
    """An untrained model's file; it reports instances of any score."""
    config = parse_config(TINY, ["model.panoptic.score_threshold=0"], source="tiny")
    save_checkpoint(folder / "model.pt", Checkpoint(config, categories, build_model(config, categories).state_dict()))
    return folder / "model.pt"


def unpack(archive, folder):
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        file.extractall(folder)
        return sorted(file.namelist())


def test_cityscapes_predictions_are_packed_and_score_as_before(run_tool, tmp_path, monkeypatch):
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path))
    root = write_tree(tmp_path / "cityscapes", {"val": {"berlin": 1, "mainz": 2}})
    model, predictions = untrained(tmp_path, CITYSCAPES), tmp_path / "predictions"
    for city in ("berlin", "mainz"):
        folder = root / "leftImg8bit" / "val" / city
        code, _, err = run_tool("predict", "--checkpoint", model, "--input", folder, "--output", predictions)
        assert code == 0, err
    source = "data.val={format: cityscapes, split: val}"
    code, _, err = run_tool("evaluate", "--checkpoint", model, "--output", tmp_path / "evaluation", source)
    assert code == 0, err
    (root / "leftImg8bit" / "val").rename(root / "leftImg8bit" / "test")

    script, output = "datasets/prepare_cityscapes.py", tmp_path / "submission"
    code, _, err = run_tool(script, "submission", "--predictions", predictions, "--output", output)
    assert code == 0, err
    assert "has 3 test images, the server expects 1525" in err
    names = unpack(output / "cityscapes_panoptic_test.zip", tmp_path / "unpacked")
    stems = ["berlin_000000_000019", "mainz_000000_000019", "mainz_000001_000020"]
    folder = "cityscapes_panoptic_test"
    assert names == [f"{folder}.json", *(f"{folder}/{stem}_leftImg8bit.png" for stem in stems)]

    code, _, err = run_tool(script, "panoptic", "--splits", "val")  # its pictures are away: truth alone is enough
    assert code == 0, err
    truth, packed = root / "gtFine" / "cityscapes_panoptic_val.json", tmp_path / "unpacked" / f"{folder}.json"
    scores = evaluate_files(truth, packed, strict=True, progress=False)[0]["panoptic"]
    expected = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["panoptic"]
    assert scores["per_class"] == expected["per_class"]
    assert any(row["fp"] for row in scores["per_class"].values())

    names = unpack(output / "cityscapes_semantic_test.zip", tmp_path / "labels")
    assert names == [f"{stem}_leftImg8bit.png" for stem in stems]
    for annotation in json.loads(packed.read_text())["annotations"]:
        assert annotation["image_id"] in stems
        labels = np.asarray(Image.open(tmp_path / "labels" / annotation["file_name"]))
        ids = read_panoptic_png(packed.with_suffix("") / annotation["file_name"])
        classes = {0: 0} | {row["id"]: row["category_id"] for row in annotation["segments_info"]}
        np.testing.assert_array_equal(labels, np.vectorize(classes.get)(ids))


def test_coco_predictions_are_packed_under_the_names_that_the_server_asks_for(real_data, run_tool, tmp_path):
    source = real_data / "coco_sample"
    model, predictions = untrained(tmp_path, known_categories("coco")), tmp_path / "predictions"
    code, _, err = run_tool("predict", "--checkpoint", model, "--input", source / "val2017", "--output", predictions)
    assert code == 0, err
    truth = source / "annotations" / "panoptic_val2017.json"
    listed = json.loads(truth.read_text())["images"]
    images = tmp_path / "image_info_test-dev2017.json"
    args = ("submission", "--images", images, "--predictions", predictions, "--output", tmp_path / "submission")
    write_json(images, {"images": listed, "categories": []})
    code, _, err = run_tool("datasets/prepare_coco.py", *args, "--algorithm", "upsnet50")
    assert code == 0, err
    name = "panoptic_test-dev2017_upsnet50_results"
    names = unpack(tmp_path / "submission" / f"{name}.zip", tmp_path / "unpacked")
    assert names == [f"{name}.json", f"{name}/000000142238.png", f"{name}/000000439180.png"]
    packed = json.loads((tmp_path / "unpacked" / f"{name}.json").read_text())
    assert {row["image_id"] for row in packed["annotations"]} == {142238, 439180}
    evaluate_files(truth, tmp_path / "unpacked" / f"{name}.json", strict=True, progress=False)

    write_json(images, {"images": [*listed, {**listed[0], "id": 1, "file_name": "000000000001.jpg"}]})
    code, _, err = run_tool("datasets/prepare_coco.py", *args, "--algorithm", "upsnet50")
    assert code == 2
    assert "no prediction for 1 of 3 pictures (000000000001)" in err
    assert err.count("\n") == 1
    for change, message in (("up/snet", "letters, digits"), ("upsnet50", "image_info_SET.json")):
        wrong = [tmp_path / "list.json" if arg == images and change == "upsnet50" else arg for arg in args]
        code, _, err = run_tool("datasets/prepare_coco.py", *wrong, "--algorithm", change)
        assert (code, message in err) == (2, True)


@pytest.fixture
def predictions(tmp_path):
    """The prediction of one image as `upsnet predict` writes it: a car and a road."""
    folder = tmp_path / "predictions"
    write_panoptic_png(folder / "a.png", np.array([[0, 1, 1], [12, 12, 0]], dtype=np.int32))
    rows = [{"id": 1, "category_id": 7, "category_name": "road"}, {"id": 12, "category_id": 26, "category_name": "car"}]
    write_json(folder / "a.json", {"image": "a.jpg", "height": 2, "width": 3, "segments_info": rows})
    return folder


def pack(predictions, size=(2, 3), file_name="a.jpg"):
    archive = predictions.parent / "x.zip"
    try:
        pack_predictions(predictions, {5: ImageFile(file_name, *size)}, CITYSCAPES, archive, progress=False)
    finally:
        assert sorted(p.name for p in archive.parent.iterdir()) in (["predictions"], ["predictions", "x.zip"])
    return archive


def test_rows_hold_what_the_format_asks_for(predictions, tmp_path):
    assert unpack(pack(predictions), tmp_path / "out") == ["x.json", "x/a.png"]
    rows = json.loads((tmp_path / "out" / "x.json").read_text())["annotations"]
    segments = [{"id": 1, "category_id": 7}, {"id": 12, "category_id": 26}]
    assert rows == [{"image_id": 5, "file_name": "a.png", "segments_info": segments}]


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["segments_info"].pop(), "its segment ids differ from those in a.json"),
        (
            lambda d: d["segments_info"].append(dict(d["segments_info"][0], id=99)),
            "its segment ids differ from those in a.json",
        ),
        (lambda d: d["segments_info"].append(d["segments_info"][0]), "its segment ids differ from those in a.json"),
        (lambda d: d["segments_info"][1].update(category_id=13), "category_id 13 is 'car', expected 'fence'"),
        (lambda d: d["segments_info"][1].update(category_id=1), "category_id 1 is 'car', expected no such id"),
        (lambda d: d["segments_info"][1].pop("category_name"), "a.json: segments_info lacks id"),
        (lambda d: d.pop("segments_info"), "a.json: segments_info lacks id"),
    ],
)
def test_a_prediction_that_contradicts_itself_or_the_classes_is_named_and_nothing_is_written(
    predictions, edit, message
):
    change(predictions / "a.json", edit)
    with pytest.raises(ValueError, match=re.escape(message)):
        pack(predictions)
    assert not (predictions.parent / "x.zip").exists()


def test_a_prediction_of_another_size_or_a_missing_one_is_named(predictions, tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: size \(2, 3\), expected \(3, 2\) as a\.jpg"):
        pack(predictions, (3, 2))
    with pytest.raises(FileNotFoundError, match=r"no prediction for 1 of 1 pictures \(b\)"):
        pack(predictions, file_name="b.jpg")
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        pack_predictions(tmp_path / "none", {}, CITYSCAPES, tmp_path / "x.zip")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.zip"):
        pack_predictions(predictions, {}, CITYSCAPES, tmp_path / "x.tar")
