import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.upsnet.test_upsnet import lively
from upsnet import PanopticPredictor, Segment
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.export.exporter import export_checkpoint
from upsnet.inference.drawing import comparison, grid, overlay
from upsnet.io.predictions import prediction_rows, truth_as_prediction


@pytest.fixture
def predictor(model, config, dataset):
    from upsnet.data.loader import InferenceInput

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


def test_path_picture_and_array_give_the_same(predictor, tmp_path):
    image = Shapes(1, (50, 70))[0].image
    Image.fromarray(image).save(tmp_path / "a.png")
    found = [predictor(x) for x in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), image)]
    for prediction in found:
        check(prediction, (50, 70))
        np.testing.assert_array_equal(prediction.segment_ids, found[0].segment_ids)


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
    with Image.open(tmp_path / "a.jpg") as image:
        assert predictor(image).segment_ids.shape == (80, 40)


def test_arrays_of_another_kind_are_refused(predictor):
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            predictor(array)


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
