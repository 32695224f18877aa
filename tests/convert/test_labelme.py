"""LabelMe's files."""

import base64
import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.labelme import LabelMe
from upsnet.convert.source import STRICT, Tolerance

SKIP_BAD = Tolerance(bad=True)
SIZE = (20, 30)
SQUARE = [[2, 2], [6, 2], [6, 6], [2, 6]]


def opened(folder, shapes, tolerance=STRICT, size=SIZE):
    """LabelMe's file of one image; shapes as in `forms.labelme`, or objects."""
    forms.save(folder / "p.png", np.zeros((*size, 3), np.uint8))
    document = forms.labelme("p.png", size, [shape for shape in shapes if isinstance(shape, tuple)])
    document["shapes"] += [shape for shape in shapes if isinstance(shape, dict)]
    (folder / "p.json").write_text(json.dumps(document))
    return LabelMe(folder, [], ClassOptions(), tolerance)


def area(top, left, bottom, right):
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


def moved(x):
    return [[left + x, top] for left, top in SQUARE]


def test_a_group_is_one_instance_of_each_label(tmp_path):
    """The highest part counts for the place of an instance in the order of drawing."""
    shapes = [("cat", "polygon", SQUARE, 1), ("dog", "polygon", moved(5), 1), ("dog", "polygon", moved(20))]
    shapes += [("cat", "polygon", moved(10), 1), ("cat", "polygon", moved(15), 2)]
    found = more.masks(opened(tmp_path, shapes))
    assert [name for name, _ in found] == ["dog", "dog", "cat", "cat"]
    expected = [area(2, 7, 6, 11), area(2, 22, 6, 26), area(2, 2, 6, 6) | area(2, 12, 6, 16), area(2, 17, 6, 21)]
    for (_, mask), right in zip(found, expected, strict=True):
        assert np.array_equal(mask, right)


def test_shapes_take_no_memory_of_the_whole_image(tmp_path):
    shapes = [("cat", "polygon", [[i, i], [i + 3, i], [i + 3, i + 3]], i % 7 or None) for i in range(200)]
    source = opened(tmp_path, shapes, size=(1000, 1000))
    tracemalloc.start()
    layers = more.read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(layers.regions) == 6 + 29
    assert peak < 20_000_000, "200 masks have 200 MB"


CIRCLE = [[10, 8], [13, 12]]
"""Its radius is 5."""


def test_a_circle_is_drawn_around_its_first_point(tmp_path):
    (_, mask), (_, cut) = more.masks(opened(tmp_path, [("cat", "circle", CIRCLE), ("cat", "circle", [[0, 0], [4, 0]])]))
    y, x = np.mgrid[:20, :30] + 0.5
    assert np.array_equal(mask, (x - 10) ** 2 + (y - 8) ** 2 <= 25)
    assert np.array_equal(cut, x**2 + y**2 <= 16)


def png(size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


MISTAKES = [
    (("cat", "circle", [[10, 8], [500, 8]]), "ellipse with x from -480 to 500, expected 0 to 30", None),
    (("cat", "circle", [[10, 8], [10, 8]]), "ellipse with radii 0 and 0, expected positive ones", None),
    (("cat", "circle", CIRCLE, [1]), "group_id [1], expected a whole number or a text", (3, 5, 13, 15)),
    (("cat", "polygon", SQUARE, 1.5), "group_id 1.5, expected a whole number or a text", (2, 2, 6, 6)),
    (("cat", "rotation", SQUARE[:3]), "rotation of 3 points, expected 4; draw it again", (2, 2, 6, 6)),
    (("cat", "rectangle", SQUARE[:3]), "rectangle of 3 points, expected 2 or 4; draw it again", (2, 2, 6, 6)),
    (("cat", "blob", SQUARE), "blob 'cat': shape type 'blob', expected circle, mask", (2, 2, 6, 6)),
    (("a\n", "polygon", SQUARE), "polygon 'a\\n': label 'a\\n' is no class of", (2, 2, 6, 6)),
    (
        {"label": "cat", "shape_type": "mask", "points": [[3, 4], [6, 8]], "mask": png((4000, 4000))},
        "mask of 4000 x 4000 at (3, 4), expected it inside the image of 30 x 20", (4, 3, 9, 7),
    ),
    (
        {"label": "cat", "shape_type": "mask", "points": [[-1, 4], [6, 8]], "mask": png((8, 4))},
        "mask of 8 x 4 at (-1, 4), expected it inside", (4, 0, 9, 7),
    ),
    (
        {"label": "cat", "shape_type": "mask", "points": [[1, 4], [6, 8]], "mask": "!"},
        "mask: data cannot be read", (4, 1, 9, 7),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "part", "box"), MISTAKES)
def test_a_mistake_of_a_shape_is_named_and_its_pixels_are_unknown(tmp_path, shape, part, box):
    shapes = [("dog", "polygon", SQUARE), shape]
    more.error_of(lambda: more.read(opened(tmp_path, shapes)), f"{tmp_path}/p.json: shape 1, ", part)
    layers = more.read(opened(tmp_path, shapes, SKIP_BAD))
    assert len(layers.regions) == 1
    assert len(layers.mistakes) == 1
    assert part in layers.mistakes[0]
    assert box is None or layers.unknown == [box]


def test_a_mask_that_is_larger_than_the_image_is_not_decoded(tmp_path):
    shape = {"label": "cat", "shape_type": "mask", "points": [[0, 0], [9, 9]], "mask": png((4000, 4000))}
    source = opened(tmp_path, [shape], SKIP_BAD)
    tracemalloc.start()
    layers = more.read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "mask of 4000 x 4000" in layers.mistakes[0]
    assert peak < 2_000_000
