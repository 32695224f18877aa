"""PQ of parts of a data set."""

import numpy as np
import pytest

from tests.metrics.test_comparison import CATEGORIES, FOUND, MISSES, SHIFTED
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable
from upsnet.metrics.slices import read_attributes


def meter_of(*images):
    meter = PanopticQuality(CATEGORIES)
    for key, (truth, predicted) in enumerate(images):
        tables = SegmentTable.of(truth[1]), SegmentTable.of(predicted[1])
        meter.update(key, np.array(truth[0]), tables[0], np.array(predicted[0]), tables[1], f"{key}.png")
    return meter


def wide(ids, times):
    """A map enlarged to the right."""
    return np.repeat(ids, times, axis=1)


def test_object_sizes_by_hand():
    truth = [[1] * 1023 + [2] * 1024 + [3] * 9216], [1, 1, 2]
    predicted = [[1] * 1023 + [0] * 1024 + [2] * 9000 + [3] * 216], [1, 2, 1]
    found = meter_of((truth, predicted)).compute()["slices"]["object_size"]
    rows = {name: (row["segments"], row["All"]["pq"], row["All"]["n"]) for name, row in found.items()}
    assert rows == {
        "small": (1, pytest.approx(100 / 1.5), 1),  # a match, and a spurious prediction of 216 pixels
        "medium": (1, 0, 1),
        "large": (1, pytest.approx(100 * 9000 / 9216), 1),
    }
    assert found["small"]["interval"] is None, "one image"


def test_crowding_and_image_size_by_hand():
    many = [list(range(1, 12))], [0, *[1] * 10]
    images = [(FOUND, FOUND), (many, MISSES and ([[1] * 11], [0])), ((wide(FOUND[0], 300_000), FOUND[1]),) * 2]
    found = meter_of(*images).compute()["slices"]
    assert {name: row["images"] for name, row in found["crowding"].items()} == {"1 to 4": 2, "10 to 19": 1}
    assert found["crowding"]["10 to 19"]["Things"]["pq"] == 0
    assert found["crowding"]["1 to 4"]["All"]["pq"] == 100
    assert {name: row["images"] for name, row in found["image_size"].items()} == {"below 0.25 MP": 2, "1 to 4 MP": 1}


def test_a_slice_with_all_images_scores_as_the_data_set_does(tmp_path):
    rng = np.random.default_rng(0)
    meter = meter_of(*[(FOUND, [FOUND, SHIFTED, MISSES][i]) for i in rng.integers(0, 3, 40)])
    (tmp_path / "s.csv").write_text("image,set\n" + "".join(f"{i},all\n" for i in range(40)))
    result = meter.compute(read_attributes(tmp_path / "s.csv"))
    found = result["slices"]["set"]["all"]
    for group in ("All", "Things", "Stuff"):
        assert found[group] == pytest.approx(result[group])
        for name in ("pq", "sq", "rq"):
            assert found["interval"][group][name] == pytest.approx(result["interval"][group][name], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns .*, expected `image` and at least one attribute"),
        ("image\n0,\n", "expected `image` and at least one attribute"),
        ("name,time\n0,day\n", "expected `image` and at least one attribute"),
        ("image,a,a\n0,1,2\n", "all different"),
        ("image,crowding\n0,1\n", "column crowding has the name of a built-in attribute"),
        ("image,time\n0,day,1\n", "row 2 has 3 cells"),
        ("image,time\n0,day\n\n0,night\n", "row 4: image '0' appears twice"),
        ("image,time\n,day\n", "row 2: the column `image` is empty, expected a file name"),
        ("image,time\n0,da\0y\n", "column 'time' has .*, expected names and values of 1 to 200 printable"),
        ("image,time\n", "no row below the header"),
        ('image,time\n0,"day\n', "cannot be read as CSV"),
        (
            "image,time\n" + "".join(f"{i},{i}\n" for i in range(101)),
            "column time has 101 values, expected at most 100",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_named(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_attributes(tmp_path / "s.csv")
    assert str(error.value).startswith(f"{tmp_path / 's.csv'}: ")


def test_a_csv_of_other_images_is_refused_and_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("image,time\nother.png,day\n")
    with pytest.raises(
        ValueError, match=r"names none of the 1 images: the first image is 'other\.png' here and '0\.png'"
    ):
        meter_of((FOUND, FOUND)).compute(read_attributes(path))
    path.write_bytes(b"image,time\n\xff,day\n")
    with pytest.raises(ValueError, match="cannot be read as CSV in UTF-8"):
        read_attributes(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_attributes(tmp_path / "none.csv")


def test_a_byte_order_mark_spaces_and_empty_cells_are_no_values(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("\ufeffimage, time ,place\n0.png, day ,\n1.png,,here\n")
    found = read_attributes(path)
    assert found.values == {"time": {"0.png": "day"}, "place": {"1.png": "here"}}


def test_an_attribute_without_a_value_is_left_out(tmp_path):
    path = tmp_path / "s.csv"
    for text, expected in (
        ("image,note,time\n0,,day\n", {"time": {"day": 1}}),
        ("image,note,time\nother.png,x,\n0,,day\n", {"time": {"day": 1}}),
        ("image,note\n0,\n", {}),
    ):
        path.write_text(text)
        found = meter_of((FOUND, FOUND)).compute(read_attributes(path))["slices"]
        own = {
            name: {label: row["images"] for label, row in found[name].items()} for name in found if name in "note time"
        }
        assert own == expected


def test_quoted_cells_may_have_several_lines(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text('image,time\r\n"0","day\nand night"\r\n1,early\u2028late\r\n', newline="")
    assert read_attributes(path).values == {"time": {"0": "day and night", "1": "early late"}}
