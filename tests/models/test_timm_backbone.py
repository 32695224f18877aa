"""Backbones of timm, by its tiny models of the kinds ConvNeXt, ResNet-D and EfficientNet."""

import json
import shutil
import sys

import pytest
import torch
from torch import nn

from tests.conftest import TINY
from upsnet.config import TimmBackboneConfig, parse_config
from upsnet.data.loader import collate
from upsnet.engine import train as training
from upsnet.engine.distributed import replace_batch_norms
from upsnet.engine.memory import remedies_for_memory
from upsnet.engine.optim import add_gradients, build_optimizer, set_learning_rate
from upsnet.export.exported_model import load_graph
from upsnet.export.exporter import export_graph
from upsnet.models.build import build_model, resolve
from upsnet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upsnet.models.inference_form import fold_norms
from upsnet.models.pretrained.timm_weights import load_timm_weights
from upsnet.models.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm")

CONVNEXT, RESNET_D, EFFICIENTNET = "timm/test_convnext", "timm/test_resnet", "timm/test_efficientnet"
DEEPLAB = {
    "architecture": "panoptic_deeplab",
    "norm": "gn",
    "aspp": {"rates": [2], "channels": 16},
    "semantic": {"channels": 16, "head_channels": 16},
    "instance": {"channels": 16, "head_channels": 8},
}
ARCHITECTURES = {"upsnet": TINY["model"], "panoptic_deeplab": DEEPLAB}


def backbone(name, remainder=0, **options):
    torch.manual_seed(0)
    return TimmBackbone(TimmBackboneConfig(name=name, **options), remainder)


def run_config(name, architecture="upsnet", overrides=(), **options):
    model = {**ARCHITECTURES[architecture], "backbone": {"name": name, **options}}
    return parse_config({**TINY, "model": model}, overrides, source="tiny")


