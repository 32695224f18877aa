import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.panoptic_deeplab import deeplab
from tests.models.upsnet.test_upsnet import lively
from upsnet import PanopticPredictor
from upsnet.data.loader import InferenceInput
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.inference.augmented import AugmentedModel
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint
from upsnet.ops.views import ViewPlan

BOTH = ViewPlan((0.75, 1.0, 1.25), flip=True)


@pytest.fixture(params=["upsnet", "panoptic_deeplab", "aligned corners"])
def architecture(request, make_config):
    """A config and a model with random weights that find something."""
    if request.param == "upsnet":
        config = make_config()
        torch.manual_seed(0)
        return config, lively(build_model(config, CATEGORIES)).eval()
    config = deeplab.make_config(f"model.align_corners={str(request.param != 'panoptic_deeplab').lower()}")
    torch.manual_seed(0)
    model = build_model(config, CATEGORIES).eval()
    for head in (model.semantic_head, model.center_head, model.offset_head):
        torch.nn.init.normal_(list(head.parameters())[-2], std=0.5)
    return config, model


def predictor_of(architecture, plan=None):
    config, model = architecture
    return PanopticPredictor(model, CATEGORIES, InferenceInput(config.data, model.input_form, views=plan))


def images():
    return [Shapes(1, size, seed)[0].image for seed, size in enumerate([(61, 83), (64, 96), (97, 50)])]


def test_one_view_at_scale_1_is_the_plain_prediction_bit_for_bit(architecture):
    config, model = architecture
    plan = ViewPlan()
    make = InferenceInput(config.data, model.input_form, views=plan)
    batch = make(images())
    plain = model.predict(batch, with_semantic=True, with_instances=True)
    found = AugmentedModel(model, plan).predict(batch, with_semantic=True, with_instances=True)
    for row in range(3):
        assert torch.equal(found.segment_ids[row], plain.segment_ids[row])
        assert torch.equal(found.semantic[row], plain.semantic[row])
        masks, expected = ([window for window, *_ in output.instances[row].windows()] for output in (found, plain))
        assert all(torch.equal(*pair) for pair in zip(masks, expected, strict=True))
        assert torch.equal(found.instances[row].scores, plain.instances[row].scores)
    assert torch.equal(found.segment_classes, plain.segment_classes)
    assert torch.equal(found.segment_scores, plain.segment_scores)
    for a, b in zip(predictor_of(architecture)(images()), predictor_of(architecture, plan)(images()), strict=True):
        assert a.segments == b.segments
        np.testing.assert_array_equal(a.segment_ids, b.segment_ids)


def agreement(a, b):
    """Share of the pixels at which two predictions agree; a segment is matched with the one that covers most of it."""
    equal = (a.segment_ids == 0) & (b.segment_ids == 0)
    for segment in a.segments:
        mask = a.segment_ids == segment.id
        number = np.bincount(b.segment_ids[mask]).argmax()
        rival = next((other for other in b.segments if other.id == number), None)
        if rival is not None and rival.category_id == segment.category_id:
            equal |= mask & (b.segment_ids == number)
    return equal.mean()


@pytest.mark.parametrize("plan", [ViewPlan(flip=True), BOTH], ids=str)
def test_the_mirror_image_gives_the_mirrored_result(architecture, plan):
    predictor = predictor_of(architecture, plan)
    count = 0
    for image in images():
        found, mirrored = predictor(image), predictor(np.ascontiguousarray(image[:, ::-1]))
        mirrored.segment_ids[:] = mirrored.segment_ids[:, ::-1].copy()
        assert agreement(found, mirrored) >= 0.999
        count += len(found.segments)
    assert count > 3


def test_a_view_that_comes_twice_changes_nothing(architecture):
    """The boxes of the second are suppressed by those of the first, and means of equal values are these values."""
    config, model = architecture
    batch = InferenceInput(config.data, model.input_form, views=ViewPlan())(images())
    one = AugmentedModel(model, ViewPlan())._views(batch)
    with torch.no_grad():
        plain, found = (model.raw_of_views(views) for views in (one, one * 2))
    outputs = [model.fuse(raw, batch.network_sizes, batch.original_sizes) for raw in (plain, found)]
    for a, b in zip(*(output.segment_ids for output in outputs), strict=True):
        assert torch.equal(a, b)


