"""The scripts in datasets/ that build data sets."""

import hashlib
import io
import json
import zipfile

import numpy as np
from PIL import Image

from upsnet.convert.nuclei import NAMES
from upsnet.data.coco import CocoPanoptic

ALL_NAMES = [name for names in NAMES.values() for name in names]


def add(archive, path, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    archive.writestr(path, buffer.getvalue())


def make_archive(path, ids):
    """A competition archive: RGBA images of 16 x 16 and two masks each, one pixel of which overlaps."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(ids):
            long = name + hashlib.sha256(name.encode()).hexdigest()[:52]
            add(archive, f"stage1_train/{long}/images/{long}.png", np.full((16, 16, 4), i, np.uint8))
            for mask, (a, b) in (("a", (0, 5)), ("b", (4, 9))):
                pixels = np.zeros((16, 16), np.uint8)
                pixels[2, a:b] = 255
                add(archive, f"stage1_train/{long}/masks/{mask}{long[1:]}.png", pixels)


def test_nuclei_are_built_from_the_archive(run_tool, tmp_path):
    assert len(set(ALL_NAMES)) == 200
    make_archive(tmp_path / "stage1_train.zip", ALL_NAMES)
    script = "datasets/prepare_nuclei.py"
    code, _, err = run_tool(script, "--archive", tmp_path / "stage1_train.zip", "--output", tmp_path / "nuclei")
    assert code == 0, err
    for split, count in (("train", 160), ("val", 40)):
        data = CocoPanoptic(tmp_path / "nuclei" / split, tmp_path / "nuclei" / "annotations" / f"panoptic_{split}.json")
        assert len(data) == count
        assert [data.categories[c].name for c in data[0].classes] == ["background", "nucleus", "nucleus"]
        assert np.bincount(data[0].segment_map.ravel()).tolist() == [0, 16 * 16 - 9, 5, 4]


def test_an_incomplete_archive_is_named(run_tool, tmp_path):
    make_archive(tmp_path / "half.zip", ALL_NAMES[:100])
    (tmp_path / "text.zip").write_text("no")
    for name, part in (("half.zip", "lacks 100 of 200"), ("text.zip", "no such zip file")):
        code, _, err = run_tool("datasets/prepare_nuclei.py", "--archive", tmp_path / name, "--output", tmp_path / "n")
        assert code == 2
        assert part in err
        assert err.count("\n") == 1
    assert not (tmp_path / "n").exists()


def test_the_names_are_those_of_the_published_figure(real_data):
    found = []
    for split in ("train", "val"):
        document = json.loads((real_data / "nuclei" / "annotations" / f"panoptic_{split}.json").read_text())
        found += [row["file_name"][:12] for row in document["images"]]
    assert found == ALL_NAMES


def test_shapes_are_written_to_the_disk(run_tool, tmp_path):
    args = ("--output", tmp_path / "shapes", "--num-images", 2, "--size", 32, 48)
    code, _, err = run_tool("datasets/prepare_shapes.py", *args)
    assert code == 0, err
    data = CocoPanoptic(tmp_path / "shapes" / "train", tmp_path / "shapes" / "annotations" / "panoptic_train.json")
    assert [data.size(i) for i in range(2)] == [(32, 48)] * 2
