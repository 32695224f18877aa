"""One training step of the official program: its random choices and polygon targets fed, its losses and gradients."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.models.upsnet.official import config_name, exclusive, files, official_model
from upsnet.data.loader import InferenceInput
from upsnet.engine.optim import weighted_total
from upsnet.models.pretrained.formats import official_name
from upsnet.models.upsnet.instance_head import BOX_WEIGHTS
from upsnet.models.upsnet.losses import (
    class_and_box_loss,
    mask_loss,
    objectness_and_box_loss,
    pixel_loss,
    roi_pixel_loss,
)
from upsnet.models.upsnet.model import ROI_STRIDES, SEMANTIC_ROI_BINS
from upsnet.models.upsnet.official import OfficialResize, panoptic_logits, place_slots
from upsnet.models.upsnet.rpn import UNIT
from upsnet.ops.boxes import encode_boxes, pairwise_iou
from upsnet.ops.panoptic_fusion.slots import STRIDE
from upsnet.ops.roi_align import FeatureLayout, roi_align

REFERENCES = files("train_ref")
pytestmark = [pytest.mark.reference, pytest.mark.skipif(not REFERENCES, reason="UPSNET_REFERENCE names no steps")]


@pytest.fixture(scope="module", params=REFERENCES, ids=lambda p: p.stem)
def step(request, tmp_path_factory):
    """Our losses of a stored step, and the gradients of their weighted sum."""
    ref = dict(np.load(request.param))
    model, config, _ = official_model(config_name(request.param), tmp_path_factory.mktemp("official"))
    model.train()
    image = ref["image_rgb"][:, ::-1] if ref["flipped"] else ref["image_rgb"]
    whole = InferenceInput(config.data, model.input_form)([np.ascontiguousarray(image)])
    batch = OfficialResize(int(ref["target_size"]), int(ref["max_size"]))(whole)
    levels = model.features(batch.images, batch.image_sizes)
    semantic = model.semantic_head(levels[:4])
    layout = FeatureLayout.of(levels[:4], ROI_STRIDES, model.roi_convention)
    parts = SimpleNamespace(
        ref=ref, model=model, batch=batch, levels=levels, semantic=semantic, layout=layout,
        scale=float(ref["im_info"][0, 2]),
    )  # fmt: skip
    losses = {**rpn_losses(parts), **box_losses(parts), **mask_and_panoptic_losses(parts), **semantic_losses(parts)}
    # A term whose weight is 0 is not computed by the official program either.
    weighted_total({k: v for k, v in losses.items() if model.loss_weights[k]}, model.loss_weights).backward()
    return ref, model, losses, config


def rpn_losses(step):
    """Sampled anchors and their labels are fed; the targets of the positive ones are checked, and ours."""
    proposed, ref = step.model.rpn(step.levels), step.ref
    boxes = torch.from_numpy(ref["gt_boxes_orig"][~ref["gt_is_crowd"]]) * step.scale
    truth = exclusive(boxes)
    logits, deltas, targets, positive = [], [], [], []
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        width = step.levels[level].shape[3]
        _, a, y, x = torch.from_numpy(ref[f"rpn_idx_fpn{stride}"]).long().unbind(1)
        row = (y * width + x) * 3 + a
        anchors = proposed.anchors[level][row]
        matched = truth[0][pairwise_iou(truth, anchors[None])[0].argmax(0)]
        own, is_positive = encode_boxes(matched, anchors, UNIT), torch.from_numpy(ref[f"rpn_lab_fpn{stride}"]) == 1
        np.testing.assert_allclose(own[is_positive], ref[f"rpn_pos_targets_fpn{stride}"], atol=2e-5)
        logits.append(proposed.logits[level][0, row])
        deltas.append(proposed.deltas[level][0, row])
        targets.append(own)
        positive.append(is_positive)
    stacked = [torch.cat(t)[None] for t in (logits, deltas, targets, positive)]
    found = objectness_and_box_loss(*stacked, torch.ones_like(stacked[3]), step.model.rpn.config.samples)
    return dict(zip(("loss_rpn_objectness", "loss_rpn_box"), found, strict=True))


def box_losses(step):
    """Sampled RoIs and their labels are fed; box targets are ours."""
    ref = step.ref
    labels = torch.from_numpy(ref["roi_labels"])[None]
    rois = exclusive(ref["rois"])
    found = step.model.instance_head.box_outputs(step.layout, rois, torch.ones(rois.shape[:2], dtype=torch.bool))
    logits, deltas = found.logits, found.deltas
    # The program computes them in the pixels of the original picture.
    original = exclusive(torch.from_numpy(ref["rois"][:, 1:]) / step.scale)
    truth = exclusive(ref["gt_boxes_orig"])
    matched = truth[0][pairwise_iou(truth, original)[0].argmax(0)][None]
    targets = encode_boxes(matched, original, BOX_WEIGHTS)
    # Where the best truth is a crowd's box, which the program does not exclude, its own choice is fed.
    crowd = torch.from_numpy(ref["gt_is_crowd"])[pairwise_iou(truth, original)[0].argmax(0)]
    ours = (labels[0] > 0) & ~crowd
    np.testing.assert_allclose(targets[0, ours], ref["bbox_targets_own"][ours], atol=2e-4)
    targets = torch.where(crowd[:, None], torch.from_numpy(ref["bbox_targets_own"]), targets[0])[None]
    own = (labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    deltas = deltas.gather(2, own)[:, :, 0]
    found = class_and_box_loss(logits, deltas, labels, targets, torch.ones_like(labels, dtype=torch.bool))
    return dict(zip(("loss_class", "loss_box"), found, strict=True))


def mask_and_panoptic_losses(step):
    """Mask targets, the kept instances and the panoptic target are fed."""
    ref, head = step.ref, step.model.instance_head
    labels = torch.from_numpy(ref["mask_target_cls"])[None]
    targets = torch.from_numpy(ref["mask_targets_own"])[None].float()
    masks = head.mask_logits(step.layout, exclusive(ref["mask_rois"]), labels.clamp(min=1))
    losses = {"loss_mask": mask_loss(masks, targets.clamp(min=0), (targets >= 0).all((2, 3)))}
    labels = torch.from_numpy(ref["gt_cls_kept"])[None]
    masks = head.mask_logits(step.layout, exclusive(ref["gt_rois"]), labels)
    boxes = torch.from_numpy(ref["gt_rois"][:, 1:])[None] / STRIDE
    size = tuple(step.semantic.shape[2:])
    slots = place_slots(boxes, labels, torch.ones_like(labels, dtype=torch.bool), masks, size)
    volume = panoptic_logits(step.semantic, slots, step.model.panoptic_head.num_stuff)
    target = torch.from_numpy(ref["panoptic_gt"])
    losses["loss_panoptic"] = pixel_loss(volume, target, over_ignored=step.model.loss_over_ignored)
    return losses


def semantic_losses(step):
    """Label maps are fed."""
    ref = step.ref
    full = F.interpolate(step.semantic, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    losses = {"loss_semantic": pixel_loss(full, torch.from_numpy(ref["seg_gt"]))}
    if "seg_roi_gt" in ref and len(ref["seg_roi_gt"]):
        boxes = exclusive(torch.from_numpy(ref["gt_boxes_orig"][~ref["gt_is_crowd"]]) * step.scale)
        layout = FeatureLayout.of([step.semantic], ROI_STRIDES[:1], step.model.roi_convention)
        level = torch.zeros(boxes.shape[:2], dtype=torch.long)
        pooled = roi_align(layout, boxes, SEMANTIC_ROI_BINS, level)[None]
        target = torch.from_numpy(ref["seg_roi_gt"])[None].long()
        is_roi = torch.ones(level.shape, dtype=torch.bool)
        losses["loss_semantic_roi"] = roi_pixel_loss(pooled, target, is_roi, over_ignored=step.model.loss_over_ignored)
    return losses


OFFICIAL = {
    "loss_rpn_objectness": "rpn_cls_loss",
    "loss_rpn_box": "rpn_bbox_loss",
    "loss_class": "cls_loss",
    "loss_box": "bbox_loss",
    "loss_mask": "mask_loss",
    "loss_semantic": "fcn_loss",
    "loss_semantic_roi": "fcn_roi_loss",
    "loss_panoptic": "panoptic_loss",
}


def test_losses(step):
    ref, model, losses, _ = step
    for name, official in OFFICIAL.items():
        if f"loss__{official}" in ref:
            assert losses[name].item() == pytest.approx(float(ref[f"loss__{official}"]), rel=1e-4), name
    computed = {k: v for k, v in losses.items() if f"loss__{OFFICIAL[k]}" in ref}
    assert len(computed) >= 7
    assert weighted_total(computed, model.loss_weights).item() == pytest.approx(float(ref["loss_total"]), rel=1e-4)


def test_gradients(step):
    ref, model, _, _ = step
    squares = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key = official_name(name)
            squares[key] = squares.get(key, 0.0) + parameter.grad.double().square().sum().item()
    for name, expected in zip(ref["grad_names"].tolist(), ref["grad_norms"].tolist(), strict=True):
        assert squares.pop(name) ** 0.5 == pytest.approx(expected, rel=1e-3, abs=1e-7), name
    assert not [name for name, value in squares.items() if value > 0], "what the program freezes has no gradient here"
    for key in (k for k in ref if k.startswith("grad__")):
        ours = {official_name(n): p.grad for n, p in model.named_parameters()}[key.removeprefix("grad__")]
        expected = ref[key]
        if len(ours) < len(expected):  # the unused class 0
            expected = expected[len(expected) - len(ours) :]
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