def with_statistics(model):
    """Gives batch norms values of a trained model."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


def without_timm(monkeypatch):
    for name in [name for name in sys.modules if name == "timm" or name.startswith("timm.")]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [CONVNEXT, RESNET_D])
def test_a_step_trains_every_parameter_of_the_backbone(architecture, name, batch, dataset):
    config = run_config(name, architecture)
    torch.manual_seed(0)
    model = build_model(config, dataset.categories).train()
    losses = add_gradients(model, model.loss_weights, "fp32", 1.0, batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    build_optimizer(model, config.train).step()
    assert [tuple(ids.shape) for ids in model.eval().predict(batch).segment_ids] == list(batch.original_sizes)


@pytest.mark.parametrize(
    ("architecture", "name", "file", "size"),
    [("panoptic_deeplab", RESNET_D, "model.pt2", None), ("panoptic_deeplab", CONVNEXT, "model.onnx", (64, 96))],
)
def test_exported_files_agree_on_every_pixel_without_timm(
    tmp_path, monkeypatch, dataset, architecture, name, file, size
):
    config = resolve(run_config(name, architecture))
    torch.manual_seed(0)
    model = with_statistics(build_model(config, dataset.categories))
    save_checkpoint(tmp_path / "model.pt", Checkpoint(config, dataset.categories, model.state_dict()))
    export_graph(tmp_path / "model.pt", tmp_path / file, size=size, verify=False)
    without_timm(monkeypatch)
    exported, _, make_input = load_graph(tmp_path / file, "cpu")
    found = exported.predict(make_input([dataset[0].image])).segment_ids[0]
    expected = model.eval().predict(make_input([dataset[0].image])).segment_ids[0]
    assert torch.equal(found.long(), expected.long())


@pytest.mark.parametrize("name", [CONVNEXT, RESNET_D, EFFICIENTNET])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_with_timms_names_gives_timms_features(tmp_path, name, suffix):
    torch.manual_seed(3)
    full = with_statistics(timm.create_model(name.removeprefix("timm/"))).eval()
    state, path = full.state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    ours = backbone(name).eval()
    line = load_timm_weights(ours, str(path))
    count = sum(not key.endswith("num_batches_tracked") for key in ours.net.state_dict())
    assert f"{count} of {count} tensors of {name} loaded; not used, because the backbone has no such tensors: " in line
    x = torch.randn(1, 3, 64, 96)
    maps = full.forward_intermediates(x, intermediates_only=True)[-4:]
    assert [m.shape[1] for m in maps] == ours.channels
    for found, expected in zip(ours(x), maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, checkpoint):
    ours = backbone(RESNET_D)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    state = timm.create_model("test_resnet").state_dict()

    def refuse(match, **changes):
        torch.save({key: value for key, value in {**state, **changes}.items() if value is not None}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=match) as error:
            load_timm_weights(ours, str(tmp_path / "w.pth"))
        assert "\n" not in str(error.value)

    refuse(r"1 tensors are missing: layer1.0.conv1.weight;", **{"layer1.0.conv1.weight": None})
    refuse(r"have other shapes: conv1.0.weight is 2 in the file", **{"conv1.0.weight": torch.zeros(2)})
    refuse(r"1 tensors are unknown: layer9.weight;", **{"layer9.weight": torch.zeros(2)})
    refuse(r"conv1.0.weight has 2 values that are not finite", **{"conv1.0.weight": torch.full((2,), torch.nan)})
    with pytest.raises(ValueError, match=r"checkpoint of this project, expected weights of the backbone alone; --init"):
        load_timm_weights(ours, str(checkpoint))
    with pytest.raises(FileNotFoundError, match=r"weights=nothing.pth: no such file, expected pretrained, or a file"):
        load_timm_weights(ours, "nothing.pth")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"w.safetensors: cannot be read as a safetensors file"):
        load_timm_weights(ours, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_weights_by_name_are_those_of_timm_and_a_failed_download_names_the_remedy(monkeypatch):
    make = timm.create_model

    def create(name, pretrained=False, **options):
        model = make(name, **options)
        if pretrained:
            nn.init.constant_(model.get_parameter("conv1.0.weight"), 7.0)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    ours = backbone(RESNET_D)
    load_timm_weights(ours, "pretrained")
    assert (ours.first_conv.weight == 7).all()

    def fail(name, pretrained=False, **options):
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ValueError, match=r"download failed \(no network.*give a local file .* or null") as error:
        load_timm_weights(ours, "pretrained")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "timm/vit_tiny_patch16_224"}, r"strides 16, 16, 16, expected maps of strides 4, 8, 16, 32; choose"),
        ({"name": "timm/efficientformerv2_s0"}, r"the model fails on an image of 64x96"),
        ({"name": "timm/test_convnex"}, r"no such model, expected the name of a model of timm, such as timm/test_conv"),
        ({"name": "timm/test_resnet.none"}, r"expected weights of test_resnet, such as timm/test_resnet.r160_in1k"),
        ({"name": "timm/hf-hub"}, r"no such model"),
        ({"name": "timm/hrnet_w18_small", "freeze_at": 1}, r"cannot be assigned to stages; set .*freeze_at=0"),
        ({"name": "timm/densenet121", "output_stride": 16}, r"set model.backbone.output_stride=32, or choose"),
        ({"name": CONVNEXT, "remainder": 1}, r"64x96|65x97 gives maps of 16x24, .* set model.align_corners=false"),
    ],
)
def test_a_model_that_does_not_fit_is_an_error_of_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        backbone(**options)
    assert "\n" not in str(error.value)


def test_without_timm_the_error_names_the_command_that_installs_it(monkeypatch, dataset):
    config = run_config(RESNET_D)
    without_timm(monkeypatch)
    with pytest.raises(ValueError, match=r"needs the package timm: pip install 'upsnet\[timm\]'"):
        build_model(config, dataset.categories)


def test_the_config_refuses_options_of_the_other_kind_of_backbone():
    with pytest.raises(ValueError, match=r"width, stem: only the ResNets of this project .* name is timm/test_resnet"):
        run_config(RESNET_D, width=64, stem="conv7")
    with pytest.raises(ValueError, match=r"unknown key 'model.backbone.freeze_a'; did you mean freeze_at\?"):
        run_config(RESNET_D, freeze_a=1)
    with pytest.raises(ValueError, match=r"is 'convnext_tiny': expected resnet18, .* or timm/NAME"):
        run_config("convnext_tiny")
    with pytest.raises(ValueError, match=r"output_stride=16: the pyramid of UPSNet needs 32"):
        run_config(RESNET_D, output_stride=16)
    assert run_config("timm/test_resnet.r160_in1k").model.backbone.weights == "pretrained"
    assert run_config("timm/test_resnet.r160_in1k", weights="file.pth").model.backbone.weights == "file.pth"
    assert run_config(RESNET_D).model.backbone.weights is None
    assert run_config(RESNET_D, "panoptic_deeplab").model.backbone.output_stride == 16


def test_random_weights_are_not_frozen(dataset):
    for options in ({"freeze_at": 1}, {"norm": "frozen_bn"}):
        with pytest.raises(ValueError, match=r"weights is null, .* \(pretrained, or a file\), or set norm to own"):
            build_model(run_config(RESNET_D, **options), dataset.categories)


@pytest.mark.parametrize("name", [CONVNEXT, RESNET_D, EFFICIENTNET])
@pytest.mark.parametrize("freeze_at", [0, 1, 3, 5])
def test_frozen_parts_do_not_learn_and_do_not_track(name, freeze_at):
    model = backbone(name, freeze_at=freeze_at).train()
    parts = model.parts()
    assert sum(len(part) for part in parts) == len(list(model.parameters()))
    assert [any(p.requires_grad for p in part) for part in parts] == [n >= freeze_at for n in range(5)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(feature.square().mean() for feature in model(torch.randn(2, 3, 64, 64))).backward() if freeze_at < 5 else None
    torch.optim.SGD([p for part in parts for p in part], lr=0.1).step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {id(p) for part in parts[:freeze_at] for p in part}
    learnt = {key for key, p in model.named_parameters() if id(p) not in frozen}
    assert {key for key in moved if key in dict(model.named_parameters())} <= learnt
    assert bool(moved) == (freeze_at < 5)
    tracked = {key.rpartition(".")[0] for key in moved if key.endswith("running_mean")}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert tracked == {name for name, norm in norms.items() if norm.weight.requires_grad}


def test_frozen_batch_norms_keep_everything_while_convolutions_learn():
    model = backbone(EFFICIENTNET, norm="frozen_bn").train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    assert model.first_conv.weight.requires_grad
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x)[3], model.eval()(x)[3])


def test_a_swin_is_exported_for_one_size_only(tmp_path, dataset):
    config = resolve(run_config("timm/swin_tiny_patch4_window7_224"))
    model = build_model(config, dataset.categories)
    save_checkpoint(tmp_path / "model.pt", Checkpoint(config, dataset.categories, model.state_dict()))
    with pytest.raises(ValueError, match=r"--size: .* for one size only, expected --size H W"):
        export_graph(tmp_path / "model.pt", tmp_path / "model.pt2")


def test_a_swin_gives_maps_of_channels_first_for_any_size_without_random_numbers():
    model = backbone("timm/swin_tiny_patch4_window7_224").train()
    assert not any(getattr(module, "drop_prob", 0) for module in model.modules())
    tables = {id(p) for p in model.without_weight_decay()}
    assert {name.split(".")[-1] for name, p in model.named_parameters() if id(p) in tables} == {
        "relative_position_bias_table"
    }
    with torch.no_grad():
        maps = [model(torch.ones(1, 3, 32, 64)) for _ in range(2)]
    assert [tuple(feature.shape[1:]) for feature in maps[0]] == [(96, 8, 16), (192, 4, 8), (384, 2, 4), (768, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


@pytest.mark.parametrize(
    ("name", "remainder", "output_stride"),
    [("tf_mobilenetv3_small_minimal_100", 0, 32), ("tf_mobilenetv3_small_minimal_100", 1, 16), ("test_resnet", 1, 8)],
)
def test_fixed_padding_is_that_of_timm(name, remainder, output_stride):
    ours = backbone(f"timm/{name}", remainder, output_stride=output_stride).eval()
    torch.manual_seed(0)
    options = {} if output_stride == 32 else {"output_stride": output_stride}
    theirs = timm.create_model(name, features_only=True, **options).eval()
    x = torch.randn(1, 3, 64 + remainder, 96 + remainder)
    with torch.no_grad():
        for found, expected in zip(ours(x), theirs(x)[-4:], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [CONVNEXT, RESNET_D, EFFICIENTNET, "timm/resnetv2_18"])
def test_folded_norms_give_the_same_features(name):
    model = with_statistics(backbone(name)).eval()
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        left = sum(isinstance(module, nn.BatchNorm2d) for module in fold_norms(nn.Sequential(model)).modules())
        for found, plain in zip(model(x), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    # The norms of resnetv2 come before the convolutions; one that follows a convolution can be folded.
    assert left == 0 if name != "timm/resnetv2_18" else 0 < left < count


def test_synchronised_batch_norms_keep_their_activation():
    model = backbone(EFFICIENTNET)
    expected = model.eval()(x := torch.randn(1, 3, 64, 64))
    replace_batch_norms(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    for found, plain in zip(model.eval()(x), expected, strict=True):
        torch.testing.assert_close(found, plain)


def test_errors_about_memory_name_keys_that_this_backbone_has(dataset):
    model = build_model(run_config(EFFICIENTNET), dataset.categories)
    assert model.memory_options == ("model.instance.mask_slots=32",)
    batch = collate([(dataset[0], 1)], dataset.categories.num_stuff, 32)
    with (
        pytest.raises(ValueError, match=r"set model.backbone.norm=frozen_bn, or"),
        remedies_for_memory(model, 1, [batch]),
    ):
        raise ValueError("Expected more than 1 value per channel when training")


@pytest.mark.parametrize("name", ["resnet18", CONVNEXT])
def test_each_stage_has_its_own_rate_and_biases_no_weight_decay(dataset, name):
    options = {"width": 16, "norm": "bn", "freeze_at": 1} if name == "resnet18" else {}
    config = run_config(name, **options, overrides=["train.layer_decay=0.5", "train.weight_decay=0.1"])
    model = build_model(config, dataset.categories, pretrained=False)
    optimizer = build_optimizer(model, config.train)
    set_learning_rate(optimizer, config.train, 2)  # after the warm-up, near the top
    base = optimizer.param_groups[0]["lr"]
    rates = {id(p): group["lr"] / base for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    learnt = [p for p in model.parameters() if p.requires_grad]
    assert len(rates) == len(learnt)
    assert all(rates[id(p)] == 1 for p in model.fpn.parameters())
    parts = model.backbone.parts()
    for part, rate in zip(parts, (2**-5, 2**-4, 2**-3, 2**-2, 2**-1), strict=True):
        assert {rates[id(p)] for p in part if p.requires_grad} <= {rate}
    assert all(rates[id(p)] == 0.5 for p in parts[4])
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0) for p in learnt)
    # Without layer decay the groups are those of older checkpoints, whose states have no factor.
    plain = build_optimizer(model, config.train.model_copy(update={"layer_decay": 1.0}))
    state = plain.state_dict()
    for group in state["param_groups"]:
        del group["lr_factor"]
    plain.load_state_dict(state)
    set_learning_rate(plain, config.train, 2)
    assert [group["lr"] for group in plain.param_groups] == [base, base]


def test_a_run_says_what_was_loaded_resumes_exactly_and_stores_mean_and_std(tmp_path):
    torch.manual_seed(3)
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "w.pth")
    overrides = ["train.iterations=4", "train.checkpoint_every=2", "train.optimizer=adamw", "train.layer_decay=0.8"]
    overrides += ["train.evaluate_every=4", "train.accumulate=2", "train.log_every=1", "evaluate.panels=0"]
    config = run_config(CONVNEXT, weights=str(tmp_path / "w.pth"), freeze_at=1, overrides=overrides)
    lines = []
    training.train(config, tmp_path / "whole", tell=lines.append)
    assert any("97 of 97 tensors of timm/test_convnext loaded" in line for line in lines)
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "last-00000002.pt", tmp_path / "resumed" / "last.pt")
    training.train(config, tmp_path / "resumed", resume=True)
    whole, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "resumed"))
    assert all(torch.equal(value, resumed.weights[key]) for key, value in whole.weights.items())
    assert whole.config.model.pixel_mean == whole.config.model.pixel_std == (127.5, 127.5, 127.5)
    assert whole.build().pixel_mean.flatten().tolist() == [127.5] * 3
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert next(row["lr"] for row in rows if "lr" in row) == pytest.approx(0.002)


def test_mean_and_std_are_those_of_timm_unless_given():
    assert resolve(run_config(EFFICIENTNET)).model.pixel_mean == pytest.approx((123.675, 116.28, 103.53))
    given = resolve(run_config(CONVNEXT, overrides=["model.pixel_mean=[1, 2, 3]"]))
    assert given.model.pixel_mean == (1, 2, 3)
    assert given.model.pixel_std == (127.5, 127.5, 127.5)
    assert run_config("resnet18", width=16).model.pixel_mean == (123.675, 116.28, 103.53)
