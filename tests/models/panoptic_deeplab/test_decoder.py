"""Decoders and heads of Panoptic-DeepLab: pooling, dropout, resizing, and the order of maps."""

import pytest
import torch
from torch.nn import functional as F

from tests.models.panoptic_deeplab.deeplab import make_config
from upsnet.config.panoptic_deeplab import ASPPConfig
from upsnet.models.panoptic_deeplab.aspp import ASPP, ImageDropout, PoolingBranch
from upsnet.models.panoptic_deeplab.decoder import Decoder, DecoderStage, Head

SIZES = torch.tensor([[90, 60], [128, 160]])


def branch_of(**options):
    torch.manual_seed(0)
    return PoolingBranch(6, ASPPConfig(channels=4, **options), 16, align_corners=True)


def test_the_pooling_branch_averages_the_valid_cells():
    branch, x = branch_of(pool_bias=True), torch.randn(2, 6, 8, 10)
    found = branch(x, SIZES)
    assert found.shape == (2, 4, 8, 10)
    for row, (height, width) in enumerate([(6, 4), (8, 10)]):  # 90 / 16 and 60 / 16, rounded up
        mean = x[row, :, :height, :width].mean((1, 2))
        expected = (branch.conv.weight[..., 0, 0] @ mean + branch.conv.bias).relu()
        torch.testing.assert_close(found[row], expected[:, None, None].expand(4, 8, 10))


def test_padding_changes_nothing_in_the_pooling_branch():
    branch, x = branch_of(), torch.randn(2, 6, 8, 10)
    padded = F.pad(x, (0, 3, 0, 5), value=9.0)
    torch.testing.assert_close(branch(padded, SIZES)[..., :8, :10], branch(x, SIZES))


def test_sixteen_bits_are_added_in_32():
    """In bfloat16 a sum of 1 x 4096 ends at 256."""
    branch = branch_of().bfloat16()
    branch.conv.weight.data.fill_(1)
    found = branch(torch.ones(1, 6, 64, 64, dtype=torch.bfloat16), torch.tensor([[1024, 1024]]))
    assert found.dtype == torch.bfloat16
    assert (found == 6).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(8, 10), (8, 7), (5, 10), (3, 12), (1, 1)])
def test_the_pooling_window_slides_as_in_the_programs(align_corners, size):
    """A window larger than the map averages all of it."""
    branch, x = branch_of(pool_window=(65, 97)), torch.randn(2, 6, *size)
    branch.align_corners = align_corners
    kernel = [min(side, whole) for side, whole in zip((5, 7), size, strict=True)]
    pooled = branch.conv(F.avg_pool2d(x, kernel, stride=1)).relu()
    expected = F.interpolate(pooled, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(branch(x, SIZES), expected)


def test_dropout_is_a_function_of_image_and_position():
    dropout = ImageDropout(0.25, stream=1).train()
    x, seeds = torch.ones(2, 16, 20, 30), torch.tensor([5, 7])
    found = dropout(x, seeds)
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(found[found > 0].unique(), torch.tensor([1 / 0.75]))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(dropout(x[1:], seeds[1:])[0], found[1]), "whatever else is in the batch"
    assert torch.equal(dropout(F.pad(x, (0, 4, 0, 4)), seeds)[..., :20, :30], found), "at any padding"
    assert not torch.equal(ImageDropout(0.25, stream=2).train()(x, seeds), found)
    for unchanged in (dropout.eval()(x, seeds), ImageDropout(0, 1).train()(x, seeds), dropout.train()(x, None)):
        assert unchanged is x


@pytest.mark.parametrize("low_level_first", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_stage_joins_the_resized_map_and_the_projected_one(low_level_first, align_corners):
    options = (f"model.low_level_first={low_level_first}", f"model.align_corners={align_corners}")
    stage = DecoderStage(4, 6, 2, 8, make_config(*options).model).eval()
    x, low_level, seen = torch.randn(1, 4, 3, 5), torch.randn(1, 6, 5, 9), []
    stage.fuse.register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    assert stage(x, low_level).shape == (1, 8, 5, 9)
    resized = F.interpolate(x, size=(5, 9), mode="bilinear", align_corners=align_corners)
    parts = [resized, stage.project(low_level)]
    torch.testing.assert_close(seen[0], torch.cat(parts[::-1] if low_level_first else parts, 1))


@pytest.mark.parametrize("levels", [[8], [8, 4], [8, 4, 2]])
def test_the_decoder_ends_at_the_finest_map(levels):
    config = make_config().model
    decoder = Decoder([10, 20, 30, 40], levels, 12, config, 0).eval()
    features = [torch.randn(2, c, 32 >> n, 40 >> n) for n, c in enumerate((10, 20, 30, 40))]
    assert decoder(features, torch.tensor([[128, 160]] * 2)).shape == (2, 12, 32, 40)
    inputs = [stage.project.conv.in_channels for stage in decoder.stages]
    assert inputs == [30, 20, 10][-len(levels) :]
    assert [stage.project.conv.out_channels for stage in decoder.stages] == levels


def test_kinds_of_convolutions():
    def kernels(module):
        convs = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        return [(c.kernel_size[0], c.dilation[0], c.groups > 1, c.out_channels) for c in convs]

    separable, dense = (
        make_config(f"model.conv={kind}", f"model.aspp.conv={kind}").model for kind in ("separable", "dense")
    )
    assert kernels(Head(16, 8, 3, separable)) == [(5, 1, True, 16), (1, 1, False, 8), (1, 1, False, 3)]
    assert kernels(Head(16, 8, 3, dense)) == [(3, 1, False, 16), (3, 1, False, 8), (1, 1, False, 3)]
    assert kernels(ASPP(24, dense, 0).branches) == [(1, 1, False, 16), (3, 1, False, 16), (3, 2, False, 16)]
    expected = [(1, 1, False, 16), (3, 1, True, 24), (1, 1, False, 16), (3, 2, True, 24), (1, 1, False, 16)]
    assert kernels(ASPP(24, separable, 0).branches) == expected
