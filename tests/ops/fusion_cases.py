"""Random cases for the panoptic head. As a script, with TRITON_INTERPRET=1: the kernels against the definitions."""

import torch

S, T = 3, 2
METHODS = ("unified", "heuristic")


def random_case(seed, batch, slots, network, size, *, mask_size=28):
    """Semantic logits at 1/4 of `network`, and boxes (some beyond the edge), labels, valid and masks on `size`."""
    g = torch.Generator().manual_seed(seed)
    semantic = torch.randn(batch, S + T, *(-(-n // 4) for n in network), generator=g) * 2
    scale = torch.tensor([size[1], size[0]])
    corner = (torch.rand(batch, slots, 2, generator=g) * 1.2 - 0.2) * scale
    boxes = torch.cat([corner, corner + torch.rand(batch, slots, 2, generator=g) * 0.7 * scale], 2)
    labels = torch.randint(1, T + 1, (batch, slots), generator=g)
    valid = torch.arange(slots) < torch.randint(int(batch == 1), slots + 1, (batch, 1), generator=g)
    smooth = torch.randn(batch, slots, 4, 4, generator=g) * 4 + torch.randn(batch, slots, 1, 1, generator=g) * 3
    masks = torch.nn.functional.interpolate(smooth, size=mask_size, mode="bilinear")
    return semantic, boxes, labels, valid, masks


def exact_case(seed):
    """A case without rounding, full of ties (integer logits, whole pixels, cells as large as pixels), and its size."""
    g = torch.Generator().manual_seed(seed)
    semantic = torch.randint(-1, 2, (2, S + T, 10, 16), generator=g).float()
    corner = torch.randint(-4, 40, (2, 12, 2), generator=g).float()
    boxes = torch.cat([corner, corner + 16], 2)
    labels = torch.randint(1, T + 1, (2, 12), generator=g)
    masks = torch.randint(-1, 2, (2, 12, 16, 16), generator=g).float()
    masks[:, 6:], boxes[:, 6:], labels[:, 6:] = masks[:, :6], boxes[:, :6], labels[:, :6]  # every instance twice
    return (semantic, boxes, labels, torch.ones(2, 12, dtype=torch.bool), masks), (40, 64)


def check_kernels(device):
    """Raises where the kernels differ from the definitions; `device` is the CPU under the interpreter."""
    from tests.ops.grouping_cases import check_grouping_kernels
    from upsnet.ops import bias_relu_triton, nms_triton, upsampled_cross_entropy_triton
    from upsnet.ops.nms import nms_mask
    from upsnet.ops.panoptic_fusion import reference, triton
    from upsnet.ops.panoptic_fusion.pipeline import panoptic_map
    from upsnet.ops.upsampled_cross_entropy import _by_stripes

    case, size = exact_case(0)
    cases = [(case, size, size, torch.float32)]
    for seed, slots in ((2, 9), (10, 100), (12, 1)):
        network = ((40, 60), (33, 17), (24, 44))[seed % 3]
        size = ((40, 60), (37, 40), (20, 33))[seed % 3]
        dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
        cases.append((random_case(seed, 1 + seed % 2, slots, network, size), size, network, dtype))
    wide = random_case(6, 1, 5, (8, 600), (5, 1000))  # more words in a row of bits than a program takes at once
    cases.append((wide, (5, 1000), (8, 600), torch.float32))
    nothing = (*wide[:3], torch.ones_like(wide[3]), -wide[4].abs())  # valid, but no mask is on
    cases.append((nothing, (5, 300), (8, 600), torch.float32))
    assert all(case[3].any() for case, *_ in cases), "every case must have instances"
    for number, (case, size, network, dtype) in enumerate(cases):
        inputs = (case[0].to(dtype), *case[1:])
        for method in METHODS:
            options = {"network_size": network, "size": size, "num_stuff": S, "method": method}
            options |= {"overlap_threshold": (0.3, 0.0, 1.0)[number % 3], "with_semantic": True}
            expected = panoptic_map(*inputs, **options, implementation=reference)
            found = panoptic_map(*(t.to(device) for t in inputs), **options, implementation=triton)
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a.cpu(), b), (number, method, int((a.cpu() != b).sum()))
    g = torch.Generator().manual_seed(0)
    for count in (1, 33, 100):
        corner = torch.rand(2, count, 2, generator=g) * 100
        boxes = torch.cat([corner, corner + torch.rand(2, count, 2, generator=g) * 60], 2)
        boxes[:, count // 2 :: 7] = 0  # padding
        for threshold in (0.0, 0.4):
            expected = nms_mask(boxes, threshold)
            assert torch.equal(nms_triton.nms_mask(boxes.to(device), threshold).cpu(), expected), (count, threshold)
    for (channels, height, width), factor in (((7, 5, 6), 4), ((19, 1, 3), 2), ((133, 3, 1), 4)):
        logits = torch.randn(2, channels, height, width, generator=g) * 3
        target = torch.randint(0, channels, (2, height * factor, width * factor), generator=g, dtype=torch.uint8)
        target[0, 1:, ::3] = 255
        expected = _by_stripes(logits, target, factor, 255)
        found = upsampled_cross_entropy_triton.loss_and_gradient(logits.to(device), target.to(device), factor, 255)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)
    x, shortcut = torch.randn(2, 2, 37, 9, 8, generator=g).unbind()
    bias = torch.randn(37, generator=g)
    for other in (None, shortcut):
        found = bias_relu_triton.launch(x.to(device), bias.to(device), None if other is None else other.to(device))
        torch.testing.assert_close(found.cpu(), (x + bias[:, None, None] + (0 if other is None else other)).relu())
    check_grouping_kernels(device)


if __name__ == "__main__":
    check_kernels("cpu")
    print("kernels agree")
