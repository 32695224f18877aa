"""Each form of annotation, there and back."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.convert import forms
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.panoptic_png import id_to_rgb


@pytest.fixture(scope="module")
def samples():
    """Six pictures with things, stuff, void and crowds."""
    data = Shapes(40, (64, 96))
    chosen = sorted((data[i] for i in range(40)), key=lambda s: (not s.is_crowd.any(), s.segment_map.all()))
    found = [*chosen[:2], *[s for s in chosen if not s.is_crowd.any()][:4]]
    assert found[0].is_crowd.any()
    assert any((s.segment_map == 0).any() for s in found)
    return found


@pytest.mark.parametrize("compressed", [True, False])
def test_coco_run_lengths_and_a_stuff_map_come_back_exactly(samples, run_tool, tmp_path, compressed):
    forms.write_coco(samples, CATEGORIES, tmp_path, lambda m: forms.run_lengths(m, compressed=compressed))
    for s in samples:
        forms.save(tmp_path / "stuff" / s.file_name, forms.stuff_map(s, CATEGORIES, offset=5))
    code, out, err = run_tool(
        "datasets/convert.py", "coco", "--annotations", tmp_path / "annotations.json", "--images", tmp_path,
        "--semantic", tmp_path / "stuff", "--stuff", "5=sky,6=grass,7=road", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "overlap: 0 pixels" in out
    data = forms.opened(tmp_path / "out")
    assert [c.id for c in data.categories.categories] == [1, 2, 3, 4, 5, 6, 7]
    for i, sample in enumerate(samples):
        assert data[i].image_id == sample.image_id
        forms.require_equal(data[i], sample, data.categories, CATEGORIES)
        source, placed = (folder / sample.file_name for folder in (tmp_path, tmp_path / "out" / "train"))
        assert source.stat().st_ino == placed.stat().st_ino, "pictures are linked"


def test_several_processes_and_two_splits_give_the_same_files(samples, run_tool, tmp_path):
    many = [s for s in samples for _ in range(2)]
    many = [type(s)(s.image, s.segment_map, s.classes, s.is_crowd, i, f"{i}.png") for i, s in enumerate(many)]
    forms.write_coco(many, CATEGORIES, tmp_path, forms.outlines)
    for workers in (1, 2):
        code, _, err = run_tool(
            "datasets/convert.py", "coco", "--annotations", tmp_path / "annotations.json", "--images", tmp_path,
            "--background", "rest", "--split-val", 0.25, "--workers", workers, "--output", tmp_path / f"out{workers}",
        )  # fmt: skip
        assert code == 0, err
    assert len(forms.opened(tmp_path / "out1", "train")) == 9
    assert len(forms.opened(tmp_path / "out1", "val")) == 3
    files = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (tmp_path / "out1", tmp_path / "out2")]
    assert files[0] == files[1]
    for name in files[0]:
        if (tmp_path / "out1" / name).is_file():
            assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


@pytest.mark.parametrize("kind", ["grey8", "grey16", "palette", "colours"])
def test_id_maps_of_every_kind_come_back_exactly(samples, run_tool, tmp_path, kind):
    things = np.array([s.classes >= CATEGORIES.num_stuff for s in samples], dtype=object)
    forms.write_images(samples, tmp_path / "images")
    rows = CATEGORIES.to_json()
    for s, is_thing in zip(samples, things, strict=True):
        ids = np.concatenate([[0], np.where(is_thing & ~s.is_crowd, np.arange(len(is_thing)) + 1, 0)])[s.segment_map]
        values = np.concatenate([[0], s.classes + 1]).astype(np.uint8)[s.segment_map]
        if kind == "colours":
            ids = id_to_rgb(ids * 65793 % 2**24)
            values = np.array([[0] * 3, *(r["color"] for r in rows)], np.uint8)[values]
        elif kind == "grey16":
            ids = (ids * 700).astype(np.uint16)
        else:
            ids = ids.astype(np.uint8)
        for name, pixels in (("instances", ids), ("classes", values)):
            path = forms.save(tmp_path / name / s.file_name, pixels)
            if kind == "palette":
                picture = Image.fromarray(pixels, mode="P")
                picture.putpalette(list(range(255, -1, -1)) * 3)
                picture.save(path)
    for channel, row in enumerate(rows):
        row["value"] = row["color"] if kind == "colours" else channel + 1
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(rows))
    code, _, err = run_tool(
        "datasets/convert.py", "id-pngs", "--images", tmp_path / "images", "--instances", tmp_path / "instances",
        "--semantic", tmp_path / "classes", "--classes", tmp_path / "classes.yaml", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    data = forms.opened(tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    for sample in (data[i] for i in range(len(data))):
        forms.require_equal(sample, by_name[sample.file_name], data.categories, CATEGORIES)


def test_labelme_shapes_groups_and_painted_masks(run_tool, tmp_path):
    forms.save(tmp_path / "a.png", np.full((20, 30, 3), 90, np.uint8))
    forms.save(tmp_path / "empty.png", np.full((20, 30, 3), 90, np.uint8))
    forms.save(tmp_path / "unlabelled.png", np.full((20, 30, 3), 90, np.uint8))
    blob = np.zeros((20, 30), bool)
    blob[15:18, 20:24] = blob[18, 22] = True
    document = forms.labelme(
        "..\\photos\\a.png", (20, 30),
        [
            ("cat", "rectangle", [[2, 3], [8, 9]], 1), ("cat", "rectangle", [[14, 9], [12, 5]], 1),
            ("dog", "circle", [[20, 8], [23, 8]]), ("dog", "polygon", [[0, 0], [30, 0], [30, 2], [0, 2]]),
            ("tail", "line", [[1, 1], [2, 2]]), ("eye", "point", [[1, 1]]), ("eye", "point", [[2, 1]]),
        ],
    )  # fmt: skip
    document["shapes"].append({"label": "cat", "group_id": None, **forms.painted(blob)})
    (tmp_path / "a.json").write_text(json.dumps(document | {"imagePath": "a.png"}))
    (tmp_path / "empty.json").write_text(json.dumps(forms.labelme("empty.png", (20, 30), [])))
    args = ("labelme", "--annotations", tmp_path, "--background", "lawn", "--output", tmp_path / "out")
    code, out, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    for part in ("2 shapes of type point", "1 shapes of type line ", "1 images without annotation", "unlabelled.png"):
        assert part in out
    data = forms.opened(tmp_path / "out")
    assert [(c.id, c.name) for c in data.categories.categories] == [(3, "lawn"), (1, "cat"), (2, "dog")]
    ids = data[0].segment_map
    assert [data.categories[c].name for c in data[0].classes] == ["lawn", "cat", "dog", "dog", "cat"]
    joined = np.zeros((20, 30), bool)
    joined[3:9, 2:8] = joined[5:9, 12:14] = True
    assert np.array_equal(ids == 2, joined)
    assert np.array_equal(ids == 5, blob)
    y, x = np.mgrid[:20, :30] + 0.5
    assert np.array_equal(ids == 3, (x - 20) ** 2 + (y - 8) ** 2 <= 9)
    assert (ids[:2] == 4).all()
    assert (data[1].segment_map == 1).all()


def test_photographs_are_written_upright_where_the_annotation_is(run_tool, tmp_path):
    """LabelMe follows the EXIF orientation; COCO's truth lies on the stored pixels, unless the size says otherwise."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    exif = Image.Exif()
    for orientation, size in ((6, (30, 20)), (3, (20, 30))):  # on its side; upside down, which the size does not show
        exif[0x0112] = orientation
        upright = np.rot90(pixels, -1) if orientation == 6 else pixels[::-1, ::-1]
        photos = tmp_path / str(orientation)
        photos.mkdir()
        Image.fromarray(pixels).save(photos / "a.jpg", exif=exif, quality=95)
        box = np.argwhere(upright[..., 0] == 255)
        (y1, x1), (y2, x2) = box.min(0).tolist(), (box.max(0) + 1).tolist()
        shapes = [("white", "rectangle", [[x1, y1], [x2, y2]])]
        (photos / "a.json").write_text(json.dumps(forms.labelme("a.jpg", size, shapes)))
        document = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
            "categories": [{"id": 1, "name": "white"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            ],
        }
        (tmp_path / "coco.json").write_text(json.dumps(document))
        for form, source in (("labelme", photos), ("coco", tmp_path / "coco.json")):
            output = tmp_path / f"{form}{orientation}"
            args = (form, "--annotations", source, "--images", photos, "--output", output, "--background", "b")
            code, out, err = run_tool("datasets/convert.py", *args)
            assert code == 0, err
            turned = form == "labelme" or orientation == 6
            assert ("written so" if turned else "sizes do not confirm") in out.replace("\n", " ")
            sample = forms.opened(output)[0]
            assert sample.size == (size if turned else (20, 30))
            assert np.abs(sample.image[..., 0].astype(int) - 255 * (sample.segment_map == 2)).max() < 30 or not turned


