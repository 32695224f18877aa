"""Where the time of a step goes: a trace of a few steps, and the operations that cost most."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from upsnet.io.files import atomic_path

SKIPPED, WARM_UP, STEPS = 2, 1, 3


class StepProfiler:
    """Records `STEPS` steps after the first few, whose costs are not those of the others.

    Args:
        trace: file to write, `.json` or `.json.gz` (chrome://tracing, ui.perfetto.dev, TensorBoard's profiler).
        device: that the steps run on.

    Attributes:
        report: table of the ten most expensive operations, empty until the steps have been made.
    """

    def __init__(self, trace: Path, device: torch.device) -> None:
        self.trace, self.report = trace, ""
        self._on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=STEPS, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def step(self) -> None:
        """Marks the end of a step."""
        self._profile.step()

    def close(self) -> None:
        """Ends the recording where it is; to be called once."""
        self._profile.stop()

    def _write(self, recorded: profile) -> None:
        with atomic_path(self.trace) as temporary:
            recorded.export_chrome_trace(str(temporary))
        key = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        self.report = recorded.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=50)
