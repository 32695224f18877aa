"""The grouping of pixels by hand-made cases and by the original program's; its forms against each other."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from tests.ops.grouping_cases import STUFF, THINGS, input_size, random_maps
from upsnet.ops.instance_grouping import reference, tiles
from upsnet.ops.instance_grouping.operator import fuse_for_export, grouped_segments
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse
from upsnet.ops.instance_grouping.placement import Placement
from upsnet.ops.instance_grouping.segments import instances_of_segments, majority_classes, segment_ids
from upsnet.ops.panoptic_fusion.slots import Grid

FORMS = (reference, tiles)
REFERENCES = Path(os.environ.get("UPSNET_REFERENCE") or "/nonexistent") / "panoptic_deeplab"
CASES = sorted(REFERENCES.glob("post_case_*.npz"))


def identity(size) -> Grid:
    return Placement(size, size, size, size, False).grid(torch.device("cpu"))


def fuse_by_each(*args, **options):
    """The maps of the definition, after checking that the compiled loops give the same."""
    expected, found = (fuse(*args, **options, with_semantic=True, implementation=form) for form in FORMS)
    assert torch.equal(found.segment_ids, expected.segment_ids)
    assert torch.equal(found.segment_classes, expected.segment_classes)
    assert torch.equal(found.semantic, expected.semantic)
    torch.testing.assert_close(found.segment_scores, expected.segment_scores, rtol=0, atol=1e-6)
    return expected


def centers(form, heat, **options):
    """Valid centres (y, x) and their heat, of one map."""
    points, values, valid = form.find_centers(
        torch.as_tensor(heat, dtype=torch.float32)[None], GroupingOptions(**options)
    )
    count = int(valid.sum())
    assert valid[0, :count].all(), "valid centres come first"
    assert (points[0, count:] == 0).all()
    return [tuple(p) for p in points[0, :count].tolist()], values[0, :count]


class OriginalCase:
    """A stored case of the original program; its classes are put in our order, stuff first."""

    def __init__(self, path):
        file = dict(np.load(path))
        self.file, things = file, file["thing_list"].tolist()
        self.has_logits = "semantic_int8" in file
        known = len(file["semantic_int8"]) if self.has_logits else max([*things, file["semantic_in"].max()]) + 1
        stuff = [c for c in range(known) if c not in things]
        self.num_stuff, self.order = len(stuff), np.array(stuff + things)
        if self.has_logits:
            logits = file["semantic_int8"].astype(np.float32) * np.float32(file["semantic_scale"])
            self.logits = torch.from_numpy(logits[self.order])[None]
        else:
            self.logits = torch.from_numpy(file["semantic_in"] == self.order[:, None, None]).float()[None]
        self.center, self.offset = torch.from_numpy(file["center"])[None], torch.from_numpy(file["offset"])[None]
        self.size = file["center"].shape
        self.options = GroupingOptions(
            center_threshold=float(file["threshold"]),
            nms_kernel=int(file["nms_kernel"]),
            top_k=int(file["top_k"]),
            stuff_area_limit=int(file["stuff_area"]),
            score="semantic",
            strict_top_k=True,
        )

    def original_ids(self, ids, classes):
        """Our ids [H, W] in the program's numbering: class times divisor, plus the number of the instance."""
        divisor, table, seen = int(self.file["label_divisor"]), {0: int(self.file["void_label"])}, {}
        for number in np.unique(ids[ids > 0]).tolist():
            original = int(self.order[classes[number - 1]])
            table[number] = original * divisor
            if number > self.num_stuff:
                seen[original] = seen.get(original, 0) + 1
                table[number] += seen[original]
        return np.vectorize(table.get, otypes=[np.int64])(ids), table


@pytest.mark.reference
@pytest.mark.skipif(not CASES, reason="UPSNET_REFERENCE names no cases")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_steps_reproduce_the_original_deeplab(path, form):
    case, grid = OriginalCase(path), identity(np.load(path)["center"].shape)
    channels = form.best_channels(case.logits, grid)
    assert (case.order[channels[0].numpy()] == case.file["semantic"]).all()
    points, _, valid = form.find_centers(case.center, case.options)
    assert points[valid].tolist() == case.file["centers"].tolist()
    instance = form.group_pixels(case.offset, points, valid, channels >= case.num_stuff)
    assert (instance[0].numpy() == case.file["instance"]).all()
    votes = form.count_votes(instance, channels, case.options.top_k, len(case.order))
    classes = majority_classes(votes, case.num_stuff)
    ids = segment_ids(instance, channels, votes, case.num_stuff, case.options.stuff_area_limit)[0].numpy()
    classes = np.concatenate([np.arange(case.num_stuff), classes[0].numpy()])
    assert (case.original_ids(ids, classes)[0] == case.file["panoptic"]).all()


