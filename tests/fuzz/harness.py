"""Runs commands on made-up inputs, and checks what must hold for every input.

`make test` tries a few dozen inputs of each kind. With $UPSNET_FUZZ_SECONDS (`make fuzz`) each test goes on for so many
seconds, and the summary tells how many inputs it tried.
"""

import contextlib
import hashlib
import io
import os
import resource
import time
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, given, settings

from upsnet.cli.main import main

SECONDS = float(os.environ.get("UPSNET_FUZZ_SECONDS", "0"))
EXTRA_MEMORY = 3 << 30
"""Bytes that a command may take beyond what this process has."""


def fuzz(*strategies, examples):
    """Makes a test of a function of drawn values: `examples` of them, or as many as the time allows."""

    def wrap(check):
        def test(record_property):
            end, rounds = time.monotonic() + SECONDS, 0
            while True:
                run = settings(
                    max_examples=examples,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                )(hypothesis.seed(rounds)(given(*strategies)(check)))
                run()
                rounds += 1
                if time.monotonic() >= end:
                    break
            record_property("inputs", rounds * examples)

        test.__name__ = check.__name__
        test.__doc__ = check.__doc__
        return test

    return wrap


def tree(folder: Path) -> dict[str, str]:
    """What is in a folder: the digest of every file, and where every link points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


@contextlib.contextmanager
def limited_memory():
    """Less memory for the block; what asks for more gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_command(*words, inputs: Path, output: str):
    """Runs `upsnet WORDS` and checks its manners.

    Args:
        words: of the command line.
        inputs: folder of the inputs, which must not change.
        output: name of the folder (or file) in `inputs.parent` that the command writes.

    Returns:
        The exit code, what was printed, and the error lines.
    """
    before, around = tree(inputs), tree(inputs.parent)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited_memory():
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
    text = err.getvalue()
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    assert code in (0, 1, 2), f"exit code {code}: {text}"
    assert "Traceback" not in text, text
    assert (len(errors) == 1) if code == 2 else len(errors) <= 1, f"exit code {code}: {text}"
    assert all(len(line) < 2000 for line in errors), "an error of a screen at most"
    assert not any("MemoryError" in line or "out of memory" in line for line in errors), text
    assert tree(inputs) == before, "an input was changed"
    after = tree(inputs.parent)
    odd = {name for name in after.keys() ^ around.keys() if Path(name).parts[0] != output}
    odd |= {
        name for name in after.keys() & around.keys() if after[name] != around[name] and Path(name).parts[0] != output
    }
    assert not odd, f"outside of the output: {odd}"
    if code == 2 and output not in around:
        left = [name for name in after if Path(name).parts[0] == output and after[name] != "folder"]
        assert not left, f"left behind by a command that failed: {left}"
    return code, out.getvalue(), errors
