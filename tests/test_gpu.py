"""What must hold on a GPU; skipped without one."""

import pytest
import torch

from tests.models.upsnet.test_training_step import shapes_batch
from tests.models.upsnet.test_upsnet import lively
from upsnet import PanopticPredictor
from upsnet.data.loader import collate
from upsnet.data.shapes import Shapes
from upsnet.engine.optim import weighted_total
from upsnet.engine.prefetch import Prefetcher
from upsnet.engine.train import Trainer
from upsnet.export.exporter import export_graph
from upsnet.models.build import build_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_losses_and_predictions_equal_those_of_the_cpu(make_config, dataset, batch, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding lets other RoIs be sampled
    model = build_model(make_config("model.backbone.norm=gn"), dataset.categories)
    lively(model)
    expected = {k: v.item() for k, v in model.train()(batch).items()}
    maps = model.eval().predict(batch).segment_ids
    model.cuda()
    on_gpu = batch.to("cuda")
    losses = model.train()(on_gpu)
    weighted_total(losses, model.loss_weights).backward()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name
    for ours, theirs in zip(model.eval().predict(on_gpu).segment_ids, maps, strict=True):
        assert (ours.cpu() != theirs).float().mean() < 0.01


@pytest.mark.parametrize("method", ["unified", "official", "heuristic"])
def test_a_training_step_never_waits_for_the_host(make_config, dataset, batch, method):
    model = build_model(make_config(f"model.panoptic.method={method}"), dataset.categories).cuda().train()
    on_gpu = batch.to("cuda")

    def step():
        weighted_total(model(on_gpu), model.loss_weights).backward()

    step()  # kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_recorded_model_predicts_as_the_model_does(checkpoint):
    plain, recorded = (PanopticPredictor.from_checkpoint(checkpoint, "cuda", cuda_graph=g) for g in (False, True))
    for size in ((64, 96), (50, 70)):
        for number in range(3):
            picture = Shapes(3, size)[number].image
            expected, found = plain(picture), recorded(picture)
            assert (found.segment_ids != expected.segment_ids).mean() < 1e-3
    assert len(recorded.model.recorded.recordings) == 2


@pytest.mark.slow
def test_a_file_compiled_for_the_gpu_predicts_as_the_model_does(checkpoint):
    target = checkpoint.with_suffix(".pt2")
    agreement = export_graph(checkpoint, target, size=(64, 96), compile_for=torch.device("cuda"))
    assert agreement.disagreement < 1e-3
    assert PanopticPredictor.from_checkpoint(target).device.type == "cuda"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_never_waits_for_the_device(make_config, tmp_path, precision):
    options = ("model.backbone.norm=gn", f"train.precision={precision}")
    trainer = Trainer(make_config(*options), tmp_path, torch.device("cuda", 0))
    group = [next(Prefetcher(trainer._loader(), trainer.device, ahead=2))]
    for _ in range(2):  # the first may: kernels are chosen and compiled, the optimiser makes its state
        trainer._step(trainer.model, group)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(trainer.model, group)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.device.type == "cuda" for step in trainer._interval._steps for t in step.losses[0].values())


def test_batches_that_were_copied_ahead_are_whole(dataset):
    """The copies are on a stream of their own; a step that reads them at once must find them complete."""
    made = [collate([(dataset[i], i), (dataset[i + 1], i + 1)], 3, 32).pin_memory() for i in range(6)]
    batches = Prefetcher(made, torch.device("cuda", 0), ahead=len(made))
    sums = []
    for _ in made:
        with torch.cuda.stream(batches._stream):
            torch.cuda._sleep(5_000_000)  # a copy that is late: the step has to wait for it
        found = next(batches)
        torch.cuda._sleep(5_000_000)  # a step that is late: later copies must not take this batch's memory
        sums.append(torch.stack([found.images.double().sum(), found.target.instance_map.double().sum()]))
        del found
    expected = [[b.images.double().sum().item(), b.target.instance_map.double().sum().item()] for b in made]
    assert torch.stack(sums).tolist() == expected


@pytest.mark.parametrize("accumulate", [1, 2])
def test_recorded_steps_train_as_plain_ones(make_config, tmp_path, monkeypatch, accumulate):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cuda", 0)
    batches = [shapes_batch(size).to(device) for size in ((64, 96), (96, 128))]
    tables = []
    for recorded in (False, True):
        options = (f"train.cuda_graph={recorded}".lower(), f"train.accumulate={accumulate}", "train.precision=fp32")
        trainer = Trainer(make_config("model.backbone.norm=gn", *options), tmp_path / str(recorded), device)
        for number in range(6):
            trainer._step(trainer.model, [batches[(number + part) % 2] for part in range(accumulate)])
        tables.append(trainer._interval.rows())
    assert len(trainer._recorded.recordings) == 2
    assert None not in trainer._recorded.recordings.values()
    torch.testing.assert_close(*tables, rtol=1e-3, atol=1e-4)
    assert tables[0][0, 0] > tables[0][-1, 0]
