"""Nothing in the training step waits for the host, so that a CUDA graph can hold it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from upsnet.data.loader import collate
from upsnet.data.shapes import Shapes
from upsnet.engine.optim import weighted_total
from upsnet.models.build import build_model
from upsnet.models.recording import with_slots_padded

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