@pytest.mark.reference
@pytest.mark.skipif(not CASES, reason="UPSNET_REFERENCE names no cases")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_fusion_reproduces_the_original_deeplab(path):
    case = OriginalCase(path)
    sizes, rest = [case.size], {"num_stuff": case.num_stuff, "options": case.options, "align_corners": True}
    found = fuse(case.logits, case.center[:, None], case.offset, sizes, sizes, input_size=case.size, **rest)
    ids, table = case.original_ids(found.segment_ids[0].numpy(), found.segment_classes[0].numpy())
    assert (ids == case.file["panoptic"]).all()
    if case.has_logits:
        rows = {original: number for number, original in table.items() if number > case.num_stuff}
        assert sorted(rows) == case.file["inst_panoptic_id"].tolist()
        scores = [found.segment_scores[0, rows[i] - 1].item() for i in case.file["inst_panoptic_id"].tolist()]
        np.testing.assert_allclose(scores, case.file["inst_score_semantic"], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_center_is_the_maximum_of_its_window_above_the_threshold(form):
    heat = torch.zeros(9, 12)
    heat[1, 1], heat[1, 4], heat[1, 5], heat[7, 11] = 0.5, 0.6, 0.7, 0.2
    heat[5, 5] = torch.tensor(0.1)  # the float32 of the threshold itself does not count
    assert centers(form, heat, nms_kernel=3)[0] == [(1, 1), (1, 5), (7, 11)]
    assert centers(form, heat, nms_kernel=9)[0] == [(1, 5), (7, 11)]
    assert centers(form, heat, nms_kernel=1)[0] == [(1, 1), (1, 4), (1, 5), (7, 11)]
    points, values = centers(form, heat, center_threshold=0.6, nms_kernel=3)
    assert (points, values.tolist()) == ([(1, 5)], [pytest.approx(0.7)])
    heat[1, 4] = torch.nan
    assert centers(form, heat, nms_kernel=3)[0] == [(1, 1), (1, 5), (7, 11)], "a heat that is no number is no centre"


@pytest.mark.parametrize("form", FORMS)
def test_a_plateau_has_one_center_and_equal_peaks_apart_have_one_each(form):
    heat = torch.zeros(20, 30)
    heat[2:8, 3:25] = 0.5  # far larger than the window
    heat[10, 0] = heat[11, 1] = heat[12, 0] = 0.5  # a group that meets at corners
    heat[15, 10:17] = torch.linspace(0.3, 0.9, 7)  # a slope next to the maximum
    heat[15, 17:20] = 0.9
    assert centers(form, heat, nms_kernel=3)[0] == [(2, 3), (10, 0), (15, 16)]
    assert len(centers(form, heat, nms_kernel=3, strict_top_k=True)[0]) == 6 * 22 + 3 + 4
    # A shoulder that touches a higher pixel is no maximum; the rest of it, out of reach of that pixel, is one.
    shoulder = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.9]])
    assert centers(form, shoulder, nms_kernel=3)[0] == [(0, 0), (0, 4)]


