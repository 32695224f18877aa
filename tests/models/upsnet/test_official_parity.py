"""Every stage of the official program's stored runs, on its weights: ours gives its numbers."""

import json
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.upsnet.official import CONFIGS, FOLDER, config_name, exclusive, files, official_model
from upsnet.data.loader import InferenceInput
from upsnet.models.layers import zero_padding
from upsnet.models.upsnet.model import ROI_STRIDES
from upsnet.models.upsnet.official import OfficialPanopticHead, OfficialResize, place_slots
from upsnet.ops.boxes import pairwise_iou
from upsnet.ops.panoptic_fusion.streaming import keep_instances
from upsnet.ops.roi_align import FeatureLayout
from upsnet.structures import Detections

REFERENCES = files("ref")
pytestmark = [pytest.mark.reference, pytest.mark.skipif(not REFERENCES, reason="UPSNET_REFERENCE names no runs")]

NEAR_TIE = 5e-5
"""Scores closer than this may change places."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Config name -> (model, config), made once."""
    made = {}

    def get(name):
        if name not in made:
            made.clear()  # one at a time: they are large
            made[name] = official_model(name, tmp_path_factory.mktemp("official"))[:2]
        return made[name]

    return get


@pytest.fixture(scope="module", params=REFERENCES, ids=lambda p: p.stem)
def run(request, models):
    """A stored run, our model, and its outputs up to the heads, from the picture on."""
    model, config = models(config_name(request.param))
    ref = dict(np.load(request.param))
    model.resize = OfficialResize(int(ref["target_size"]), int(ref["max_size"]))
    whole = InferenceInput(config.data, model.input_form)([ref["image_rgb"]])
    batch = model.resize(whole)
    model.panoptic_head.stuff_area_limit = int(ref["stuff_area_limit"])
    with torch.no_grad():
        images = zero_padding((batch.images.float() - model.pixel_mean) / model.pixel_std, batch.image_sizes)
        stages = model.backbone(images)
        levels = model.fpn(stages)
        proposed = model.rpn(levels)
        semantic = model.semantic_head(levels[:4])
    layout = FeatureLayout.of(levels[:4], ROI_STRIDES, model.roi_convention)
    return SimpleNamespace(
        model=model, ref=ref, whole=whole, batch=batch, images=images, stages=stages, levels=levels, proposed=proposed,
        semantic=semantic, layout=layout, num_stuff=model.panoptic_head.num_stuff,
    )  # fmt: skip


def check_statistics(found, ref, name, tolerance=1e-4):
    """Mean, deviation, extremes and probes of a tensor, relative to its standard deviation."""
    expected, found = ref[f"stats__{name}"], found.double()
    assert list(found.shape) == ref[f"shape__{name}"].tolist()
    flat = found.flatten().numpy()
    count = min(256, flat.size)
    probes = flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]
    own = [flat.mean(), flat.std(), np.abs(flat).sum() / flat.size, flat.min(), flat.max()]
    expected = [*expected[:2], expected[2] / flat.size, *expected[3:]]
    np.testing.assert_allclose([*own, *probes], expected, rtol=0, atol=tolerance * expected[1], err_msg=name)


def iou(a, b):
    return pairwise_iou(torch.as_tensor(a).float()[None], torch.as_tensor(b).float()[None])[0]


def test_the_network_sees_the_same_pixels(run):
    assert list(run.images.shape) == run.ref["shape__data"].tolist()
    found = run.images.flip(1)[:, :, ::4, ::4].numpy()
    np.testing.assert_allclose(found, run.ref["data_sub"], rtol=0, atol=2e-5 * run.ref["stats__data"][1])
    assert run.batch.network_sizes[0] == tuple(run.ref["im_info"][0, :2].astype(int))


