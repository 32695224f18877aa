"""A lock on the folder of a run, so that two trainings never write into one folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made if it does not exist.

    The operating system releases the lock when the process ends, however it ends, so a lock is never stale. Data
    workers do not inherit it. Systems without POSIX locks have no lock.

    Raises:
        OSError: another process holds the lock, or the folder cannot be written; the message names the folder.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = folder / LOCK_NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise OSError(
                f"{folder}: another training writes into this folder ({holder}); wait until it ends, or choose another "
                "--output"
            ) from None
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        if not existed and {entry.name for entry in folder.iterdir()} == {LOCK_NAME}:
            path.unlink()  # the run failed before it began
            with suppress(OSError):
                folder.rmdir()
        os.close(handle)
