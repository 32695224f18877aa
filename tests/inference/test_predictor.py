import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.upsnet.test_upsnet import lively
from upsnet import PanopticPredictor, Segment
from upsnet.data.loader import InferenceInput
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.export.exporter import export_checkpoint
from upsnet.inference.drawing import comparison, grid, overlay
from upsnet.io.predictions import prediction_rows, truth_as_prediction


@pytest.fixture
def predictor(model, config, dataset):
    return PanopticPredictor(lively(model), dataset.categories, InferenceInput(config.data))


def check(prediction, size):
    assert prediction.segment_ids.shape == size
    assert prediction.segment_ids.dtype == np.int32
    assert {s.id for s in prediction.segments} == set(np.unique(prediction.segment_ids)) - {0}
    for segment in prediction.segments:
        mask = prediction.segment_ids == segment.id
        assert segment.area == mask.sum()
        y, x = mask.nonzero()
        assert segment.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        category = CATEGORIES[CATEGORIES.channels[segment.category_id]]
        assert (segment.category_name, segment.is_thing) == (category.name, category.is_thing)
        assert segment.is_thing or segment.score == 1.0


def test_every_kind_of_input_gives_the_same(predictor, tmp_path):
    image = Shapes(1, (50, 70))[0].image
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    inputs = [path, str(path), path.read_bytes(), Image.fromarray(image), image, image[::-1][::-1], tensor]
    found = [*map(predictor, inputs), *predictor(inputs), *predictor(tuple(inputs))]
    assert len(found) == 3 * len(inputs)
    for prediction in found:
        check(prediction, (50, 70))
        np.testing.assert_array_equal(prediction.segment_ids, found[0].segment_ids)
    assert predictor([]) == []
    grey = np.repeat(image[..., :1], 3, axis=2)
    np.testing.assert_array_equal(predictor(image[..., 0]).segment_ids, predictor(grey).segment_ids)


def test_the_bytes_of_a_jpeg_predict_as_the_file_does(make_config, model, dataset, tmp_path):
    """Both are read at a part of their size where the network works on a smaller one."""
    config = make_config("data.test_short_side=32")
    predictor = PanopticPredictor(lively(model), dataset.categories, InferenceInput(config.data))
    Image.fromarray(Shapes(1, (128, 192))[0].image).save(tmp_path / "a.jpg")
    expected = predictor(tmp_path / "a.jpg")
    check(expected, (128, 192))
    np.testing.assert_array_equal(predictor((tmp_path / "a.jpg").read_bytes()).segment_ids, expected.segment_ids)


JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("image", "kind", "came"),
    [
        (None, TypeError, "^None, expected"),
        (7, TypeError, "an object of type int"),
        ({"image": 1}, TypeError, "of type dict"),
        (io.BytesIO(JPEG), TypeError, "of type BytesIO"),
        ((x for x in (JPEG,)), TypeError, "of type generator"),
        ([JPEG, None], TypeError, r"^images\[1\]: None, expected"),
        ([[JPEG]], TypeError, r"images\[0\]: an object of type list"),
        (np.float32(1), TypeError, "of type float32"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r"array of uint8 \(0, 8, 3\) has no pixels"),
        (np.zeros((8, 0), np.uint8), ValueError, "has no pixels"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), ValueError, "has no pixels"),
        (Image.new("RGB", (0, 5)), ValueError, r"PIL image has no pixels"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"array of uint8 \(4, 4, 4\), expected uint8 \[H, W, 3\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError, r"expected uint8 \[H, W, 3\]"),
        (np.array(None), ValueError, r"array of object \(\), expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4), bool), ValueError, r"array of bool \(4, 4\), expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "other values need a model trained with data.value_range"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"\(4, 4, 3\), expected torch.uint8 \[3, H, W\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, r"expected torch.uint8 \[3, H, W\]"),
        (torch.zeros(3, 4, 4), ValueError, r"tensor of torch.float32 \(3, 4, 4\), expected torch.uint8"),
        ("https://example.org/a.jpg", ValueError, "'https://example.org/a.jpg' is a URL"),
        (b"no image", ValueError, "image of 8 bytes: cannot be read as an image"),
        (b"", ValueError, "image of 0 bytes: cannot be read as an image"),
        (JPEG[:200], ValueError, "image of 200 bytes: cannot be read as an image"),
        ("nowhere.jpg", FileNotFoundError, r"nowhere\.jpg: no such image"),
    ],
)
def test_what_is_no_image_is_named_with_what_is_taken(predictor, image, kind, came):
    with pytest.raises(kind, match=came) as error:
        predictor(image)
    assert "\n" not in str(error.value)
    assert kind is not TypeError or "expected a path, the bytes of an image file, a PIL image" in str(error.value)


DEEP = np.random.default_rng(0).integers(0, 4096, (40, 60, 3), dtype=np.uint16)


class Recorded(InferenceInput):
    """Keeps the pixels that it prepares for the network."""

    def __call__(self, images, sizes=None):
        self.images = images
        return super().__call__(images, sizes)


@pytest.fixture
def seen(make_config, model, dataset):
    """A function of a `data.value_range` and inputs -> the pixels that a model of this range gets."""

    def read(value_range, *inputs):
        make_input = Recorded(make_config(f"data.value_range={value_range}").data)
        PanopticPredictor(model, dataset.categories, make_input)(inputs)
        return make_input.images

    return read