def test_features_and_proposal_scores(run):
    for n, stage in enumerate(run.stages):
        check_statistics(stage, run.ref, f"res{n + 2}")
    for n, level in enumerate(run.levels):
        check_statistics(level, run.ref, f"p{n + 2}")
        size = (1, *level.shape[2:], -1)
        scores, deltas = (x.reshape(size).permute(0, 3, 1, 2) for x in (run.proposed.logits[n], run.proposed.deltas[n]))
        check_statistics(scores, run.ref, f"rpn_cls_score_p{n + 2}")
        check_statistics(deltas, run.ref, f"rpn_bbox_pred_p{n + 2}")


def check_order(scores, place, near=NEAR_TIE):
    """Rows of the program's list, in our order: its scores fall, but for near-ties."""
    scores = torch.as_tensor(scores)[place]
    assert (scores[1:] <= scores[:-1] + near).all()


def test_proposals_are_the_same_list(run):
    found, valid = run.model.rpn.propose(run.proposed, run.batch.image_sizes)
    expected = exclusive(run.ref["rois"])
    assert int(valid.sum()) == expected.shape[1]
    best, place = iou(found[0], expected[0]).max(1)
    same = best > 0.999
    assert same.float().mean() > 0.998, "a tie at the NMS threshold or at the last place may exchange a box"
    assert len(place[same].unique()) == same.sum()
    check_order(run.ref["roi_scores"], place[same])


def box_outputs(run):
    """Teacher-forced: the box branch over the program's own proposals, so that no order can differ."""
    rois = exclusive(run.ref["rois"])
    with torch.no_grad():
        return run.model.instance_head.box_outputs(run.layout, rois, torch.ones(rois.shape[:2], dtype=torch.bool))


