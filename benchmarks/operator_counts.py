"""How many operators a step runs, and how often its host waits (for the other benchmarks)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Counter(TorchDispatchMode):
    """Counts ATen calls, and those whose result the host must read."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique")

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts and calls."""
        self.operators += 1
        name = func._schema.name
        by_mask = name.startswith("aten::index") and len(args) > 1 and isinstance(args[1], list | tuple)
        by_mask = by_mask and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        self.syncs += name.startswith(self.WAITING) or by_mask
        return func(*args, **(kwargs or {}))


def count_on_cpu(run: Callable[[], None]) -> dict[str, int]:
    """ATen calls, and those that would make a GPU's host wait."""
    with Counter() as counter:
        run()
    return {"operators": counter.operators, "syncs": counter.syncs}


def count_on_cuda(run: Callable[[], None]) -> dict[str, int]:
    """Kernels by the profiler; waits by PyTorch's own warnings."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = sum(not e.name.lower().startswith(("memcpy", "memset")) for e in on_device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    return {"operators": kernels, "syncs": sum("called a synchronizing" in str(w.message) for w in caught)}
