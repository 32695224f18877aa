import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.panoptic_png import id_to_rgb, read_panoptic_png, rgb_to_id, write_panoptic_png
from upsnet.io.predictions import PanopticWriter, write_samples


@pytest.fixture
def root(tmp_path):
    data = Shapes(3, (48, 64))
    write_samples((data[i] for i in range(3)), CATEGORIES, tmp_path, "train")
    return tmp_path


def open_root(root):
    return CocoPanoptic(root / "train", root / "annotations" / "panoptic_train.json")


def edit(root, change):
    path = root / "annotations" / "panoptic_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_is_written_is_read_back(root):
    data, original = open_root(root), Shapes(3, (48, 64))
    assert data.categories == CATEGORIES
    for i in range(3):
        assert data.size(i) == (48, 64)
        for name in ("image", "segment_map", "classes", "is_crowd"):
            np.testing.assert_array_equal(getattr(data[i], name), getattr(original[i], name))


def test_ids_up_to_24_bits_survive(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], dtype=np.int32)
    write_panoptic_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)
    np.testing.assert_array_equal(rgb_to_id(id_to_rgb(ids)), ids)
    with pytest.raises(ValueError, match="16777215"):
        id_to_rgb(np.array([[2**24]]))


def test_a_photograph_is_read_smaller_and_its_map_whole(root):
    path = root / "train" / "000000.png"
    jpeg = path.with_suffix(".jpg")
    Image.open(path).save(jpeg, quality=95)
    jpeg.rename(path)  # Pillow looks at what a file holds
    sample = open_root(root).read(0, 2)
    assert sample.image.shape == (24, 32, 3)
    assert sample.size == (48, 64)
    assert open_root(root).read(1, 2).image.shape == (48, 64, 3)


def test_a_png_id_that_is_not_in_the_json_is_named(root):
    edit(root, lambda d: d["annotations"][1]["segments_info"].pop())
    with pytest.raises(ValueError, match=r"000001\.png: segment id \d+ is not in"):
        open_root(root)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0]["segments_info"][0].update(category_id=99), "category_id 99"),
        (lambda d: d["annotations"][0].update(image_id=77), "image_id"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "two annotations"),
        (lambda d: d["annotations"][0]["segments_info"].append(d["annotations"][0]["segments_info"][0]), "twice"),
        (lambda d: d["images"][1].pop("height"), "'000001.png' lacks height"),
        (lambda d: d["images"].append({**d["images"][1], "file_name": "x.png"}), "image id 1 appears twice"),
        (lambda d: d.pop("categories"), "no categories"),
        (lambda d: d.update(annotations=[]), "no annotated image"),
        (lambda d: d["annotations"][0]["segments_info"][0].pop("category_id"), "category_id"),
    ],
)
def test_a_contradiction_in_the_json_is_an_error_that_names_the_file(root, change, message):
    edit(root, change)
    with pytest.raises(ValueError, match=message) as error:
        open_root(root)
    assert "panoptic_train.json" in str(error.value)


def test_predictions_never_leave_their_folder_nor_overwrite_each_other(tmp_path):
    writer = PanopticWriter(tmp_path / "p.json", CATEGORIES)
    ids = np.zeros((2, 2), dtype=np.int32)
    writer.add(1, "a/x.jpg", ids, [])
    for name in ("a/x.png", "/x.jpg", "../x.jpg"):
        with pytest.raises(ValueError, match=r"expected a relative path below its folder|another image has this name"):
            writer.add(2, name, ids, [])


def test_memory_grows_by_two_kilobytes_an_image_however_long_its_rows(root):
    def repeat(document):
        fields = {"category_id": 1, "area": 10**6, "iscrowd": 0, "bbox": [1, 2, 3, 4]}
        rows = [{"id": i, **fields} for i in range(10**6, 10**6 + 35)]
        document["images"] = [
            {"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64, "coco_url": "x" * 200} for i in range(200)
        ]
        document["annotations"] = [{"image_id": i, "file_name": f"{i}.png", "segments_info": rows} for i in range(200)]

    edit(root, repeat)
    open_root(root)
    tracemalloc.start()
    try:
        data = open_root(root)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = (root / "annotations" / "panoptic_train.json").stat().st_size
    assert len(data) == 200
    assert kept < 200 * 2100
    assert peak < 2 * size + 200 * 6000, "the text, and never all rows at once"


def test_missing_files_are_named(root):
    (root / "train" / "000000.png").unlink()
    (root / "annotations" / "panoptic_train" / "000001.png").unlink()
    data = open_root(root)
    with pytest.raises(FileNotFoundError, match=r"train/000000\.png"):
        data[0]
    with pytest.raises(FileNotFoundError, match=r"panoptic_train/000001\.png"):
        data[1]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CocoPanoptic(root / "nowhere", root / "annotations" / "panoptic_train.json")


def test_an_image_of_another_size_than_its_truth_is_refused(root):
    write_panoptic_png(root / "annotations" / "panoptic_train" / "000000.png", np.zeros((4, 4), dtype=np.int32))
    with pytest.raises(ValueError, match=r"000000\.png: size \(48, 64\), expected \(4, 4\)"):
        open_root(root)[0]


def test_real_coco_is_read(real_data):
    folder = real_data / "coco_sample"
    data = CocoPanoptic(folder / "val2017", next((folder / "annotations").glob("panoptic_*.json")))
    samples = [data[i] for i in range(len(data))]
    assert (data.categories.num_stuff, data.categories.num_things) == (53, 80)
    assert sum(len(s.classes) for s in samples) == 50
    assert sum(int(s.is_crowd.sum()) for s in samples) == 3