@pytest.mark.parametrize("form", FORMS)
def test_the_highest_centers_stay_and_ties_go_to_the_first(form):
    heat = torch.zeros(5, 40)
    heat[2, ::4] = torch.tensor([0.3, 0.9, 0.5, 0.5, 0.2, 0.5, 0.8, 0.5, 0.4, 0.5])
    found = centers(form, heat, nms_kernel=3, top_k=4)[0]
    assert found == [(2, 4), (2, 8), (2, 12), (2, 24)], "exactly four, in row-major order"
    assert centers(form, heat, nms_kernel=3, top_k=1)[0] == [(2, 4)]
    assert len(centers(form, heat, nms_kernel=3, top_k=10)[0]) == 10
    # The original program drops all that tie with the last.
    assert centers(form, heat, nms_kernel=3, top_k=4, strict_top_k=True)[0] == [(2, 4), (2, 24)]
    assert len(centers(form, heat, nms_kernel=3, top_k=10, strict_top_k=True)[0]) == 9
    assert centers(form, heat, nms_kernel=3, top_k=1, strict_top_k=True)[0] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_pixel_joins_the_nearest_center_and_the_first_of_equals(form):
    points = torch.tensor([[[2, 1], [2, 5], [2, 9], [0, 0]]])
    valid = torch.tensor([[True, True, True, False]])
    is_thing = torch.ones(1, 5, 11, dtype=torch.bool)
    is_thing[0, 4] = False
    offset = torch.zeros(1, 2, 5, 11)
    row = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]  # columns 3 and 7 are as far from both neighbours
    assert form.group_pixels(offset, points, valid, is_thing)[0].tolist() == [row] * 4 + [[0] * 11]
    offset[0, 1] = 4  # all points move, some beyond the edge
    assert form.group_pixels(offset, points, valid, is_thing)[0, 0].tolist() == [2] * 4 + [3] * 7
    offset[0, 1, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    assert form.group_pixels(offset, points, valid, is_thing)[0, 0].tolist() == [1] * 4 + [3] * 7
    nothing = form.group_pixels(offset, points, torch.zeros_like(valid), is_thing)
    assert (nothing == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_votes_decide_the_class_and_small_stuff_and_orphans_are_void(form):
    # Channels 0 and 1 are stuff; 2, 3 and 4 are things.
    channels = torch.tensor([[[0, 0, 0, 1, 1, 4], [3, 2, 3, 4, 2, 3], [2, 0, 4, 4, 4, 3]]], dtype=torch.int32)
    instance = torch.tensor([[[0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 2], [1, 0, 3, 3, 3, 3]]], dtype=torch.int32)
    votes = form.count_votes(instance, channels, 4, 5)
    assert votes[0, 0].tolist() == [4, 2, 0, 0, 1]
    classes = majority_classes(votes, 2)
    assert classes.tolist() == [[2, 2, 4, 2]], "a tie goes to the first class, and no pixels are a tie"
    ids = segment_ids(instance, channels, votes, 2, 3)
    assert ids.tolist() == [[[1, 1, 1, 0, 0, 0], [3, 3, 3, 4, 4, 4], [3, 1, 5, 5, 5, 5]]]
    assert (segment_ids(instance, channels, votes, 2, 5)[0, 0] == 0).all()


def test_scores_are_the_probability_of_the_class_times_the_heat_at_the_center():
    # Two columns of stuff, then two instances of one class whose pixels have probabilities 3/4 and 1/2.
    logits = torch.zeros(1, 3, 8, 8)
    logits[0, 0, :, :2] = 20
    logits[0, 2, :, 2:5], logits[0, 1, :, 2:5] = np.log(6), 0
    logits[0, 1, :, 5:] = -20
    logits[0, 2, :, 5:] = 0.01
    heat = torch.zeros(1, 1, 8, 8)
    heat[0, 0, 4, 3], heat[0, 0, 4, 6] = 0.5, 1.5
    expected = {"semantic": [0.75, 0.5025], "center": [0.5, 1], "both": [0.375, 0.5025]}
    for score, values in expected.items():
        options = GroupingOptions(nms_kernel=3, top_k=4, stuff_area_limit=0, score=score)
        rest = {"input_size": (8, 8), "num_stuff": 1, "options": options, "align_corners": False}
        found = fuse_by_each(logits, heat, torch.zeros(1, 2, 8, 8), [(8, 8)], [(8, 8)], **rest)
        assert found.segment_ids[0, 4].tolist() == [1, 1, 2, 2, 2, 3, 3, 3]
        assert found.segment_classes.tolist() == [[0, 2, 2, 1, 1]]
        torch.testing.assert_close(found.segment_scores, torch.tensor([[1, *values, 0, 0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_maps_and_offsets_are_resized_to_the_result_in_one_step(align_corners):
    """On a map that grows linearly, the value at a pixel tells the position in cells, and an offset its length."""
    cells, size = (9, 13), input_size((9, 13), align_corners)
    place = Placement(cells, size, (size[0] - 6, size[1]), (60, 200), align_corners)
    ramp = torch.stack(torch.meshgrid(torch.arange(9.0), torch.arange(13.0), indexing="ij"))[None]
    y, x = (tiles.upsample(place.crop(ramp), place.grid(ramp.device))[0, i] for i in range(2))
    for found, axis in ((y[:, 0], 0), (x[0], 1)):
        pixels, image, output = size[axis], place.image_size[axis], place.output_size[axis]
        u = (torch.arange(output, dtype=torch.float64) + 0.5) * image / output - 0.5
        cell = u * (cells[axis] - 1) / (pixels - 1) if align_corners else (u + 0.5) * cells[axis] / pixels - 0.5
        used = cells[axis] if align_corners or axis else 8  # of 36 rows, 30 are of the image: 7 1/2 cells
        torch.testing.assert_close(found.double(), cell.clamp(0, used - 1), rtol=0, atol=1e-5)
        # One cell further is `pixels_per_cell` pixels of the result further.
        step = place.pixels_per_cell()[axis]
        torch.testing.assert_close(1 / step, float(cell[-1] - cell[0]) / (output - 1))
    plain = tiles.upsample(ramp, Placement(cells, size, size, size, align_corners).grid(ramp.device))
    expected = nn.functional.interpolate(ramp, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("seed", range(14))
def test_the_compiled_loops_equal_the_definition(seed):
    batch, align_corners = 1 + seed % 2, seed % 3 == 0
    cells, peaks = ((9, 14), (24, 31), (40, 33))[seed % 3], (0, 1, 20, 200, 126, 400, 50)[seed % 7]
    levels = 3 if seed % 4 == 1 else None
    kinds = {3: {"things": 0}, 6: {"stuff": 0}}.get(seed, {})
    maps = random_maps(
        seed, batch, cells, min(peaks, cells[0] * cells[1]), levels=levels, reach=(1, 30)[seed % 2], **kinds
    )
    size = input_size(cells, align_corners)
    images = [size, (size[0] - 9, size[1] - 3)][:batch]
    outputs = [((50, 77), images[0], (17, 20))[seed % 3], images[-1]][:batch]
    top_k = 200 if seed % 2 else 40
    options = GroupingOptions(nms_kernel=(3, 7)[seed % 2], top_k=top_k, stuff_area_limit=50)
    num_stuff = kinds.get("stuff", STUFF)
    rest = {"input_size": size, "num_stuff": num_stuff, "options": options, "align_corners": align_corners}
    found = fuse_by_each(*maps, images, outputs, **rest)
    assert found.segment_classes.shape == (batch, num_stuff + top_k)
    for ids, (height, width) in zip(found.segment_ids, outputs, strict=True):
        assert (ids[height:] == 0).all()
        assert (ids[:, width:] == 0).all()
        assert bool((ids > num_stuff).any()) == (peaks > 0 and "things" not in kinds)
    scores = found.segment_scores[:, num_stuff:]
    present = torch.stack(
        [(ids[..., None] == torch.arange(top_k) + num_stuff + 1).any(0).any(0) for ids in found.segment_ids]
    )
    assert torch.equal(scores > 0, present)
    assert scores.max() <= 1


def test_a_batch_is_its_images_one_by_one_and_padding_has_no_effect():
    maps, size = random_maps(1, 3, (20, 24), 60), (80, 96)
    images, outputs = [(61, 70), (61, 70), (80, 96)], [(122, 140), (122, 140), (40, 50)]
    options = GroupingOptions(top_k=30, stuff_area_limit=10)
    rest = {"num_stuff": STUFF, "options": options, "align_corners": False}
    together = fuse(*maps, images, outputs, input_size=size, **rest, with_semantic=True)
    for i in range(3):
        cells = (16, 18) if i < 2 else (20, 24)  # those that touch the image
        alone = [x[i : i + 1, :, : cells[0], : cells[1]] for x in maps]
        padded = (4 * cells[0], 4 * cells[1])
        found = fuse(*alone, images[i : i + 1], outputs[i : i + 1], input_size=padded, **rest, with_semantic=True)
        height, width = outputs[i]
        assert torch.equal(together.segment_ids[i, :height, :width], found.segment_ids[0])
        assert torch.equal(together.semantic[i, :height, :width], found.semantic[0])
        assert torch.equal(together.segment_classes[i], found.segment_classes[0])
        assert torch.equal(together.segment_scores[i], found.segment_scores[0])


def grouping(maps, placement):
    """Channel [H, W], own centre (y, x) [H, W, 2], and bool [H, W]: two channels, or two centres, tie exactly."""
    grid = placement.grid(torch.device("cpu"))
    logits, heat, offset = (tiles.upsample(x, grid) for x in maps)
    offset = offset * torch.tensor(placement.pixels_per_cell())[:, None, None]
    points, _, valid = tiles.find_centers(heat[:, 0], GroupingOptions(top_k=100))
    channels = tiles.best_channels(maps[0], grid)
    instance = tiles.group_pixels(offset, points, valid, torch.ones_like(channels, dtype=torch.bool))
    y, x = torch.meshgrid(*(torch.arange(n) for n in placement.output_size), indexing="ij")
    pointed = torch.stack([y, x], 2) + offset[0].movedim(0, 2)
    distance = (pointed[:, :, None] - points[valid]).square().sum(3)
    nearest, best = distance.topk(2, largest=False).values, logits[0].topk(2, dim=0).values
    ties = (nearest[..., 0] == nearest[..., 1]) | (best[0] == best[1])
    return channels[0], points[0][instance[0].long() - 1], ties


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_flipped_input_gives_the_flipped_result_outside_exact_ties(align_corners):
    """Logits and offsets have few bits, so that nothing rounds."""
    cells = (17, 21)
    size = input_size(cells, align_corners)
    placement = Placement(cells, size, size, size, align_corners)
    logits, heat, offset = random_maps(5, 1, cells, 30)
    heat[..., [0, -1]] = heat[..., [0, -1], :] = 0  # the pixels beyond the last cell's centre are a plateau
    logits, offset = ((x * 64).round() / 64 for x in (logits, offset))
    flipped = (logits.flip(3), heat.flip(3), offset.flip(3) * torch.tensor([1.0, -1])[:, None, None])
    channels, centers_, ties = grouping((logits, heat, offset), placement)
    other_channels, other_centers, _ = (x.flip(1) for x in grouping(flipped, placement))
    other_centers[..., 1] = size[1] - 1 - other_centers[..., 1]
    assert ties.float().mean() < 0.02
    assert torch.equal(channels[~ties], other_channels[~ties])
    assert torch.equal(centers_[~ties], other_centers[~ties])


def test_half_precision_autocast_and_gradients_do_not_reach_the_fusion():
    maps, size = random_maps(2, 1, (20, 24), 40), (80, 96)
    options = GroupingOptions(top_k=30, stuff_area_limit=10)
    rest = {"input_size": size, "num_stuff": STUFF, "options": options, "align_corners": False}
    half = [x.bfloat16() for x in maps]
    expected = fuse_by_each(*(x.float() for x in half), [size], [(50, 70)], **rest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fuse_by_each(*(x.requires_grad_() for x in half), [size], [(50, 70)], **rest)
    assert torch.equal(found.segment_ids, expected.segment_ids)
    assert torch.equal(found.segment_scores, expected.segment_scores)


def test_a_large_image_takes_little_memory(peak_memory):
    maps = random_maps(0, 1, (257, 513), 200, stuff=11, things=8, reach=5)
    rest = {"num_stuff": 11, "options": GroupingOptions(), "align_corners": True}
    fuse(*(x[..., :33, :33] for x in maps), [(129, 129)], [(129, 129)], input_size=(129, 129), **rest)
    peak = peak_memory()
    found = fuse(*maps, [(1024, 2048)], [(1024, 2048)], input_size=(1025, 2049), **rest)
    assert len(found.segment_ids.unique()) > 150
    assert peak() < 64


@pytest.fixture
def peak_memory():
    """A function that starts to measure and returns one that gives the megabytes at the peak since then."""

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

    def start():
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pytest.skip("the system does not reset the peak of a process's memory")
        before = status("VmRSS")
        return lambda: status("VmHWM") - before

    return start


def test_the_instances_of_a_map_have_labels_scores_and_masks_in_their_boxes():
    ids = torch.tensor([[1, 1, 4, 4], [3, 0, 4, 2], [3, 3, 4, 2]], dtype=torch.int32)
    classes, scores = torch.tensor([0, 1, 3, 2, 2]), torch.tensor([1, 1, 0.5, 0.25, 0])
    found = instances_of_segments(ids, classes, scores, 2)
    assert found.valid.tolist() == [True, True, False]
    assert found.labels[found.valid].tolist() == [2, 1]
    assert found.scores[found.valid].tolist() == [0.5, 0.25]
    windows = list(found.windows())
    assert [place for _, *place in windows] == [[1, 0], [0, 2]]
    for number, (mask, top, left) in zip((3, 4), windows, strict=True):
        whole = torch.zeros(3, 4, dtype=torch.bool)
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        assert torch.equal(whole, ids == number)
    empty = instances_of_segments(torch.zeros(3, 4, dtype=torch.int32), classes, scores, 2)
    assert not empty.valid.any()
    assert list(empty.windows()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("center_threshold", -0.1), ("nms_kernel", 4), ("nms_kernel", 0), ("top_k", 0), ("stuff_area_limit", -1)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        GroupingOptions(**{name: value})


class Fusion(nn.Module):
    """The operator in a graph of any size."""

    def __init__(self, align_corners, options):
        super().__init__()
        self.rest = {"num_stuff": STUFF, "options": options, "align_corners": align_corners}

    def forward(self, images, semantic, center, offset, image_sizes, canvas):
        size = (images.shape[2], images.shape[3])
        return fuse_for_export(semantic, center, offset, image_sizes, canvas, input_size=size, **self.rest)


def graph_inputs(seed, cells, output, align_corners, peaks=60, **kinds):
    size = input_size(cells, align_corners)
    images, sizes = torch.zeros(2, 3, *size, dtype=torch.uint8), torch.tensor([size, (size[0] - 3, size[1] - 2)])
    maps = random_maps(seed, 2, cells, min(peaks, cells[0] * cells[1]), **kinds)
    return images, *maps, sizes, torch.zeros(output)


@pytest.mark.parametrize(("align_corners", "score"), [(True, "both"), (False, "semantic")])
def test_exported_graphs_give_the_same_maps(align_corners, score, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from upsnet.export import onnx_ops
    from upsnet.models import build  # noqa: F401 - registers the other operators

    model = Fusion(align_corners, GroupingOptions(nms_kernel=3, top_k=40, stuff_area_limit=30, score=score))
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)
    maps = {2: rows, 3: columns}
    images = {2: 4 * rows - 3, 3: 4 * columns - 3} if align_corners else {2: 4 * rows, 3: 4 * columns}
    shapes = (images, maps, maps, maps, None, {0: Dim("height", min=2), 1: Dim("width", min=2)})
    program = torch.export.export(model, graph_inputs(0, (9, 14), (33, 40), align_corners), dynamic_shapes=shapes)
    exported = torch.onnx.export(
        program, (), dynamo=True, verbose=False, opset_version=18, custom_translation_table=onnx_ops.translations()
    )
    onnx_ops.inline_functions(exported.model)
    exported.save(tmp_path / "fusion.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "fusion.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for seed, (cells, output, peaks, kinds) in enumerate(
        [
            ((9, 14), (33, 40), 60, {}),
            ((20, 17), (150, 60), 300, {"levels": 3}),
            ((12, 10), (5, 7), 0, {}),
            ((2, 2), (40, 44), 3, {"reach": 30}),
        ]
    ):
        inputs = graph_inputs(seed, cells, output, align_corners, peaks, **kinds)
        expected = model(*inputs)
        found = [
            torch.from_numpy(x) for x in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        ]
        for other in (found, program.module()(*inputs)):
            for a, b in zip(other, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0 if a.dtype != torch.float32 else 1e-6)
        assert bool((expected[0] > STUFF).any()) == (peaks > 0)


def test_the_operator_declares_what_it_gives():
    images, *inputs = graph_inputs(0, (9, 14), (33, 40), True)
    options = (*images.shape[2:], STUFF, True, 0.1, 7, 20, 0, "both")
    torch.library.opcheck(grouped_segments, (*inputs, *options), test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(ValueError, match="strict_top_k"):
        Fusion(True, GroupingOptions(strict_top_k=True))(images, *inputs)


def test_things_alone_and_stuff_alone_have_tables_of_the_same_length():
    for stuff, things in ((0, THINGS), (STUFF, 0)):
        maps = random_maps(0, 1, (9, 14), 20, stuff=stuff, things=things)
        rest = {"num_stuff": stuff, "options": GroupingOptions(top_k=15, stuff_area_limit=0), "align_corners": False}
        found = fuse_by_each(*maps, [(36, 56)], [(36, 56)], input_size=(36, 56), **rest)
        assert found.segment_classes.shape == found.segment_scores.shape == (1, stuff + 15)
        assert bool((found.segment_ids > stuff).any()) == (things > 0)
        assert (found.segment_ids > 0).all()
