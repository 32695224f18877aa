"""One process or many (`torchrun`): joining, agreeing, and ending together when one of them fails."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

BACKEND = "cpu:gloo,cuda:nccl"
"""Tensors of the host and of the devices each have their own way: what the host asks never waits for a device."""


_FAILED = "upsnet/failed"
"""Key of the store: the first process that failed."""


class PeerFailedError(RuntimeError):
    """Another process failed, and says why."""


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def restarts_by_itself() -> bool:
    """Whether `torchrun --max-restarts N` starts failed processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Joins the processes that `torchrun` started, if it did, and gives this one's device.

    If a process fails, those that fail because of it leave without a word, so that the cause is what one reads.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    use_cuda = torch.cuda.is_available()
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if use_cuda and local >= gpus:
        raise ValueError(f"process {local} of this machine has no GPU, found {gpus}; expected --nproc-per-node {gpus}")
    device = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield device
        return
    store, number, size = next(rendezvous("env://"))
    store = _own_part(store, number, size)
    dist.init_process_group(BACKEND if use_cuda else "gloo", store=store, rank=number, world_size=size)
    agree()  # nobody may fail, and go, while others are still on their way in: they would wait for it
    try:
        yield device
    except BaseException as error:
        # No destroy_process_group: with others gone it might wait for them.
        is_the_cause = _is_the_cause(error, store, number)
        _part(store, number, size)
        if not is_the_cause:
            sys.exit(1)
        raise
    dist.destroy_process_group()


def _own_part(store: Any, number: int, size: int) -> Any:
    """The part of the store for the processes of this start, under a name that the first of them makes up.

    torchrun's store outlives the processes that it starts again, so what is in it may be of their predecessors; and
    the nodes of a run count their restarts each on its own. A process can thus trust an answer to its own question
    alone: each asks under a name that was never used, and the first one answers until all have heard.
    """
    name = uuid4().hex
    if number > 0:
        store.set(f"upsnet/asks/{number}", name)
        name = store.get(f"upsnet/answer to/{name}").decode()
        store.set(f"upsnet/{name}/heard/{number}", "")
    waiting = set(range(1, size)) if number == 0 else set()
    deadline = time.monotonic() + store.timeout.total_seconds()
    while waiting:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {store.timeout.total_seconds():.0f} s for processes {', '.join(map(str, sorted(waiting)))}, "
                f"expected {size} in all: start as many as WORLD_SIZE says"
            )
        for other in waiting:
            if store.check([f"upsnet/asks/{other}"]):
                store.set(f"upsnet/answer to/{store.get(f'upsnet/asks/{other}').decode()}", name)
        time.sleep(0.02)
        waiting = {other for other in waiting if not store.check([f"upsnet/{name}/heard/{other}"])}
    return dist.PrefixStore(f"upsnet/{name}", store)  # type: ignore[attr-defined]


def _is_the_cause(error: BaseException, store: Any, number: int) -> bool:
    """Whether this process failed first; if not, the one that did says why."""
    try:
        if isinstance(error, PeerFailedError):
            store.wait([_FAILED], timedelta(seconds=10))  # it may need the store that this process holds
            return False
        return store.compare_set(_FAILED, "", str(number)) == str(number).encode()
    except RuntimeError:  # the store has gone with the process that held it, and so have the collectives
        return not isinstance(error, RuntimeError)


def _part(store: Any, number: int, size: int) -> None:
    """Lets the process that may hold the store leave last, but only a second later: others may never ask."""
    deadline = time.monotonic() + 1
    with suppress(RuntimeError):
        if number > 0:
            store.set(f"upsnet/has asked/{number}", "")
        while number == 0 and time.monotonic() < deadline:
            if store.check([f"upsnet/has asked/{other}" for other in range(1, size)]):
                return
            time.sleep(0.02)


def agree(number: int = 0, failure: Exception | None = None) -> int:
    """Brings the processes to the same decision; every one must call it.

    Args:
        number: not negative.
        failure: what went wrong here, if something did.

    Returns:
        The largest number of all processes; if it is not 0, failures do not count.

    Raises:
        Exception: the failure, in the first process that has one; `PeerFailedError` in all others.
    """
    culprit = rank()
    if world_size() > 1:
        flags = torch.tensor([number, world_size() - culprit if failure is not None else 0])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        number, failed = flags.tolist()
        if failed and world_size() - failed != culprit:
            culprit, failure = world_size() - failed, PeerFailedError(f"process {world_size() - failed} failed")
    if failure is not None and number == 0:
        raise failure
    return number


def gather(value: Any) -> list[Any]:
    """The values of all processes, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_to_first(value: Any) -> list[Any]:
    """The values of all processes, in rank order, in the first process; an empty list in the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def from_first(value: Any) -> Any:
    """The first process's value, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's buffers (running statistics differ after a step)."""
    for buffer in model.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)


def data_parallel(model: nn.Module, device: torch.device, *, accumulates: bool) -> nn.Module:
    """The model with gradients averaged over the processes; as it is where there is one.

    Args:
        model: on `device`.
        device: of this process.
        accumulates: some gradients stay here (`gradients_stay_here`), which torch cannot join with a static graph.
    """
    if world_size() == 1:
        return model
    # The mask branch indexes its last weight, whose gradient is thus laid out anew: a few kilobytes are copied.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 has a new name for broadcast_buffers, 2.11 has not
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # running statistics have no part in a step; `share_buffers` before they have
            gradient_as_bucket_view=True,
            static_graph=not accumulates,  # every step uses every parameter
        )


class FlatGradients:
    """Averages gradients over the processes after the backward pass, by one all-reduce for each type of number.

    `DistributedDataParallel` sends gradients from hooks within the backward pass, which a recorded CUDA graph cannot
    hold. The gradients are views of flat buffers, so nothing is copied.

    Every process begins with the parameters and buffers of the first one. Keep the gradients where they are:
    `zero_grad(set_to_none=False)`.

    Args:
        model: on its device. A parameter without a gradient counts as one of gradient 0.
    """

    def __init__(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        self.flat: list[torch.Tensor] = []
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
            group = [parameter for parameter in parameters if parameter.dtype == dtype]
            flat = group[0].new_zeros(sum(parameter.numel() for parameter in group))
            for parameter, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.grad = part.as_strided(parameter.shape, parameter.stride())
            self.flat.append(flat)

    def average(self) -> None:
        """Replaces the gradients by their means over the processes; every process must call it."""
        for flat in self.flat:
            dist.all_reduce(flat)
            flat /= world_size()


def gradients_stay_here(model: nn.Module, stay: bool) -> AbstractContextManager[None]:
    """A context in which, if `stay`, `backward` adds to this process's gradients and sends nothing."""
    return model.no_sync() if stay and isinstance(model, DistributedDataParallel) else nullcontext()


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Makes batch norms that learn take their statistics from the images of all processes, in place.

    Frozen ones stay as they are; the names of the state dict, too.

    Raises:
        ValueError: several processes without GPUs, for which torch has no such layer.
    """
    if world_size() == 1:
        return
    if device.type != "cuda":
        raise ValueError("train.sync_batch_norm needs one GPU a process, found none; set it to false, or norm to gn")
    replace_batch_norms(model)


def replace_batch_norms(model: nn.Module) -> None:
    """Puts `SyncBatchNorm` in the place of every `BatchNorm2d` that learns."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.BatchNorm2d) or not child.weight.requires_grad:
                continue
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
            elif hasattr(child, "act"):  # timm's norms contain an activation, which torch's function would lose
                from timm.layers import convert_sync_batchnorm

                setattr(parent, name, convert_sync_batchnorm(child))
