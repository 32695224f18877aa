"""Training, checkpoints and evaluation as a whole, on a model that takes milliseconds."""

import json
from dataclasses import replace

import pytest
import torch

from upsnet.data.loader import open_dataset
from upsnet.engine.evaluate import comparison_panel, evaluate, headline
from upsnet.engine.optim import build_optimizer, learning_rate
from upsnet.engine.train import Trainer
from upsnet.metrics.schema import Metrics
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from upsnet.ops.backend import autocast_dtype

CPU = torch.device("cpu")


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "speed"} for row in rows]


@pytest.fixture
def finished(config, tmp_path):
    """A whole run, and its folder."""
    Trainer(config, tmp_path / "run", CPU).run()
    return tmp_path / "run"


def test_a_run_leaves_its_folder(finished, config):
    assert {p.name for p in finished.iterdir()} == {
        "comparison.jpg", "config.yaml", "model.pt", "last.pt", "last-00000003.pt",
        "metrics.json", "metrics.jsonl", "tensorboard",
    }  # fmt: skip
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == set(Metrics.model_fields)
    Metrics.model_validate(metrics)
    assert lines(finished)[-1]["pq"] == metrics["panoptic"]["All"]["pq"]
    checkpoint = load_checkpoint(finished / "model.pt")
    assert checkpoint.config == config
    assert checkpoint.training is None
    assert (finished / "model.pt").stat().st_size < (finished / "last.pt").stat().st_size


def test_resume_refuses_another_config_and_a_new_run_an_old_folder(finished, make_config):
    with pytest.raises(ValueError, match=r"train.lr is 0.5, expected 0.02"):
        Trainer(make_config("train.lr=0.5"), finished, CPU, resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        Trainer(make_config(), finished, CPU)


def test_init_takes_the_weights(finished, config, tmp_path, make_config):
    trainer = Trainer(config, tmp_path / "next", CPU, init=finished / "model.pt")
    expected = load_checkpoint(finished / "model.pt").weights
    assert all(torch.equal(v, expected[k]) for k, v in trainer.model.state_dict().items())
    other = Trainer(make_config("model.fpn_channels=8"), tmp_path / "next", CPU, init=finished / "model.pt")
    assert torch.equal(other.model.backbone.conv1.weight, expected["backbone.conv1.weight"])


def test_a_loss_that_is_not_finite_stops_with_its_images_and_terms(make_config, tmp_path):
    trainer = Trainer(make_config("train.checkpoint_every=1"), tmp_path, CPU)
    with torch.no_grad():
        trainer.model.semantic_head.score[0].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"iteration 0: .*loss_semantic=nan.*images 0000\d\d\.png") as error:
        trainer.run()
    assert "loss_rpn" not in str(error.value)
    assert not (tmp_path / "last.pt").exists(), "a poisoned model is not saved"


