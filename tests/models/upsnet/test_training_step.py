"""The training step as a graph: nothing in it waits for the host, and it compiles without a break."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from upsnet.data.loader import collate
from upsnet.data.shapes import Shapes
from upsnet.engine.optim import weighted_total
from upsnet.models import compiled
from upsnet.models.build import build_model
from upsnet.models.compiled import compile_loss, with_slots_padded

READ_BY_THE_HOST = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::repeat_interleave.Tensor", "aten::bincount",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class NoWaiting(TorchDispatchMode):
    """Fails at an operator whose result the host must read before it can go on, which on a GPU stops the queue."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indices = args[1] if name in INDEXING else ()
        by_mask = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in READ_BY_THE_HOST or by_mask:
            raise AssertionError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def forget_other_compilations():
    """What one test compiled, and which sizes varied in it, is no business of the next."""
    torch.compiler.reset()


def shapes_batch(size, count=2, seed=0):
    data = Shapes(count, size, seed)
    return collate([(data[i], i) for i in range(count)], data.categories.num_stuff, 32)


@pytest.mark.parametrize("method", ["unified", "official", "heuristic"])
def test_no_part_of_the_step_waits_for_the_host(make_config, dataset, batch, method):
    model = build_model(make_config(f"model.panoptic.method={method}"), dataset.categories).train()
    with NoWaiting():
        weighted_total(model.loss(batch), model.loss_weights).backward()


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool((x > 0).any())]
)
def test_the_guard_sees_what_waits(wait):
    with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
        wait(torch.ones(3))


def test_empty_slots_change_no_loss(model, batch):
    padded = with_slots_padded(batch)
    assert batch.target.labels.shape[1] < padded.target.labels.shape[1] == 16
    expected = model.train().loss(batch)
    for name, value in model.loss(padded).items():
        torch.testing.assert_close(value, expected[name])


def test_losses_compile_as_one_graph_with_the_same_values_and_gradients(model, batch):
    model.train()
    expected = model.loss(batch)
    parameters = list(model.parameters())
    plain = torch.autograd.grad(weighted_total(expected, model.loss_weights), parameters)
    compile_loss(model, backend="eager")
    found = model(batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    compiled = torch.autograd.grad(weighted_total(found, model.loss_weights), parameters)
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_sizes_and_numbers_of_instances_compile_a_bounded_number_of_times(model, monkeypatch):
    counter = CompileCounterWithBackend("eager")
    compile_loss(model.train(), backend=counter)
    sizes, slots = (
        [(64, 96), (96, 64), (96, 128), (128, 96), (64, 64), (160, 96), (64, 128)],
        [16, 16, 32, 64, 16, 128, 256],
    )
    counts = []
    for number, (size, least) in enumerate(zip(sizes, slots, strict=True)):
        monkeypatch.setattr(compiled, "SLOTS", least)
        with torch.no_grad():
            model(shapes_batch(size, seed=number))
        counts.append(counter.frame_count)
    assert counts[-1] <= 3
    assert counts[2:] == [counts[2]] * 5, "from the third size on, nothing is compiled"


@pytest.mark.slow
def test_compiled_steps_of_several_sizes_train_like_plain_ones(make_config, dataset):
    model = build_model(make_config("model.backbone.norm=gn"), dataset.categories).train()
    batches = [shapes_batch(size) for size in ((64, 96), (96, 128))]
    expected = [{k: v.item() for k, v in model.loss(batch).items()} for batch in batches]
    compile_loss(model)
    for batch, plain in zip(batches, expected, strict=True):
        losses = model(batch)
        weighted_total(losses, model.loss_weights).backward()
        for name, value in losses.items():
            assert value.item() == pytest.approx(plain[name], rel=1e-4), name
    assert all(p.grad.isfinite().all() for p in model.parameters())
