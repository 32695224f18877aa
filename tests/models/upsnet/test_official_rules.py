"""The rules of the official program, one by one, on small cases; `test_official_head.py` has its stored outputs."""

import numpy as np
import pytest
import torch

from tests.models.upsnet.test_upsnet import lively
from tests.ops.fusion_cases import S, random_case
from upsnet.config import PanopticConfig
from upsnet.data.loader import InferenceInput
from upsnet.data.shapes import Shapes
from upsnet.models.build import build_model
from upsnet.models.upsnet.official import (
    OfficialPanopticHead,
    OfficialResize,
    exact_scale,
    majority_owners,
    panoptic_logits,
    place_slots,
    resize_image,
    resize_map,
)
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.ops.panoptic_fusion.segment_ids import ids_of_owners
from upsnet.structures import Detections


@pytest.mark.parametrize(("size", "scale"), [((30, 47), 40 / 30), ((21, 80), 66 / 80), ((33, 20), 40 / 20)])
def test_exact_resizing_follows_one_scale(size, scale):
    """The formula pixel by pixel, for a short side of 40 and a long one of 66 at most."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert exact_scale(size, 40, 66) == scale
    found = resize_image(torch.from_numpy(image).permute(2, 0, 1), scale)
    assert found.dtype == torch.float32
    assert found.shape == (3, round(size[0] * scale), round(size[1] * scale))
    weights = []
    for new, old in zip(found.shape[1:], size, strict=True):
        position = np.clip((np.arange(new) + 0.5) / scale - 0.5, 0, old - 1)
        weights.append(np.clip(1 - np.abs(position[:, None] - np.arange(old)), 0, None))
    expected = np.einsum("yh,xw,hwc->cyx", *weights, image)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_batch_is_resized_image_by_image_and_padded():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = [(30, 47), (64, 96)]
    resize = OfficialResize(40, 66)
    assert resize.network_sizes(sizes) == [(40, 63), (40, 60)]
    found = resize.images(images, sizes)
    assert found.shape == (2, 3, 64, 64)
    torch.testing.assert_close(found[0, :, :40, :63], resize_image(images[0, :, :30, :47], 40 / 30))
    assert not found[0, :, 40:].any()
    assert not found[0, :, :, 63:].any()
    assert OfficialResize(None, 66).network_sizes(sizes) == sizes
    fixed = OfficialResize(40, 66, network_size=(32, 64))
    assert fixed.network_sizes(sizes) == [(32, 50), (32, 48)]
    assert fixed.images(images, sizes).shape == (2, 3, 32, 64)


def test_maps_are_resized_by_one_float32_scale_for_both_axes():
    source = torch.arange(5 * 8).view(5, 8)
    assert torch.equal(resize_map(source, 1.0, (5, 8)), source)
    found = resize_map(source, 0.5, (10, 15))  # 15 * 0.5 = 7.5, rounded to 8
    assert found[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert found[:, 0].tolist() == [0, 0, 8, 8, 16, 16, 24, 24, 32, 32]
    columns = resize_map(torch.arange(1067).expand(800, -1), 800 / 480, (480, 640))[0]
    assert columns[[3, 6, 639]].tolist() == [4, 9, 1064], "3 * float32(5/3) lies just below 5"
    assert resize_map(source, 0.5, (5, 4)).tolist() == source[:, ::2].tolist(), "any other size: each axis by itself"


def test_a_slot_joins_the_stuff_that_half_of_it_is():
    """S = 3; every row of pixels is one channel, over the semantic map below."""
    classes = torch.tensor([[0, 1, 2, 3, 3, 3, 4, 2]])  # the last slot is the stand-in for "no detection"
    channels = torch.tensor([[[0] * 6, [3] * 6, [4] * 6, [5] * 6, [6] * 6, [7] * 6]], dtype=torch.int32)
    semantic = torch.tensor(
        [[[1] * 6, [1, 1, 4, 4, 3, 3], [1, 1, 1, 3, 3, 3], [2, 2, 2, 1, 1, 1], [4] * 6, [2] * 6]], dtype=torch.int32
    )
    owner = majority_owners(channels, semantic, classes, 3)
    found = ids_of_owners(channels, owner, classes.gather(1, owner), 3, 0)[0, :, 0].tolist()
    # Stuff keeps its class; a third is too little; half is enough; the first of two halves; a thing; its own class.
    assert found == [1, 4, 2, 2, 7, 8]
    found = ids_of_owners(channels, owner, classes.gather(1, owner), 3, 12)[0, :, 0].tolist()
    assert found == [0, 4, 2, 2, 7, 0], "areas count after joining"


def test_gradients_reach_semantic_and_mask_logits():
    semantic, boxes, labels, valid, masks = random_case(3, 1, 3, (24, 28), (6, 7), mask_size=4)

    def logits(semantic, masks):
        slots = place_slots(boxes.double(), labels, torch.ones_like(valid), masks, (6, 7))
        return panoptic_logits(semantic, slots, S)

    inputs = (semantic[:, :, :6, :7].double().requires_grad_(), masks.double().requires_grad_())
    assert torch.autograd.gradcheck(logits, inputs)


def test_an_image_without_instances_has_a_loss():
    semantic, boxes, labels, _, masks = random_case(3, 2, 3, (24, 28), (6, 7))
    slots = place_slots(boxes, labels, torch.tensor([[False] * 3, [True] * 3]), masks, (6, 7))
    volume = panoptic_logits(semantic[:, :, :6, :7], slots, S)
    assert volume.isfinite().all()
    assert torch.equal(volume[0, -1], semantic[0, S:, :6, :7].amax(0))


def test_boxes_end_with_their_last_pixel():
    """A mask that is on in a box of whole pixels covers exactly these, whatever the method calls their end."""
    semantic = torch.zeros(1, 5, 8, 8)
    semantic[:, 0], semantic[:, 3] = 0.5, 0.6  # the thing is likelier everywhere: void outside the box
    boxes = torch.tensor([[[4.0, 8, 16, 20]]])
    one_slot = torch.ones(1, 1)
    found = Detections(boxes, one_slot, one_slot.long(), one_slot > 0, torch.ones(1, 1, 4, 4))
    config = PanopticConfig(stuff_area_limit=0)
    sizes = [(32, 32)]
    ours = PanopticHead(3, 2, config)(semantic, found, sizes, sizes)
    theirs = OfficialPanopticHead(3, 2, config).fuse_images(semantic, found, sizes, sizes, [1.0])
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:20, 4:16] = True
    for output in (ours, theirs):
        assert torch.equal(output.segment_ids[0] == 4, inside)


def test_bands_make_no_difference(monkeypatch):
    semantic, boxes, labels, valid, masks = random_case(1, 1, 20, (60, 40), (60, 40))
    found = Detections(boxes, valid.float(), labels, valid, masks)
    head = OfficialPanopticHead(S, 2, PanopticConfig())
    whole = head.maps(semantic, found, (60, 40))
    monkeypatch.setattr("upsnet.models.upsnet.official.BAND", 7)
    for a, b in zip(whole, head.maps(semantic, found, (60, 40)), strict=True):
        assert torch.equal(a, b)


def test_the_model_resizes_images_itself(make_config, dataset):
    options = ["model.panoptic.method=official", "data.test_short_side=48", "data.test_max_side=80"]
    config = make_config(*options)
    model = lively(build_model(config, dataset.categories)).eval()
    images = [Shapes(1, (64, 96))[0].image, Shapes(1, (50, 150))[0].image]
    batch = InferenceInput(config.data, model.input_form)(images)
    assert batch.network_sizes == batch.original_sizes == [(64, 96), (50, 150)]
    output = model.predict(batch, with_semantic=True, with_instances=True)
    assert [tuple(ids.shape) for ids in output.segment_ids] == [(64, 96), (50, 150)]
    assert [tuple(ids.shape) for ids in output.semantic] == [(64, 96), (50, 150)]
    assert sum(int(found.valid.sum()) for found in output.instances) > 0
    window, top, left = next(output.instances[0].windows())
    assert (top + window.shape[0], left + window.shape[1]) <= (64, 96)


def test_a_single_head_has_no_official_fusion(make_config):
    with pytest.raises(ValueError, match=r"method=official needs heads=both, got semantic; use .*unified"):
        make_config("model.panoptic.method=official", "model.heads=semantic")
