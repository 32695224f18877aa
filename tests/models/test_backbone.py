import pytest
import torch
import torchvision
from torch import nn

from upsnet.config import BackboneConfig
from upsnet.models.backbone import ResNet
from upsnet.models.layers import Conv2d, DeformableConv, FrozenBatchNorm2d
from upsnet.models.pretrained.weights import load_backbone_weights
from upsnet.models.upsnet.fpn import FPN


def resnet(name, **options):
    return ResNet(BackboneConfig(name=name, **options))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_equal_torchvisions_with_its_weights_from_a_file(tmp_path, name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = resnet(name, norm="frozen_bn")
    load_backbone_weights(ours, name, str(tmp_path / "weights.pth"))
    x = torch.randn(1, 3, 64, 96)
    features = ours(x)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for feature, stage in zip(features, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
        expected = stage(expected)
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert [f.shape[1] for f in features] == ours.channels


def test_weights_that_do_not_fit_are_refused(tmp_path):
    ours = resnet("resnet18", width=16, norm="bn", freeze_at=0)
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: does not fit resnet18"):
        load_backbone_weights(ours, "resnet18", str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: refused as a PyTorch file"):
        load_backbone_weights(ours, "resnet18", str(tmp_path / "text.pth"))
    with pytest.raises(FileNotFoundError, match="IMAGENET1K_V1"):
        load_backbone_weights(ours, "resnet18", "IMAGENET1K_V9")


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_frozen_parts_do_not_learn_and_do_not_track(freeze_at):
    model = resnet("resnet18", width=16, norm="bn", freeze_at=freeze_at).train()
    parts = [model.conv1, model.layer1, model.layer2, model.layer3, model.layer4]
    trainable = [any(p.requires_grad for p in part.parameters()) for part in parts]
    assert trainable == [i >= freeze_at for i in range(5)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    stem_moves = any(k.startswith("bn1.running") for k in moved)
    assert stem_moves == (freeze_at == 0)
    assert bool(moved) == (freeze_at < 5)


def test_frozen_norms_stay_frozen_and_group_norm_exists():
    model = resnet("resnet18", width=16).train()
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    model = resnet("resnet18", width=16, norm="gn", freeze_at=0)
    assert model(torch.randn(1, 3, 64, 64))[3].shape == (1, 128, 2, 2)


def test_bottlenecks_can_stride_in_their_first_convolution():
    ours, plain = (resnet("resnet50", width=16, norm="bn", freeze_at=0, stride_in_1x1=s) for s in (True, False))
    for stage in (ours.layer2, ours.layer3, ours.layer4):
        assert [(b.conv1.stride, b.conv2.stride) for b in stage][:2] == [((2, 2), (1, 1)), ((1, 1), (1, 1))]
    assert plain.layer2[0].conv2.stride == (2, 2)
    assert ours.layer1[0].conv1.stride == (1, 1)
    x = torch.randn(1, 3, 64, 96)
    assert [f.shape for f in ours(x)] == [f.shape for f in plain(x)]


def test_deformable_stages_start_as_plain_ones():
    torch.manual_seed(0)
    plain = resnet("resnet50", width=16, norm="bn", freeze_at=0).eval()
    ours = resnet("resnet50", width=16, norm="bn", freeze_at=0, deformable_from=4).eval()
    missing = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[0] for name in missing.missing_keys} == {"layer3", "layer4"}
    assert all("conv2.offset" in name for name in missing.missing_keys)
    for a, b in zip(ours(x := torch.randn(1, 3, 64, 96)), plain(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_norm_eps_reaches_every_norm():
    ours = resnet("resnet18", width=16, norm="frozen_bn", norm_eps=0.25)
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.25}


def test_the_global_mean_is_added_to_p5():
    torch.manual_seed(0)
    fpn = FPN([8, 8, 8, 8], 16, extra_level=False, gap=True)
    features = [torch.randn(1, 8, 32 >> n, 48 >> n) for n in range(4)]
    with torch.no_grad():
        fpn.gap.weight.zero_()
        fpn.gap.bias.zero_()
        without = fpn(features)
        fpn.gap.weight.copy_(torch.eye(16, 8))
        fpn.layer_blocks[3].weight.copy_(torch.eye(16)[:, :, None, None] * torch.eye(3)[1].outer(torch.eye(3)[1]))
        fpn.layer_blocks[3].bias.zero_()
        found = fpn(features)[3]
        fpn.gap.weight.zero_()
        expected = fpn(features)[3]
    difference = (found - expected)[0, :8].mean((1, 2))
    torch.testing.assert_close(difference, features[3].mean((0, 2, 3)))
    assert len(without) == 4


def test_a_frozen_norm_is_batch_norm_in_evaluation_but_keeps_no_input():
    torch.manual_seed(0)
    norm, plain = FrozenBatchNorm2d(6), torch.nn.BatchNorm2d(6).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.uniform_(0.5, 2)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        found = norm(x)
    assert x.shape not in kept
    torch.testing.assert_close(found, plain(x))
    gradients = [torch.autograd.grad((y * x.detach()).sum(), x)[0] for y in (found, plain(x))]
    torch.testing.assert_close(*gradients)


def test_checkpointed_blocks_keep_less_and_have_the_same_gradients():
    torch.manual_seed(0)
    plain = resnet("resnet50", width=16, norm="gn", freeze_at=2).train()
    saving = resnet("resnet50", width=16, norm="gn", freeze_at=2, checkpoint_activations=True).train()
    saving.load_state_dict(plain.state_dict())
    x, results, kept = torch.randn(1, 3, 64, 64), [], []
    for model in (plain, saving):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.update({t.data_ptr(): t}) or t, lambda t: t):
            features = model(x)
        owned = {p.data_ptr() for p in model.parameters()}
        kept.append(sum(t.nbytes for address, t in sizes.items() if address not in owned))
        parameters = [p for p in model.parameters() if p.requires_grad]
        results.append(torch.autograd.grad(sum(f.square().mean() for f in features), parameters))
    assert kept[1] < kept[0] / 3
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointing_refuses_batch_statistics(make_config):
    with pytest.raises(ValueError, match="checkpoint_activations=true needs norm frozen_bn or gn"):
        make_config("model.backbone.checkpoint_activations=true")


@pytest.mark.parametrize("size", [3, 40])
def test_a_frozen_norm_is_the_same_inside_the_convolution(size):
    """Inside it where the features are more than the weights, else behind it."""
    torch.manual_seed(0)
    conv, norm = Conv2d(8, 12, 3, stride=2, padding=1, bias=False), FrozenBatchNorm2d(12)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.uniform_(0.5, 2)
    x = torch.randn(2, 8, size, size, requires_grad=True)
    plain = norm(conv(x))
    shortcut = torch.randn_like(plain)
    weight = torch.randn_like(plain)
    for found, expected in (
        (conv(x, norm), plain),
        (conv(x, norm, relu=True), plain.relu()),
        (conv(x, norm, shortcut, relu=True), (plain + shortcut).relu()),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        ours, theirs = (
            torch.autograd.grad((y * weight).sum(), (x, conv.weight), retain_graph=True) for y in (found, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [Conv2d, DeformableConv])
def test_a_convolution_computes_what_follows_it(layer):
    torch.manual_seed(0)
    conv = layer(4, 6, 3, padding=1) if layer is Conv2d else layer(4, 6)
    norm = nn.BatchNorm2d(6).eval()
    norm.running_mean.uniform_(-1, 1)
    x, shortcut = torch.randn(2, 4, 8, 9), torch.randn(2, 6, 8, 9)
    plain = conv(x)
    torch.testing.assert_close(conv(x, norm, shortcut, relu=True), (norm(plain) + shortcut).relu())
    torch.testing.assert_close(conv(x, None, shortcut), plain + shortcut)
    torch.testing.assert_close(conv(x, relu=True), plain.relu())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_backbone_has_the_features_of_the_plain_one_on_a_finer_grid(name, output_stride):
    torch.manual_seed(0)
    options = {"width": 16, "norm": "bn", "freeze_at": 0}
    plain, ours = resnet(name, **options).eval(), resnet(name, **options, output_stride=output_stride).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 96, 160)
    features = ours(x)
    assert [96 // f.shape[2] for f in features] == [4, 8, min(16, output_stride), output_stride]
    for stride, found, expected in zip((4, 8, 16, 32), features, plain(x), strict=True):
        step = stride // (96 // found.shape[2])
        torch.testing.assert_close(found[..., ::step, ::step], expected, rtol=1e-4, atol=1e-5)


def test_dilations_are_those_of_torchvision_and_of_the_multi_grid():
    def dilations(model):
        return [[block.conv2.dilation[0] for block in stage] for stage in (model.layer3, model.layer4)]

    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    assert (
        dilations(resnet("resnet50", width=16, output_stride=8)) == dilations(theirs) == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]
    )
    assert dilations(resnet("resnet50", width=16, output_stride=16, multi_grid=[1, 2, 4])) == [[1] * 6, [2, 4, 8]]
    assert dilations(resnet("resnet50", width=16, multi_grid=[1, 2, 1])) == [[1] * 6, [1, 2, 1]]
    basic = resnet("resnet18", width=16, output_stride=8).layer4
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in basic] == [(2, 4), (4, 4)]
    with pytest.raises(ValueError, match=r"multi_grid=\[1, 2\]: expected 3 values, one for each block of res5"):
        resnet("resnet50", multi_grid=[1, 2])


@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_the_deep_stem_has_three_convolutions(freeze_at):
    model = resnet("resnet50", width=16, norm="bn", freeze_at=freeze_at, stem="deeplab").train()
    convs = [model.conv1, model.conv2, model.conv3]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (3, 16, 3, 2),
        (16, 16, 3, 1),
        (16, 32, 3, 1),
    ]
    assert model.layer1[0].conv1.in_channels == 32
    parts = [*convs, model.bn3, model.layer1, model.layer2]
    learns = [all(p.requires_grad for p in part.parameters()) for part in parts]
    assert learns == [freeze_at == 0] * 4 + [freeze_at < 2, True]
    assert [f.shape[2] for f in model(torch.randn(2, 3, 64, 96))] == [16, 8, 4, 2]


def test_deformable_stages_are_not_dilated(make_config):
    with pytest.raises(ValueError, match=r"deformable_from needs output_stride=32"):
        make_config("model.backbone.deformable_from=5", "model.backbone.output_stride=16")
