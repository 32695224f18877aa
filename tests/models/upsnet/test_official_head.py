"""The official program's panoptic head, from its stored inputs and outputs: equal keep lists, equal maps."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from upsnet.models.upsnet.official import competing, fuse, panoptic_logits, place_slots
from upsnet.ops.panoptic_fusion import reference, streaming
from upsnet.ops.panoptic_fusion.pipeline import implementation_for

STUFF = 53
OVERLAP = Fraction(3, 10)
FOLDER = os.environ.get("UPSNET_REFERENCE")
CASES = sorted(Path(FOLDER, "upsnet_official").glob("panoptic_case_*.npz")) if FOLDER else []
SMALL = 5_000_000
"""Pixels times planes that the full volume is tried on."""

pytestmark = [pytest.mark.reference, pytest.mark.skipif(not CASES, reason="UPSNET_REFERENCE names no cases")]


class OfficialCase:
    """Inputs in order of falling score, as one batch, and the outputs."""

    def __init__(self, path, device="cpu"):
        self.file = dict(np.load(path))
        self.size = int(self.file["H"]), int(self.file["W"])
        self.order = np.argsort(-self.file["scores"], kind="stable")
        semantic = self.file["sem4_int8"].astype(np.float32) * np.float32(self.file["sem_scale"])
        semantic = semantic + self.file["sem_offset"][:, None, None]
        boxes, labels, masks = (torch.from_numpy(self.file[k][self.order]) for k in ("boxes", "cls", "mask_logits"))
        inputs = (torch.from_numpy(semantic), boxes, labels.clamp(min=1), labels > 0, masks)
        self.inputs = tuple(t[None].to(device) for t in inputs)

    def slots(self):
        return place_slots(*self.inputs[1:], self.size)

    def kept(self, keep):
        """The kept detections as the program lists them: rows of the unsorted list, the first if there is none."""
        return self.order[keep[0].cpu().numpy()].tolist() or [0]

    def as_program(self, channels):
        """Its numbering: kept instances without gaps, void 255."""
        slots = np.flatnonzero(np.isin(self.order, self.file["keep"]))
        table = np.full(STUFF + len(self.order) + 1, -1)
        table[:STUFF], table[STUFF + slots], table[-1] = np.arange(STUFF), STUFF + np.arange(len(slots)), 255
        return table[channels[0].cpu().numpy()]


def check(case, implementation):
    """Raises unless the keep list and, away from near-ties, the map are those of the program."""
    slots = case.slots()
    keep = implementation.keep_instances(slots, case.size, OVERLAP)
    assert case.kept(keep) == case.file["keep"].tolist()
    found, _ = fuse(case.inputs[0], competing(slots, keep), case.size, STUFF)
    differs = case.as_program(found) != case.file["panoptic"]
    assert not (differs & ~case.file["top2_gap_lt_1e4"]).any()


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_the_official_program_is_reproduced(path):
    check(OfficialCase(path), streaming)


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_the_definition_has_the_official_logits(path):
    case = OfficialCase(path)
    if np.prod(case.size) * len(case.order) > SMALL:
        pytest.skip("the full volume would be too large")
    check(case, reference)
    slots = case.slots()
    slots = competing(slots, reference.keep_instances(slots, case.size, OVERLAP))
    semantic = torch.nn.functional.interpolate(case.inputs[0], scale_factor=4, mode="bilinear")
    volume = panoptic_logits(semantic, slots, STUFF)[0].numpy()
    kept = volume[STUFF:-1][slots.valid[0].numpy()]
    np.testing.assert_allclose(volume[-1, ::4, ::4], case.file["void_f32_sub4"], atol=2e-4)
    np.testing.assert_allclose(kept[:, ::8, ::8], case.file["inst_f16_sub8"], atol=2e-2)
    sums = np.concatenate([volume[:STUFF], kept, volume[-1:]]).sum((1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums, case.file["logits_sum"], rtol=1e-4, atol=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_the_official_program_is_reproduced_on_a_gpu(path):
    case = OfficialCase(path, "cuda")
    check(case, implementation_for(case.inputs[0]))
