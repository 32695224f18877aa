"""Random cases for the panoptic head. As a script, with TRITON_INTERPRET=1: the kernels against the definitions."""

import torch

S, T = 3, 2
METHODS = ("unified", "official", "heuristic")


def random_case(seed, batch, slots, network, size, *, mask_size=28):
    """Semantic logits at 1/4 of `network`, and boxes (some beyond the edge), labels, valid and masks on `size`."""
    g = torch.Generator().manual_seed(seed)
    semantic = torch.randn(batch, S + T, *(-(-n // 4) for n in network), generator=g) * 2
    scale = torch.tensor([size[1], size[0]])
    corner = (torch.rand(batch, slots, 2, generator=g) * 1.2 - 0.2) * scale
    boxes = torch.cat([corner, corner + torch.rand(batch, slots, 2, generator=g) * 0.7 * scale], 2)
    labels = torch.randint(1, T + 1, (batch, slots), generator=g)
    valid = torch.arange(slots) < torch.randint(0, slots + 1, (batch, 1), generator=g)
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
    from upsnet.ops import nms_triton
    from upsnet.ops.nms import nms_mask
    from upsnet.ops.panoptic_fusion import reference, triton
    from upsnet.ops.panoptic_fusion.pipeline import panoptic_map

    cases = [(*exact_case(0), (40, 64), torch.float32)]
    for seed, slots in enumerate((1, 9, 40, 100)):
        network = ((40, 60), (33, 17), (24, 44))[seed % 3]
        size = ((40, 60), (37, 70), (20, 33))[seed % 3]
        dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
        cases.append((random_case(seed, 1 + seed % 2, slots, network, size), size, network, dtype))
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
    for count in (1, 32, 33, 150):
        corner = torch.rand(2, count, 2, generator=g) * 100
        boxes = torch.cat([corner, corner + torch.rand(2, count, 2, generator=g) * 60], 2)
        boxes[:, count // 2 :: 7] = 0  # padding
        for threshold in (0.0, 0.4, 1.0):
            expected = nms_mask(boxes, threshold)
            assert torch.equal(nms_triton.nms_mask(boxes.to(device), threshold).cpu(), expected), (count, threshold)


if __name__ == "__main__":
    check_kernels("cpu")
    print("kernels agree")