def test_views_average_what_the_heads_say(make_config):
    """Semantic logits of a network without padding effects: the mean over the image and its mirror image."""
    config = make_config("model.heads=semantic")
    torch.manual_seed(0)
    model = build_model(config, CATEGORIES).eval()
    batch = InferenceInput(config.data, views=ViewPlan(flip=True))([Shapes(1, (64, 96))[0].image])
    with torch.no_grad():
        plain = model.raw(batch.images, batch.image_sizes).semantic_logits
        mirrored = model.raw(batch.images.flip(-1), batch.image_sizes).semantic_logits.flip(-1)
        found = model.raw_of_views(AugmentedModel(model, ViewPlan(flip=True))._views(batch)).semantic_logits
    torch.testing.assert_close(found, (plain + mirrored) / 2)
    assert not torch.allclose(plain, mirrored, atol=1e-3)


def test_a_large_jpeg_is_read_once_for_all_views(architecture, tmp_path):
    """Views that need different reductions of the file read it whole."""
    config, model = architecture
    data = config.data.model_copy(update={"test_short_side": 64})
    Image.fromarray(Shapes(1, (384, 512))[0].image).save(tmp_path / "a.jpg")
    make = InferenceInput(data, model.input_form, views=ViewPlan((0.5, 1.0, 2.0)))
    assert make.reduction((384, 512)) == 1
    assert InferenceInput(data, model.input_form, views=ViewPlan()).reduction((384, 512)) == 4
    assert PanopticPredictor(model, CATEGORIES, make)(tmp_path / "a.jpg").segment_ids.shape == (384, 512)


def test_a_view_beyond_the_limit_of_pixels_is_an_error(make_config, model):
    config = make_config("data.max_network_pixels=10000")
    make = InferenceInput(config.data, views=ViewPlan((1.0, 2.0)))
    with pytest.raises(ValueError, match=r"192 x 128 pixels of network input, .*; choose smaller scales"):
        PanopticPredictor(model, CATEGORIES, make)(np.zeros((64, 96, 3), np.uint8))


def test_what_has_no_views_says_so(make_config, model, checkpoint, tmp_path):
    with pytest.raises(
        ValueError, match=r"model.onnx: no test-time augmentation with an exported graph, .* checkpoint"
    ):
        PanopticPredictor.from_checkpoint(tmp_path / "model.onnx", views=BOTH)
    official = make_config("model.panoptic.method=official", "data.test_short_side=48", "data.test_max_side=80")
    form = build_model(official, CATEGORIES).input_form
    with pytest.raises(ValueError, match=r"resizes its images itself \(model.panoptic.method=official\); use another"):
        InferenceInput(official.data, form, views=BOTH)
    batch = InferenceInput(official.data)([np.zeros((64, 96, 3), np.uint8)])
    with pytest.raises(ValueError, match="the batch has 0 views, expected 3"):
        AugmentedModel(model, BOTH).predict(batch)


def test_the_commands_average_views(architecture, upsnet_command, tmp_path):
    config, model = architecture
    path = tmp_path / "model.pt"
    save_checkpoint(path, Checkpoint(config, CATEGORIES, model.state_dict()))
    code, out, err = upsnet_command(
        "evaluate", "--checkpoint", path, "--output", tmp_path / "out", "--tta-scales", 1, 1.5, "--tta-flip", "--report"
    )
    assert code == 0, err
    assert "pq" in out
    assert "scales 1, 1.5, mirrored too" in (tmp_path / "out" / "report.html").read_text()
    sample = Shapes(3, (64, 96), 1)[0]
    Image.fromarray(sample.image).save(tmp_path / "image.png")
    code, _, err = upsnet_command(
        "predict", "--checkpoint", path, "--input", tmp_path / "image.png", "--output", tmp_path / "out",
        "--tta-scales", 1, 1.5, "--tta-flip",
    )  # fmt: skip
    assert code == 0, err
    expected = predictor_of(architecture, ViewPlan((1.0, 1.5), flip=True))(sample.image)
    rows = json.loads((tmp_path / "out" / "image.json").read_text())["segments_info"]
    assert [row["area"] for row in rows] == [segment.area for segment in expected.segments]


def test_mistakes_in_the_options_are_told(upsnet_command, checkpoint, tmp_path):
    code, _, err = upsnet_command("evaluate", "--checkpoint", checkpoint, "--tta-scales", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "scales of the views: 0, expected numbers from 0.1 to 10" in err
    for scales, remedy in (
        (["1", "data.val.num_images=2"], "only numbers may follow --tta-scales"),
        (["0.75,1"], "separate numbers by spaces"),
    ):
        code, _, err = upsnet_command("evaluate", "--checkpoint", checkpoint, "--tta-scales", *scales)
        assert code == 2
        assert f"'{scales[-1]}', expected a number such as 0.75; {remedy}" in err
    code, _, err = upsnet_command("evaluate", "--gt", "a.json", "--pred", "b.json", "--tta-flip")
    assert code == 2
    assert "--tta-scales and --tta-flip need --checkpoint" in err
