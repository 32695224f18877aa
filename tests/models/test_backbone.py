import pytest
import torch
import torchvision
from torch import nn

from upsnet.models.backbone import ResNet
from upsnet.models.layers import FrozenBatchNorm2d
from upsnet.models.weights import load_backbone_weights


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_equal_torchvisions_with_its_weights_from_a_file(tmp_path, name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = ResNet(name, norm="frozen_bn")
    load_backbone_weights(ours, name, str(tmp_path / "weights.pth"))
    x = torch.randn(1, 3, 64, 96)
    features = ours(x)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for feature, stage in zip(features, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True):
        expected = stage(expected)
        torch.testing.assert_close(feature, expected)
    assert [f.shape[1] for f in features] == ours.channels


def test_weights_that_do_not_fit_are_refused(tmp_path):
    ours = ResNet("resnet18", width=16, norm="bn", freeze_at=0)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: does not fit resnet18"):
        load_backbone_weights(ours, "resnet18", str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: refused as a PyTorch file"):
        load_backbone_weights(ours, "resnet18", str(tmp_path / "text.pth"))
    with pytest.raises(FileNotFoundError, match="IMAGENET1K_V1"):
        load_backbone_weights(ours, "resnet18", "IMAGENET1K_V9")


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_frozen_parts_do_not_learn_and_do_not_track(freeze_at):
    model = ResNet("resnet18", width=16, norm="bn", freeze_at=freeze_at).train()
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
    model = ResNet("resnet18", width=16).train()
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)
    model = ResNet("resnet18", width=16, norm="gn", freeze_at=0)
    assert model(torch.randn(1, 3, 64, 64))[3].shape == (1, 128, 2, 2)