def test_masks_in_folders_or_with_the_picture_in_their_names(samples, run_tool, tmp_path):
    for i, name in enumerate(("folders", "names")):
        kept = [s for s in samples if not s.is_crowd.any()]
        forms.write_images(kept, tmp_path / name / "images")
        for s in kept:
            stem = s.file_name[:-4]
            for k, (category, pixels, _) in enumerate(forms.things_of(s, CATEGORIES)):
                where = f"{stem}/{category.name}_{k}.png" if i == 0 else f"{stem}_{category.name}_{k}.png"
                forms.save(tmp_path / name / "masks" / where, pixels)
        out = tmp_path / name / "out"
        args = ("--images", tmp_path / name / "images", "--masks", tmp_path / name / "masks", "--output", out)
        code, _, err = run_tool("datasets/convert.py", "masks", *args)
        assert code == 0, err
        data = forms.opened(out)
        for s, made in zip(sorted(kept, key=lambda s: s.file_name), (data[j] for j in range(len(data))), strict=True):
            things = np.concatenate([[False], s.classes >= CATEGORIES.num_stuff])[s.segment_map]
            is_thing = np.concatenate([[False], made.classes >= data.categories.num_stuff])[made.segment_map]
            assert np.array_equal(is_thing, things)
            theirs = [c.name for c, _, _ in forms.things_of(s, CATEGORIES)]
            assert sorted(data.categories[c].name for c in made.classes if c) == sorted(theirs)


