"""Which kernels a tensor can use."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def has_kernels(x: Tensor) -> bool:
    """Whether `x` is on a device that our Triton kernels serve, and Triton is installed."""
    return x.is_cuda and _triton_is_installed()


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
