"""What is recorded, replayed and forgotten; with a device's part played by stand-ins (on a GPU: `test_gpu.py`)."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from upsnet.data.loader import collate
from upsnet.data.shapes import Shapes
from upsnet.engine.optim import copy_losses
from upsnet.engine.train import can_record
from upsnet.inference.cuda_graph import GraphedModel
from upsnet.models import recording
from upsnet.models.build import build_model
from upsnet.models.recording import RecordedFunction, with_slots_padded


class Device:
    """Runs batches, and replays what it ran while a graph was open."""

    def __init__(self):
        self.open, self.ran, self.captured = None, [], {}

    def losses(self, batch):
        return torch.stack([batch.images.float().mean(), batch.target.labels.float().sum()])

    def run(self, batch):
        losses = self.losses(batch)
        if self.open is None:
            self.ran.append(tuple(batch.images.shape))
        else:
            self.captured[self.open] = (batch, losses)
        return dict(zip(("loss_a", "loss_b"), losses.unbind(), strict=True))

    def refresh(self, batch, losses):
        losses.copy_(self.losses(batch))

    def graph(self):
        graph = SimpleNamespace()

        def replay():
            batch, result = self.captured[id(graph)]
            self.refresh(batch, result)

        graph.replay = replay
        return graph

    def capture(self, graph, **_):
        device = self

        class Capture:
            def __enter__(self):
                device.open = id(graph)

            def __exit__(self, *_):
                device.open = None

        return Capture()


@pytest.fixture
def device(monkeypatch):
    found = Device()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: None,
        "CUDAGraph": found.graph,
        "graph": found.capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return found


def batch_of(seed, size=(64, 96)):
    data = Shapes(2, size, seed)
    return collate([(data[i], i) for i in range(2)], data.categories.num_stuff, 32)


def test_every_batch_has_its_own_losses_and_only_the_first_of_a_size_is_run(device):
    steps = RecordedFunction(torch.device("cpu"), copy_losses)
    batches = [batch_of(0), batch_of(1, (96, 96)), *(batch_of(n) for n in (2, 3, 4)), batch_of(5, (96, 96))]
    found = [steps(device.run, with_slots_padded(batch)) for batch in batches]
    assert device.ran == [(2, 3, 64, 96), (2, 3, 96, 96)]
    assert len(device.captured) == 2
    for losses, batch in zip(found, batches, strict=True):
        expected = dict(zip(("loss_a", "loss_b"), device.losses(batch).tolist(), strict=True))
        assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected)


def test_sizes_that_vary_record_a_bounded_number_of_graphs(device, monkeypatch):
    """Frequent sizes come early and are recorded; the others run as usual."""
    monkeypatch.setattr(recording, "MAX_GRAPHS", 3)
    steps, generator = RecordedFunction(torch.device("cpu"), copy_losses), torch.Generator().manual_seed(0)
    first = batch_of(0)
    widths = 32 + 64 * torch.rand(200, generator=generator) ** 3
    for width in widths.int().tolist():
        batch = replace(first, images=first.images[..., :width])
        found = steps(device.run, batch)
        assert torch.equal(torch.stack(list(found.values())), device.losses(batch))
    assert len(device.captured) == 3
    recorded = {key[1][0][0][-1] for key in steps.recordings}
    assert min(recorded) == 32, "the most frequent size"
    assert len(device.ran) < 200 - 60


def test_a_recording_that_fails_is_not_kept(device):
    steps = RecordedFunction(torch.device("cpu"), copy_losses)
    batch = batch_of(0)
    steps(device.run, batch)

    def fail(_):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        steps(fail, batch)
    assert not steps.recordings
    steps(device.run, batch)
    assert len(device.ran) == 2


def test_steps_on_gpus_are_recorded_unless_they_hold_collectives(make_config):
    config = make_config("train.cuda_graph=true").train
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert can_record(config, gpu)
    assert not can_record(config, cpu)
    assert not can_record(config.model_copy(update={"cuda_graph": False}), gpu)
    assert not can_record(config.model_copy(update={"sync_batch_norm": True}), gpu)


def test_a_recorded_model_gives_every_image_its_own_prediction(device, model, batch):
    def predict(batch):
        output = model.predict(batch)
        if device.open is not None:
            device.captured[device.open] = (batch, output)
        return output

    def refresh(batch, output):
        for ids, found in zip(output.segment_ids, model.predict(batch).segment_ids, strict=True):
            ids.copy_(found)

    device.refresh = refresh
    graphed = GraphedModel(model.eval(), torch.device("cpu"))
    graphed.model = SimpleNamespace(predict=predict)
    flipped = replace(batch, images=batch.images.flip(3))
    other_size = replace(batch, original_sizes=[(50, 70), (60, 80)])
    results = [(graphed.predict(case), case) for case in (batch, flipped, other_size, batch, flipped)]
    for found, case in results:
        expected = model.predict(case)
        assert all(torch.equal(a, b) for a, b in zip(found.segment_ids, expected.segment_ids, strict=True))
    assert len(device.captured) == 1, "only one combination of sizes came again"
    assert len(graphed.recorded.recordings) == 1


def test_a_model_without_fixed_shapes_is_not_recorded(make_config, dataset):
    model = build_model(make_config("model.panoptic.method=official"), dataset.categories)
    with pytest.raises(ValueError, match=r"neither exported nor recorded .* model\.panoptic\.method=unified"):
        GraphedModel(model, torch.device("cpu"))
