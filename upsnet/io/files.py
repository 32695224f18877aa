"""Atomic writing, reading with retries, and the rules for names of files."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from upsnet.text import shown

Result = TypeVar("Result")

TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EAGAIN", "EINTR", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN")
    if hasattr(errno, name)
)
"""Error numbers of network disks that may disappear on a second attempt."""
RETRY_SECONDS = (0.1, 0.5, 2.0)
MAX_NAME_BYTES = 255
"""Maximum length of a file name on most file systems."""
PLAIN_NAME = re.compile(r"(?:[\w-][\w. -]*/)*[\w-][\w. -]*", re.ASCII)
"""Names that match are valid unless they are too long, so most names need no other check."""
DEVICE_NAMES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows reserves for devices in every folder."""
TEMPORARY = re.compile(r"\..*\.upsnet-(?P<host>\w+)-(?P<pid>\d+)-\w+(\.\w+)?")
"""Names of temporary files and folders, which tell the process that made them."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path, and puts the file in the place of `path` if the block succeeds.

    A crash, a full disk or a kill leaves the old file, or none; never half a file. If `path` is a symlink, the file it
    points to is replaced. A device or a FIFO receives the content.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    target = path.resolve()
    is_special = target.exists() and not target.is_file()
    if is_special and target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file", str(path))
    temporary = None
    try:
        folder = Path(tempfile.gettempdir()) if is_special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_file(folder, target, path.suffix[:16])
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if is_special:
            with temporary.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        else:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _temporary_file(folder: Path, target: Path, suffix: str) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix=_temporary_prefix(target.stem), suffix=suffix)
    os.close(handle)
    return Path(name)


def temporary_folder(folder: Path) -> Path:
    """Makes a folder in `folder` for a process to work in; `remove_leftovers` knows it."""
    return Path(tempfile.mkdtemp(dir=folder, prefix=_temporary_prefix("work")))


def _temporary_prefix(stem: str) -> str:
    shown = stem.encode("utf-8", "surrogateescape")[:80].decode("utf-8", "ignore")
    return f".{shown}.upsnet-{_host()}-{os.getpid()}-"


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())[:32] or "host"


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes temporary files and folders of processes of this host that have ended.

    Args:
        folder: not entered further; it need not exist.

    Returns:
        What was removed.
    """
    removed = []
    for path in folder.iterdir() if folder.is_dir() else ():
        found = TEMPORARY.fullmatch(path.name)
        if found is None or found["host"] != _host() or _is_alive(int(found["pid"])):
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            removed.append(path)
    return removed


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def retry(action: Callable[[], Result]) -> Result:
    """Calls a function. After an error of a network disk it waits and calls again, up to three times (`is_transient`).

    Raises:
        OSError, ValueError: of the last call.
    """
    for seconds in RETRY_SECONDS:
        try:
            return action()
        except (OSError, ValueError) as error:
            if not is_transient(error) and not is_transient(error.__cause__):
                raise
        time.sleep(seconds)
    return action()


def is_transient(error: BaseException | None) -> bool:
    """Whether it is an error of a network disk that may disappear on a second attempt."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def require_inside(name: str, *, source: str) -> None:
    """Checks that a file name from a file stays below the folder that it belongs to.

    Args:
        name: relative path, with slashes.
        source: the file that holds the name, for the error.

    Raises:
        ValueError: it is empty, absolute, leaves the folder, names a device, or is too long for a file system.
    """
    fault = name_fault(name)
    if fault is not None:
        raise ValueError(f"{source}: file name {shown(name)} {fault}, expected a relative path below its folder")


def name_fault(name: str) -> str | None:
    """What is wrong with a file name, see `require_inside`; None if nothing is."""
    if PLAIN_NAME.fullmatch(name) and len(name) <= MAX_NAME_BYTES and os.name != "nt":
        return None
    path = PurePosixPath(name)
    if not path.parts or name.endswith("/"):
        return "is empty"
    if path.is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
        return "is absolute"
    if ".." in path.parts or ".." in PureWindowsPath(name).parts:
        return "leaves its folder"
    if any(ord(character) < 32 for character in name):
        return "has control characters"
    if os.name == "nt" and any(DEVICE_NAMES.fullmatch(part) for part in path.parts):
        return "names a device"
    try:
        if max(len(part.encode()) for part in path.parts) > MAX_NAME_BYTES:
            return "is too long"
    except UnicodeEncodeError:
        return "cannot be written in UTF-8"
    return None


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Lists the files of a folder that end in one of `suffixes` (lower case), sorted by name, without hidden files.

    Programs leave hidden files and folders behind: `._photo.jpg` (macOS), `.ipynb_checkpoints`.
    """
    return sorted(path for path in list_visible(folder) if path.suffix.lower() in suffixes and not path.is_dir())


def list_visible(folder: Path) -> list[Path]:
    """Lists the files and folders in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def png_names(file_names: Sequence[str]) -> list[str]:
    """A PNG name of its own for each file: the name with the suffix `.png`, unless two differ only in suffix or case.

    Args:
        file_names: relative paths. All files of a data set, so that every process gets the same names.
    """
    stems = [str(PurePosixPath(name).with_suffix("")) for name in file_names]
    times = Counter(stem.casefold() for stem in stems)
    used: set[str] = set()
    names = []
    for name, stem in zip(file_names, stems, strict=True):
        base = stem if times[stem.casefold()] == 1 else name
        numbered = (f"{base}.png" if number == 1 else f"{base}-{number}.png" for number in count(1))
        chosen = next(candidate for candidate in numbered if candidate.casefold() not in used)
        used.add(chosen.casefold())
        names.append(chosen)
    return names


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut, as fsync does for the contents of a file."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def require_regular(path: Path) -> None:
    """Refuses devices and FIFOs, which may have no end.

    Raises:
        OSError: it is one, or there is no such file.
    """
    if not stat.S_ISREG(retry(path.stat).st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """Reads a file as a whole, with retries (`retry`)."""

    def read() -> bytes:
        with path.open("rb", buffering=0) as file:
            return file.readall()

    return retry(read)


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte order mark; `object_hook` as in `json.loads`.

    Raises:
        FileNotFoundError, ValueError: the file is missing or is no JSON; the message names it.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"), object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({str(error)[:200]})") from None


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy where the disk allows none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        with atomic_path(target) as path:
            shutil.copyfile(source, path)
