"""How a command ends: exit codes, and one line for each kind of error.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | done, with findings or with some inputs that failed; of `upsnet train`: another process failed |
| 2 | a mistake in the input; one line says what to change |
| 3 | a bug in this package; one line names a file with the traceback |
| 128 + n | signal n ended the command |
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upsnet.text import first_line

DONE, SOME_FAILED, MISTAKE, BUG = range(4)
MAX_LINE = 1500
"""Characters of an error at most."""


class SomeInputsFailedError(ValueError):
    """Some inputs could not be processed. The results of the others are written."""


def run_command(command: Callable[[], int]) -> int:
    """Runs the body of a command, and prints an exception as one line.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter prints its number
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except SomeInputsFailedError as error:
        return _fail(SOME_FAILED, str(error))
    except BrokenPipeError:  # the reader of the output has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except (OSError, ValueError, FloatingPointError, MemoryError) as error:
        text = _text_of_path_error(error) or str(error).strip() or type(error).__name__
        if (
            text.startswith("Caught ") and "DataLoader worker" in text
        ):  # torch puts the worker's traceback into the text
            text = text.splitlines()[-1].partition(": ")[2]
        return _fail(MISTAKE, text)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if _is_out_of_memory(error):
            return _fail(
                MISTAKE, f"out of memory: {first_line(error)}; use smaller images or batches, or another machine"
            )
        place = _write_traceback(traceback.format_exc())
        reason = (str(error).strip() or "no message").splitlines()[-1]
        return _fail(BUG, f"unexpected {type(error).__name__}: {reason}. This is a bug in upsnet; {place}")


def _text_of_path_error(error: Exception) -> str | None:
    """A message with the remedy if a path is a file where a folder is expected, or the reverse; otherwise None."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename}: this path needs a folder, but a file is there; choose another path"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename}: is a folder, expected a file; give the path of the file"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate memory; by name, so that torch need not be imported."""
    is_of_gpu = type(error).__name__ == "OutOfMemoryError"
    return is_of_gpu or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _fail(code: int, text: str) -> int:
    line = " ".join(text.split())
    if len(line) > MAX_LINE:  # it may quote a name of any length
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    print(f"error: {line}", file=sys.stderr)
    return code


def _write_traceback(text: str) -> str:
    """Writes the traceback into a temporary file; returns the text that tells the user where it is."""
    with suppress(OSError):
        with tempfile.NamedTemporaryFile("w", prefix="upsnet-traceback-", suffix=".txt", delete=False) as file:
            file.write(text)
        return f"please report it with the traceback in {Path(file.name)}"
    print(text, file=sys.stderr)
    return "please report it with the traceback above"
