"""Each fault, planted alone into a data set without one, is found under its name and under no other."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.doctor.planted import CAT, CATEGORIES, FAULTS, SKY, as_palette, in_segment, json_of, png, scene, write_set
from upsnet.categories import CategorySet
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import Shapes
from upsnet.doctor.checks import CHECKS
from upsnet.doctor.coco_files import read_coco
from upsnet.doctor.diagnosis import Source, diagnose
from upsnet.doctor.repair import repair
from upsnet.doctor.segments import Use
from upsnet.io.panoptic_png import read_panoptic_png


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_set(root)
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def examine(root, **options):
    sources = {split: Source(read_coco(json_of(root, split), root / split)) for split in ("train", "val")}
    return diagnose(sources, workers=1, progress=False, **options)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(diagnosis):
    return {finding.check.name for finding in diagnosis.findings}


def test_nothing_is_found_where_nothing_is_wrong(clean):
    assert not found(examine(clean))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_a_copy_is_without_errors(root, tmp_path, name):
    plant, expected = FAULTS[name]
    plant(root)
    before = contents(root)
    diagnosis = examine(root)
    assert found(diagnosis) == expected
    if name == "category id twice":
        with pytest.raises(
            ValueError, match=r"--fix: .*'categories' has wrong rows that segments may have, the first: 11"
        ):
            repair(diagnosis, tmp_path / "fixed")
        assert not (tmp_path / "fixed").exists()
        return
    lines = repair(diagnosis, tmp_path / "fixed")
    by_hand = {check for check in expected if CHECKS[check].level == "error" and "--fix" not in CHECKS[check].remedy}
    assert contents(root) == before, "the original is never touched"
    again = examine(tmp_path / "fixed")
    assert {f.check.name for f in again.findings if f.check.level == "error"} == by_hand
    assert any(check in line for line in lines for check in by_hand) or not by_hand
    if not by_hand:
        for split in ("train", "val"):
            data = CocoPanoptic(tmp_path / "fixed" / split, json_of(tmp_path / "fixed", split))
            assert all(data[i].segment_map.any() or "void" in name for i in range(len(data)))


def examine_for(root, **use):
    sources = {split: Source(read_coco(json_of(root, split), root / split), Use(**use)) for split in ("train", "val")}
    return diagnose(sources, workers=1, progress=False)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ({"max_detections": 3, "train_slots": 3}, set()),
        ({"max_detections": 2}, {"over-max-detections"}),
        ({"train_slots": 2}, {"over-train-slots"}),
        ({"train_slots": 2, "crop": (32, 48)}, set()),
        ({"network_size": lambda size: (size[0] // 2, size[1] // 2)}, set()),
        ({"network_size": lambda size: (size[0] // 2 - 1, size[1] // 2)}, {"image-small"}),
        ({"network_size": lambda size: (32, 8)}, {"image-small", "segment-tiny"}),
        ({"best_iou": lambda boxes, size: np.full(len(boxes), 0.29)}, {"anchors-miss"}),
        ({"best_iou": lambda boxes, size: np.full(len(boxes), 0.31)}, set()),
    ],
)
def test_what_training_makes_of_the_data_is_checked(clean, use, expected):
    assert found(examine_for(clean, **use)) == expected


def test_the_anchors_are_asked_about_boxes_at_the_networks_size(clean):
    asked = []

    def best_iou(boxes, size):
        asked.append((boxes.tolist(), size))
        return np.array([0.2, 0.6, 0.8], dtype=np.float32)

    diagnosis = examine_for(clean, network_size=lambda size: (128, 192), best_iou=best_iou)
    assert asked[0] == ([[16, 20, 60, 52], [80, 60, 140, 108], [148, 80, 180, 120]], (128, 192))
    coverage = diagnosis.anchors["train"]
    assert coverage["below_positive_iou"] == pytest.approx(2 / 3)
    assert coverage["below_negative_iou"] == pytest.approx(1 / 3)
    assert [(row["from"], row["instances"]) for row in coverage["by_size"]] == [(32, 12)]


def test_the_figures_are_those_counted_by_hand(clean):
    report = json.loads(json.dumps(examine(clean).to_json()))
    train = report["splits"]["train"]
    assert (train["images"], train["usable_images"], train["segments"], train["instances"]) == (4, 4, 20, 12)
    assert [row["instances"] for row in train["instance_sizes"]] == [0, 0, 12, 0, 0, 0, 0, 0]
    dog = next(row for row in report["classes"] if row["name"] == "dog")
    assert dog["train"] == {"images": 4, "segments": 8, "pixels": 4 * (24 * 30 + 20 * 16)}
    assert dog["val"]["images"] == 2


def test_the_same_files_twice_are_said_once(clean):
    source = Source(read_coco(json_of(clean), clean / "train"))
    diagnosis = diagnose({"train": source, "val": source}, same_data=True, workers=1, progress=False)
    assert found(diagnosis) == {"same-data"}


def test_expected_classes_come_before_those_of_the_data(clean):
    rows = [{**row, "color": None} for row in CATEGORIES.to_json()]
    rows[3]["name"] = "wolf"
    diagnosis = examine(clean, expected=CategorySet.from_json(rows, source="config"))
    assert {(f.check.name, f.split, f.count) for f in diagnosis.findings} == {
        ("categories-differ", "train", 1),
        ("categories-differ", "val", 1),
    }


def test_any_data_set_is_examined_by_its_samples():
    sources = {name: Source(Shapes(6, (64, 96), seed), Use()) for name, seed in (("train", 0), ("val", 0))}
    diagnosis = diagnose(sources, workers=1, progress=False)
    counts = {f.check.name: f.count for f in diagnosis.findings if f.check.level == "error"}
    assert counts == {"duplicate-across-splits": 6}
    assert diagnosis.to_json()["splits"]["train"]["usable_images"] == 6
    sources["val"] = Source(Shapes(3, (64, 96), 1))
    assert not diagnose(sources, workers=1, progress=False).findings.counts()["error"]


def test_a_reader_that_fails_is_an_error_of_that_image():
    class Broken(Shapes):
        def __getitem__(self, index):
            if index == 1:
                raise ValueError("broken.png: no good")
            return super().__getitem__(index)

    findings = list(diagnose({"train": Source(Broken(3, (64, 96)))}, workers=1, progress=False).findings)
    assert findings[0].check.name == "sample-unreadable"
    assert "broken.png" in str(findings[0].first[0])


def test_workers_find_the_same_as_one_process(root):
    document = json.loads(json_of(root).read_text())
    for number in range(4, 40):
        shutil.copyfile(root / f"train/{number % 4}.jpg", root / f"train/{number}.jpg")
        (root / f"annotations/panoptic_train/{number}.png").write_bytes(b"" if number == 30 else png(root).read_bytes())
        document["images"].append({**document["images"][0], "id": number, "file_name": f"{number}.jpg"})
        document["annotations"].append({**document["annotations"][0], "image_id": number, "file_name": f"{number}.png"})
    json_of(root).write_text(json.dumps(document))
    sources = {"train": Source(read_coco(json_of(root), root / "train"))}
    one, two = (diagnose(sources, workers=workers, progress=False) for workers in (1, 2))
    assert found(one) == {"png-unreadable", "duplicate-in-split"}
    assert one.to_json() == two.to_json()
    assert one.twins == two.twins


def test_a_copy_never_goes_where_something_is(clean, tmp_path):
    diagnosis = examine(clean)
    with pytest.raises(FileExistsError, match="is not empty"):
        repair(diagnosis, clean)
    assert repair(diagnosis, tmp_path / "copy") == []
    assert (tmp_path / "copy/train/0.jpg").samefile(clean / "train/0.jpg")
    assert json.loads(json_of(tmp_path / "copy").read_text()) == json.loads(json_of(clean).read_text())


def test_repairs_leave_the_pixels_that_were_right(root, tmp_path):
    FAULTS["stuff in two segments"][0](root)
    FAULTS["EXIF turns it"][0](root)
    as_palette(png(root, "3.png"))
    pixels = np.asarray(Image.open(root / "train/1.jpg").transpose(Image.Transpose.ROTATE_270)).astype(int)
    lines = repair(examine(root), tmp_path / "copy")
    assert any("stored upright" in line for line in lines)
    copied = np.asarray(Image.open(tmp_path / "copy/train/1.jpg")).astype(int)
    assert np.abs(copied - pixels).mean() < 2
    ids, rows = scene()
    for name in ("1.png", "3.png"):
        np.testing.assert_array_equal(read_panoptic_png(png(tmp_path / "copy", name)), ids)
    ids[ids == CAT] = SKY  # the cat was called sky
    np.testing.assert_array_equal(read_panoptic_png(png(tmp_path / "copy", "0.png")), ids)
    document = json.loads(json_of(tmp_path / "copy").read_text())
    assert document["annotations"][0]["segments_info"][0]["area"] == rows[0]["area"] + rows[2]["area"]


def test_a_category_row_that_is_merely_wrong_costs_no_segment(root, tmp_path):
    """`isthing: "yes"`: nobody knows what the segments are, so no copy is made that lacks them."""
    path = json_of(root, "train")
    document = json.loads(path.read_text())
    document["categories"][-1]["isthing"] = "yes"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"--fix: .*isthing='yes', expected 0 or 1; correct them first"):
        repair(examine(root), tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def as_texts(value):
    """A copy in which every whole number is a text."""
    if isinstance(value, dict):
        return {key: as_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_texts(inner) for inner in value]
    return str(value) if isinstance(value, int) else value


def as_fractions(value):
    """A copy in which every whole number is a fraction, as pandas writes them."""
    return json.loads(json.dumps(value), parse_int=float)


def with_mixed_ids(document):
    """A copy whose annotations write the ids of images as texts."""
    return {**document, "annotations": [{**row, "image_id": str(row["image_id"])} for row in document["annotations"]]}


@pytest.mark.parametrize("change", [as_texts, as_fractions, with_mixed_ids])
def test_numbers_in_any_form_are_no_fault_and_the_copy_has_plain_ones(root, tmp_path, change):
    for split in ("train", "val"):
        path = json_of(root, split)
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    diagnosis = examine(root)
    assert not found(diagnosis)
    assert repair(diagnosis, tmp_path / "fixed") == []
    copied = json.loads(json_of(tmp_path / "fixed").read_text())
    for row in copied["images"]:
        assert [type(row[key]) for key in ("height", "width")] == [int, int]
    for row in copied["categories"]:
        assert [type(row[key]) for key in ("id", "isthing")] == [int, int]
    assert copied["annotations"][0]["segments_info"] == scene()[1]
    before, after = (CocoPanoptic(folder / "train", json_of(folder)) for folder in (root, tmp_path / "fixed"))
    for index in range(len(before)):
        np.testing.assert_array_equal(before[index].segment_map, after[index].segment_map)
        np.testing.assert_array_equal(before[index].classes, after[index].classes)


def test_a_crowd_flag_that_means_nothing_is_found_and_no_copy_guesses_it(root, tmp_path):
    in_segment(iscrowd="maybe")(root)
    diagnosis = examine(root)
    assert found(diagnosis) == {"segment-crowd"}
    message = (
        r"--fix: .*panoptic_train\.json: 0\.png \(iscrowd 'maybe' of segment 5, expected 0 or 1\); correct it first"
    )
    with pytest.raises(ValueError, match=message):
        repair(diagnosis, tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()
    with pytest.raises(ValueError, match="iscrowd 'maybe' of segment 5, expected 0 or 1"):
        CocoPanoptic(root / "train", json_of(root))


def test_a_crowd_flag_as_text_is_one(root, tmp_path):
    in_segment(iscrowd="1")(root)
    diagnosis = examine(root)
    assert not found(diagnosis)
    repair(diagnosis, tmp_path / "fixed")
    copied = json.loads(json_of(tmp_path / "fixed").read_text())
    assert copied["annotations"][0]["segments_info"][2]["iscrowd"] == 1


def test_two_images_that_name_one_png_get_a_png_each(root, tmp_path):
    path = json_of(root, "train")
    document = json.loads(path.read_text())
    document["annotations"][1]["file_name"] = document["annotations"][0]["file_name"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="belongs to two annotations, expected one PNG for each image"):
        CocoPanoptic(root / "train", path)
    diagnosis = examine(root)
    assert "png-named-twice" in found(diagnosis)
    repair(diagnosis, tmp_path / "fixed")
    copied = json.loads(json_of(tmp_path / "fixed", "train").read_text())
    names = [row["file_name"] for row in copied["annotations"]]
    assert len(set(names)) == len(names)
    CocoPanoptic(tmp_path / "fixed" / "train", json_of(tmp_path / "fixed", "train"))


def test_pngs_that_differ_in_the_suffix_keep_their_own_content(root, tmp_path):
    path = json_of(root, "train")
    document = json.loads(path.read_text())
    first, second = document["annotations"][:2]
    folder = path.with_suffix("")
    (folder / first["file_name"]).rename(folder / "x.webp")
    (folder / second["file_name"]).rename(folder / "x.png")
    first["file_name"], second["file_name"] = "x.webp", "x.png"
    path.write_text(json.dumps(document))
    before = CocoPanoptic(root / "train", path)
    repair(examine(root), tmp_path / "fixed")
    after = CocoPanoptic(tmp_path / "fixed" / "train", json_of(tmp_path / "fixed", "train"))
    for index in range(2):
        np.testing.assert_array_equal(before[index].segment_map > 0, after[index].segment_map > 0)


def test_segments_info_in_the_wrong_row_does_no_harm(root, tmp_path):
    path = json_of(root, "train")
    document = json.loads(path.read_text())
    document["info"] = {"segments_info": [{"id": 1}]}
    document["images"][0]["segments_info"] = [{"id": 1, "bbox": [0, 0, 1, 1]}]
    document["categories"][0]["segments_info"] = []
    path.write_text(json.dumps(document))
    repair(examine(root), tmp_path / "fixed")
    CocoPanoptic(tmp_path / "fixed" / "train", json_of(tmp_path / "fixed", "train"))


def test_a_copy_that_fails_leaves_nothing(root, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("upsnet.doctor.repair.link_or_copy", fail)
    with pytest.raises(OSError, match="No space left"):
        repair(examine(root), tmp_path / "new" / "fixed")
    assert not list((tmp_path / "new").iterdir())
