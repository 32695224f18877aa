"""Which devices there are, and which kernels a tensor can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from upsnet.text import first_line

_is_exporting = False


def usable_device(device: torch.device | str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is none here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} is not available here ({first_line(error)})") from None


def training_format(device: torch.device) -> torch.memory_format:
    """How the convolutions of a model that trains should lie in memory: channels last, but on CPUs without AVX-512.

    There some gradients of weights take up to three times as long with channels last, and a step of UPSNet-50
    1.15 times (19 against 16.5 CPU seconds; `benchmarks/training.py`'s first case on an AMD EPYC).
    Inference is a little faster with channels last there, too.
    """
    is_wide = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.channels_last if is_wide else torch.contiguous_format


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of a precision (`auto`, `fp32`, `bf16`, `fp16`); None: full float32.

    `auto` is bfloat16 where the device computes it natively.

    Raises:
        ValueError: another word.
    """
    types = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        precision = "bf16" if native else "fp32"
    if precision not in types:
        raise ValueError(f"precision is {precision!r}, expected auto, fp32, bf16 or fp16")
    return types[precision]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which convolutions and linear layers compute as `autocast_dtype` says."""
    dtype = autocast_dtype(precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def exporting() -> Iterator[None]:
    """Inside, operators take the form that other runtimes know.

    torch 2.11 says `torch.compiler.is_exporting()` of its own compiler, too, hence this.
    """
    global _is_exporting
    before, _is_exporting = _is_exporting, True
    try:
        yield
    finally:
        _is_exporting = before


def is_exporting() -> bool:
    """Whether `exporting` is on."""
    return _is_exporting


def has_kernels(x: Tensor) -> bool:
    """Whether `x` is on a device that our Triton kernels serve, and Triton is installed."""
    return x.is_cuda and _triton_is_installed()


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