def test_accumulation_equals_one_large_batch(make_config, tmp_path):
    options = ("model.backbone.norm=gn", "train.warmup_iterations=0", "train.momentum=0", "train.iterations=1")
    options += ("train.clip_gradient=null",)  # which would hide a wrong scale
    grown = []
    for name, batch_size, accumulate in (("a", 4, 1), ("b", 2, 2)):
        config = make_config(*options, f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
        trainer = Trainer(config, tmp_path / name, CPU)
        trainer.run()
        grown.append(trainer.model.state_dict())
    for key, value in grown[0].items():
        torch.testing.assert_close(value, grown[1][key], rtol=1e-4, atol=1e-5)


def test_a_step_that_needs_too_much_memory_names_its_images_and_the_remedies(make_config, tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "_step", fail)
    words = r"iteration 0: 2 images of 64x\d+ \(\d+\.png, \d+\.png\) need.*2.00 GiB.*train.batch_size.*accumulate"
    with pytest.raises(MemoryError, match=words):
        Trainer(make_config(), tmp_path, CPU).run()


@pytest.mark.parametrize("heads", ["semantic", "instance"])
def test_one_head_alone_runs_to_the_end(make_config, tmp_path, heads):
    metrics = Trainer(make_config(f"model.heads={heads}", "train.iterations=2"), tmp_path, CPU).run()
    assert metrics["panoptic"] is None
    assert headline(metrics)[0] == {"semantic": "mIoU", "instance": "AP"}[heads]


def test_four_images_can_be_learnt_by_heart(make_config, tmp_path):
    """The whole path is right if it can: PQ above 90 on its own four training images."""
    same = "{format: shapes, num_images: 4, image_size: [96, 96], seed: 4}"
    config = make_config(
        f"data.train={same}",
        f"data.val={same}",
        "data.augment.flip=none",
        "data.augment.short_sides=[192]",  # the logits are at 1/4 of this: fine enough for the tips of the stars
        "data.test_short_side=192",
        "model.rpn.anchor_sizes=[[16], [32], [64], [128]]",
        "model.panoptic.score_threshold=0.5",
        "model.fpn_channels=32",
        "model.instance.mask_channels=32",
        "model.instance.roi_samples=48",
        "model.instance.positive_fraction=0.5",
        "model.loss.semantic_roi=0",
        "train.precision=auto",
        "train.optimizer=adamw",
        "train.lr=0.003",
        "train.iterations=240",
        "train.batch_size=4",
        "train.warmup_iterations=20",
        "train.evaluate_every=240",
        "train.checkpoint_every=240",
        "evaluate.instance=false",
        "evaluate.panels=0",
    )
    metrics = Trainer(config, tmp_path, CPU).run()
    assert metrics["panoptic"]["All"]["pq"] > 90


def test_things_alone_train_with_a_background_for_the_unlabelled_pixels(make_config, tmp_path):
    options = ("data.classes.keep=[disc, star]", "train.iterations=2", "evaluate.panels=0", "evaluate.instance=false")
    with pytest.raises(ValueError, match=r"no stuff class, expected one; set data\.classes\.background=background"):
        Trainer(make_config(*options), tmp_path / "without", CPU)
    metrics = Trainer(make_config(*options, "data.classes.background=rest"), tmp_path / "with", CPU).run()
    assert {row["name"] for row in metrics["panoptic"]["per_class"].values()} == {"rest", "disc", "star"}
    assert metrics["panoptic"]["Things"]["pq"] is not None, "things are scored"


def test_ap_may_be_measured_in_the_last_evaluation_only(make_config, tmp_path):
    config = make_config("evaluate.instance=last", "train.iterations=4", "train.evaluate_every=2", "evaluate.panels=0")
    metrics = Trainer(config, tmp_path, CPU).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "pq" in row]
    assert [row["iteration"] for row in evaluated] == [2, 4]
    assert ["instance_ap" in row for row in evaluated] == [False, True]
    assert metrics["instance_ap"] is not None
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    again = evaluate(checkpoint.build(), open_dataset(config.data, "val"), config, CPU, progress=False)
    assert again["instance_ap"] is not None, "an evaluation on its own is the last one"


def test_evaluation_of_one_checkpoint_is_the_same_at_any_batch_size_and_precision(finished, make_config):
    checkpoint = load_checkpoint(finished / "model.pt")
    data = open_dataset(checkpoint.config.data, "val", checkpoint.categories)
    found = [
        evaluate(checkpoint.build(), data, make_config(f"evaluate.{change}"), CPU, progress=False)
        for change in ("batch_size=1", "batch_size=3", "precision=bf16")
    ]
    for changed in found[1:]:
        assert found[0]["panoptic"]["All"]["pq"] == pytest.approx(changed["panoptic"]["All"]["pq"], abs=0.5)
    assert found[0] != found[2], "bfloat16 rounds"
    assert found[0]["panoptic"]["All"]["pq"] == pytest.approx(checkpoint.metrics["panoptic"]["All"]["pq"], abs=0.5)