def test_one_classes_file_makes_train_and_val_agree(run_tool, tmp_path):
    for name, labels in (("train", "ab"), ("val", "b"), ("test", "c")):
        forms.save(tmp_path / name / "p.png", np.zeros((8, 8, 3), np.uint8))
        shapes = [(label, "rectangle", [[i, 0], [i + 1, 4]]) for i, label in enumerate(labels)]
        (tmp_path / name / "p.json").write_text(json.dumps(forms.labelme("p.png", (8, 8), shapes)))

    def run(name, *more):
        args = ("labelme", "--annotations", tmp_path / name, "--output", tmp_path / "out", "--split", name, *more)
        return run_tool("datasets/convert.py", *args)

    assert run("train")[0] == 0
    code, _, err = run("val")
    assert code == 2
    assert "add --classes" in err
    classes = ("--classes", tmp_path / "out" / "classes.yaml")
    assert run("val", *classes)[0] == 0
    forms.opened(tmp_path / "out", "val").categories.require(forms.opened(tmp_path / "out").categories, source="train")
    code, _, err = run("test", *classes)
    assert code == 2
    assert "p.json: shape 0, rectangle 'c': label 'c' is no class of" in err
    assert run("train", *classes)[0] == 2, "what is there is not overwritten"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["annotations", "classes.yaml", "train", "val"]
