"""Signals that ask a run to stop: it saves at the next step and ends, instead of dying where it is."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)


class StopRequestedError(Exception):
    """A signal asked to stop before the work was done.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopSignals:
    """Remembers the first of SIGTERM, SIGINT, SIGUSR1 and SIGHUP; a context manager.

    What the launcher ignores (SIGHUP under `nohup`, SIGINT in the background of a script) stays ignored.

    A second SIGINT, a second or more after the first signal, raises KeyboardInterrupt at once (launchers send the
    terminal's own again). In another thread than the main one Python takes no signals: nothing is changed there.

    Attributes:
        received: number of the signal, 0 if none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive)
                for number in STOP_SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since >= 1:
            raise KeyboardInterrupt