def test_checkpoints_of_others_are_refused(tmp_path, model, config, dataset):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"format": print}, tmp_path / "code.pt")
    for name in ("foreign.pt", "text.pt", "code.pt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    save_checkpoint(tmp_path / "whole.pt", Checkpoint(config, dataset.categories, model.state_dict()))
    # A pickle of a string of 3 GB, and behind it a zip archive: torch would read the pickle.
    (tmp_path / "both.pt").write_bytes(b"X\0\0\0\xc1" + (tmp_path / "whole.pt").read_bytes())
    with pytest.raises(ValueError, match=r"both\.pt: .*does not begin as a zip archive"):
        load_checkpoint(tmp_path / "both.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")
    save_checkpoint(tmp_path / "a.pt", Checkpoint(config, dataset.categories, model.state_dict()))
    changed = replace(load_checkpoint(tmp_path / "a.pt"), weights={"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="belongs to another model"):
        changed.build()
    with pytest.raises(ValueError, match="the first is"):
        load_weights(model, {}, source="x")


def test_a_schedule_that_does_not_fit_the_run_is_refused_by_training_alone(make_config, tmp_path, finished):
    for change, remedy in (
        ("train.warmup_iterations=50", r"is longer than train\.iterations=\d+.*set train\.warmup_iterations=\d+"),
        ("train.steps=[2, 5000]", r"not all within train\.iterations=\d+.*set train\.steps=\[2\]"),
    ):
        schedule = ("train.schedule=step", "train.iterations=20", change)
        with pytest.raises(ValueError, match=remedy):
            Trainer(make_config(*schedule), tmp_path / "refused", CPU)
        assert not (tmp_path / "refused").exists()
        load_checkpoint(finished / "model.pt", schedule).build()


def test_the_learning_rate_follows_its_schedule(make_config):
    rates = {}
    for schedule in ("step", "poly", "cosine"):
        config = make_config(
            f"train.schedule={schedule}", "train.iterations=100", "train.lr=1", "train.warmup_iterations=10",
            "train.steps=[50, 80]",
        ).train  # fmt: skip
        rates[schedule] = [learning_rate(config, i) for i in range(100)]
        assert rates[schedule][0] == pytest.approx(0.1)
    assert [rates["step"][i] for i in (10, 49, 50, 80)] == pytest.approx([1, 1, 0.1, 0.01])
    assert rates["poly"][50] == pytest.approx(0.5**0.9)
    assert rates["cosine"][50] == pytest.approx(0.5)


def test_weights_decay_and_biases_do_not(model, make_config):
    for name in ("sgd", "adamw"):
        optimizer = build_optimizer(model, make_config(f"train.optimizer={name}").train)
        decayed, free = optimizer.param_groups
        assert decayed["weight_decay"] == 1e-4
        assert free["weight_decay"] == 0
        assert all(p.ndim > 1 for p in decayed["params"])
        assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_precision_is_bf16_only_where_it_is_native(monkeypatch):
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    for is_native, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=is_native: found)
        assert autocast_dtype("auto", CPU) is dtype
    with pytest.raises(ValueError, match=r"precision is 'half', expected auto, fp32, bf16 or fp16"):
        autocast_dtype("half", CPU)


def test_models_of_one_seed_are_equal(config, dataset):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(config, dataset.categories).state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_looking_at_predictions_leaves_the_model_as_training_wants_it(make_config, tmp_path, layout):
    trainer = Trainer(make_config("evaluate.panels=1"), tmp_path, CPU)
    model = trainer.model.train().to(memory_format=layout)
    before = {name: weight.stride() for name, weight in model.state_dict().items()}
    assert comparison_panel(model, trainer.val_set, trainer.config, CPU) is not None
    assert model.training
    assert {name: weight.stride() for name, weight in model.state_dict().items()} == before


def test_fp16_scales_the_loss_and_skips_steps_that_overflow(make_config, tmp_path):
    """As bf16, the losses follow those of fp32 roughly; the scaler's state is in the checkpoint."""
    options = ("train.iterations=8", "train.warmup_iterations=2", "train.lr=0.002", "model.backbone.norm=gn")
    rows = {}
    for precision in ("fp32", "fp16"):
        trainer = Trainer(
            make_config(*options, f"train.precision={precision}", "train.log_every=1"), tmp_path / precision, CPU
        )
        trainer.run()
        text = (tmp_path / precision / "metrics.jsonl").read_text()
        rows[precision] = [json.loads(line) for line in text.splitlines() if "loss_class" in line]
    for a, b in zip(rows["fp32"], rows["fp16"], strict=True):
        assert b["loss_class"] == pytest.approx(a["loss_class"], rel=0.1, abs=0.05)
    state = load_checkpoint(tmp_path / "fp16" / "last.pt").training
    assert state["scaler"]["scale"] > 1
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float("inf"))
    scale = trainer._scaler.get_scale()
    trainer._scaler.scale(torch.zeros(()))
    assert trainer._update(5.0) == 0, "the norm of a step that is left out"
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer._scaler.get_scale() < scale
    again = Trainer(make_config(*options, "train.precision=fp16"), tmp_path / "fp16", CPU, resume=True)
    assert again._scaler.get_scale() == state["scaler"]["scale"]
    again._scaler.load_state_dict({**state["scaler"], "scale": 1e-5})
    with pytest.raises(FloatingPointError, match=r"the loss scale of train\.precision=fp16 has fallen to 1\.0e-05"):
        again._require_loss_scale()