def test_box_branch(run):
    found = box_outputs(run)
    expected = run.ref["bbox_pred"].reshape(len(run.ref["rois"]), -1, 4)[:, 1:]
    np.testing.assert_allclose(found.logits[0], run.ref["cls_score"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.deltas[0], expected, rtol=0, atol=1e-3)


def detections(run, rule):
    head = run.model.instance_head
    with torch.no_grad():
        candidates = head.decode(box_outputs(run), run.batch.image_sizes, rule)
        return head.detect(candidates, rule, partial(head.mask_logits, run.layout))


def check_list(found, scores, boxes, labels, threshold):
    """The same detections in the same order, near-ties aside: rows of ours, and of theirs, that are the same."""
    count = int(found.valid.sum())
    ours = found.scores[0, :count]
    distance = (found.boxes[0, :count, None] - exclusive(boxes)[0]).abs().amax(-1)
    distance[found.labels[0, :count, None] != torch.from_numpy(labels)] = np.inf
    distance[(ours[:, None] - torch.from_numpy(scores)).abs() > 1e-4] = np.inf
    best, place = distance.min(1)
    same = best < 0.05
    assert len(place[same].unique()) == same.sum()
    # What only one list has was as good as at the threshold, or at the last place.
    edges = torch.tensor([threshold, scores.min() if len(scores) >= 100 else threshold])
    others = np.setdiff1d(np.arange(len(scores)), place[same])
    for score in (*ours[~same].tolist(), *scores[others].tolist()):
        assert (edges - score).abs().min() < NEAR_TIE
    check_order(scores, place[same])
    return same.nonzero()[:, 0], place[same].numpy()


def test_instance_list_and_masks(run):
    ref, model = run.ref, run.model
    found = detections(run, model.instance_rule)
    ours, theirs = check_list(found, ref["det_scores"], ref["det_boxes"], ref["det_cls"], 0.05)
    np.testing.assert_allclose(found.mask_logits[0, ours], ref["det_mask_logits_own"][theirs], atol=2e-2)


def test_panoptic_list_and_masks(run):
    ref, model = run.ref, run.model
    found = detections(run, model.panoptic_rule)
    ours, theirs = check_list(found, ref["pan_det_scores"], ref["pan_det_boxes"], ref["pan_det_cls"], 0.6)
    np.testing.assert_allclose(found.mask_logits[0, ours], ref["pan_det_mask_logits"][theirs, 0], atol=2e-3)


def test_semantic_head(run):
    check_statistics(run.semantic, run.ref, "fcn_score", 5e-4)
    np.testing.assert_allclose(run.semantic.numpy(), run.ref["fcn_score_f16"], rtol=1e-3, atol=2e-3)


def test_panoptic_head_teacher_forced(run):
    """The program's own panoptic list and our semantic logits: its keep list and its map."""
    ref, size = run.ref, tuple(run.ref["panoptic"].shape[1:])
    order = np.argsort(-ref["pan_det_scores"], kind="stable")
    boxes = torch.from_numpy(ref["pan_det_boxes"][order, 1:])[None]
    labels = torch.from_numpy(ref["pan_det_cls"][order])[None]
    masks = torch.from_numpy(ref["pan_det_mask_logits"][order, 0])[None]
    case = (boxes, labels, labels > 0, masks)
    keep = keep_instances(place_slots(*case, size), size, Fraction(3, 10))
    assert (order[keep[0].numpy()].tolist() or [0]) == ref["keep_inds"].tolist()
    head = run.model.panoptic_head
    assert isinstance(head, OfficialPanopticHead)
    assert head.overlap_threshold == 0.3
    ends_after = boxes + torch.tensor([0, 0, 1, 1])
    found, semantic = head.maps(
        run.semantic, Detections(ends_after, torch.zeros(labels.shape), labels, labels > 0, masks), size
    )
    table = np.full(run.num_stuff + len(order) + 1, 255)
    table[: run.num_stuff] = np.arange(run.num_stuff)
    table[run.num_stuff + np.flatnonzero(np.isin(order, ref["keep_inds"]))] = run.num_stuff + np.arange(
        len(ref["keep_inds"])
    )
    clear = ref["panoptic_top2_gap_f16"] > 1e-3
    assert ((table[found[0].numpy()] == ref["panoptic"][0]) | ~clear).mean() > 0.9999
    assert (table[found[0].numpy()] == ref["panoptic"][0]).mean() > 0.999
    assert (semantic[0].numpy() == ref["semantic"][0]).mean() > 0.999


def test_the_whole_run_ends_in_the_same_map(run):
    """From the picture to the unified result, nothing fed."""
    ref, model = run.ref, run.model
    output = model.predict(run.whole, [ref["unified"].shape[:2]], with_semantic=True)
    ids, classes = output.segment_ids[0].numpy(), output.segment_classes[0].numpy()
    found = np.where(ids > 0, np.concatenate([[255], classes])[ids], 255)
    expected, instance = ref["unified"][..., 0].astype(int), ref["unified"][..., 1].astype(int)
    assert (output.semantic[0].numpy() == ref["semantic_orig"]).mean() > 0.999
    assert (found == expected).mean() > 0.999
    # Instances have the program's order, without its numbers' gaps: compare them one to one.
    # (A stand-in for "no detection" under the stuff limit is void, and keeps its number there.)
    instance = np.where(expected == 255, 0, instance)
    things = (instance > 0) & (ids > run.num_stuff)
    pairs, counts = np.unique(np.stack([ids[things], instance[things]]), axis=1, return_counts=True)
    agreed = sum(counts[pairs[0] == i].max() for i in np.unique(pairs[0]))
    assert agreed >= 0.999 * things.sum()
    assert ((instance > 0) == (ids > run.num_stuff)).mean() > 0.999


@pytest.mark.parametrize("name", [n for n in CONFIGS if (FOLDER / f"state_dict_{n}.json").is_file()])
def test_official_checkpoints_fill_the_whole_model(name, tmp_path):
    model, _, report = official_model(name, tmp_path)
    entries = json.loads((FOLDER / f"state_dict_{name}.json").read_text())
    count = sum(int(np.prod(e["shape"])) for e in entries if e["kind"] == "param")
    unused = 4 * 1024 + 4 + 256 + 1  # box and mask of class 0
    assert sum(p.numel() for p in model.parameters()) + unused == count
    assert round(count / 1e6, 2) == {"r50_coco": 46.13, "r50_cityscapes": 44.53}.get(CONFIGS[name], 66.41)
    assert not report.fresh
    assert not report.unused
    assert not report.matched
