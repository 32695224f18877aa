"""Random maps for the grouping of pixels, and its kernels against the definitions."""

import torch

from upsnet.ops.instance_grouping import reference
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse

STUFF, THINGS = 3, 2


def random_maps(seed, batch, cells, peaks, *, stuff=STUFF, things=THINGS, levels=None, reach=2.0):
    """Logits, heat with `peaks` maxima an image at random cells, and offsets of `reach` cells.

    With `levels`, heat takes so many values only: it has plateaus, and equal peaks.
    """
    g = torch.Generator().manual_seed(seed)
    height, width = cells
    logits = torch.randn(batch, stuff + things, height, width, generator=g) * 2
    heat = torch.rand(batch, height * width, generator=g) * 0.05
    for row in heat:
        row[torch.randperm(height * width, generator=g)[:peaks]] = 0.2 + 0.8 * torch.rand(peaks, generator=g)
    heat = heat.view(batch, 1, height, width)
    if levels:
        heat = torch.nn.functional.max_pool2d((heat * levels).round() / levels, 3, 1, 1)
    return logits, heat, torch.randn(batch, 2, height, width, generator=g) * reach


def input_size(cells, align_corners):
    """(H, W) of the network input for maps at 1/4."""
    return tuple(4 * (n - 1) + 1 if align_corners else 4 * n for n in cells)


def check_grouping_kernels(device):
    """Raises where the kernels differ from the definitions; `device` is the CPU under the interpreter."""
    from upsnet.ops.instance_grouping import triton

    for seed, peaks, sizes in ((0, 30, ((33, 37), (20, 50))), (1, 0, ((16, 20), (16, 20)))):
        align_corners, cells = seed == 0, (9, 14)
        size = input_size(cells, align_corners)
        images = [size, (size[0] - 5, size[1] - 2)]
        options = GroupingOptions(nms_kernel=3, top_k=12, stuff_area_limit=40)
        rest = {"input_size": size, "num_stuff": STUFF, "options": options, "align_corners": align_corners}
        maps = random_maps(seed, 2, cells, peaks)
        expected = fuse(*maps, images, sizes, **rest, with_semantic=True, implementation=reference)
        maps = [x.to(device) for x in maps]
        found = fuse(*maps, images, sizes, **rest, with_semantic=True, implementation=triton)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6)
    assert (expected.segment_ids <= STUFF).all()