def test_the_value_range_of_the_model_is_applied_to_every_input(seen, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), DEEP[..., ::-1])
    expected = np.round(DEEP / 4095 * 255).astype(np.uint8)
    path = tmp_path / "a.png"
    with Image.open(path) as image:
        inputs = (path, path.read_bytes(), image, DEEP, DEEP.astype(np.float32))
        for found in seen([0, 4095], *inputs):
            np.testing.assert_array_equal(found, expected)
    grey = seen([0, 4095], Image.fromarray(DEEP[..., 0]), DEEP[..., 0], DEEP[..., 0].astype(np.float32))
    for found in grey:
        np.testing.assert_array_equal(found, np.repeat(expected[..., :1], 3, axis=2))
    (found,) = seen([0, 4095], expected)
    np.testing.assert_array_equal(found, expected)
    (found,) = seen("null", path)
    np.testing.assert_array_equal(found, DEEP >> 8)


def test_arrays_of_more_bits_need_a_model_with_a_value_range(seen):
    for array in (DEEP, DEEP.astype(np.float32)):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\].*; other values need a model trained with"):
            seen("null", array)
    for array in (DEEP.astype(np.int32), DEEP.astype(np.float64), DEEP[None]):
        with pytest.raises(ValueError, match=r"expected uint8, uint16 or float32 \[H, W, 3\]"):
            seen([0, 4095], array)
    with pytest.raises(ValueError, match=r"array of float32 .*: 1 values are NaN"):
        seen([0, 4095], np.where(np.indices((4, 4)).sum(0) == 0, np.nan, 1).astype(np.float32))


def test_a_list_is_one_batch_of_any_sizes(predictor):
    images = [Shapes(1, size)[0].image for size in ((50, 70), (64, 64), (33, 100))]
    predictions = predictor(images)
    for image, prediction in zip(images, predictions, strict=True):
        check(prediction, image.shape[:2])


def test_exif_orientation_turns_the_prediction(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(Shapes(1, (40, 80))[0].image).save(tmp_path / "a.jpg", exif=exif)
    assert predictor(tmp_path / "a.jpg").segment_ids.shape == (80, 40)
    assert predictor((tmp_path / "a.jpg").read_bytes()).segment_ids.shape == (80, 40)
    with Image.open(tmp_path / "a.jpg") as image:
        assert predictor(image).segment_ids.shape == (80, 40)
        assert predictor(image, apply_exif=False).segment_ids.shape == (40, 80)
    assert predictor(tmp_path / "a.jpg", apply_exif=False).segment_ids.shape == (40, 80)
    assert predictor([tmp_path / "a.jpg"], apply_exif=False)[0].segment_ids.shape == (40, 80)


def test_an_exported_checkpoint_predicts_the_same(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "slim.pt")
    image = Shapes(1, (64, 64))[0].image
    a, b = (PanopticPredictor.from_checkpoint(path, "cpu")(image) for path in (checkpoint, tmp_path / "slim.pt"))
    np.testing.assert_array_equal(a.segment_ids, b.segment_ids)
    assert a.segments == b.segments


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_compute_in_the_precision_asked_for(checkpoint, precision):
    predictor = PanopticPredictor.from_checkpoint(checkpoint, "cpu", precision=precision)
    found = []
    for module in predictor.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, output: found.append(output.dtype))
    check(predictor(Shapes(1, (50, 70))[0].image), (50, 70))
    assert (torch.bfloat16 in found) == (precision == "bf16"), "the scores of boxes stay in float32"


def test_the_precision_of_an_exported_graph_is_fixed(predictor):
    class Exported:
        pass

    with pytest.raises(ValueError, match=r"precision=bf16 with an exported graph.*export it again with --precision"):
        PanopticPredictor(Exported(), predictor.categories, predictor.make_input, precision="bf16")


def test_pictures_show_segments_and_leave_void(tmp_path):
    sample = Shapes(40)[next(i for i in range(40) if (Shapes(40)[i].segment_map == 0).any())]
    truth = truth_as_prediction(sample, CATEGORIES)
    picture = overlay(sample.image, truth, CATEGORIES)
    assert picture.shape == sample.image.shape
    assert (picture != sample.image).mean() > 0.5
    inner = np.zeros(sample.size, bool)
    inner[5:-5, 5:-5] = True
    edge = np.zeros_like(inner)
    ids = sample.segment_map
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    assert (picture[edge] == 255).mean() > 0.8, "contours"
    side = comparison(sample.image, truth, sample, CATEGORIES)
    assert side.shape == (128, 260, 3)
    assert grid([side, side], 130).shape == (136, 130, 3)


def test_rows_for_the_json():
    from upsnet.structures import PanopticPrediction

    segment = Segment(7, 5, "square", True, 0.5, 12, (1, 2, 5, 5))
    rows = prediction_rows(PanopticPrediction(np.zeros((1, 1), np.int32), [segment]))
    assert rows == [
        {
            "id": 7, "category_id": 5, "area": 12, "bbox": [1, 2, 4, 3], "iscrowd": 0,
            "score": 0.5, "category_name": "square", "isthing": 1,
        }
    ]  # fmt: skip
