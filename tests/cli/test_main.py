"""The command `upsnet`: finding a command, and how it ends."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.conftest import ROOT
from upsnet.cli import main as cli
from upsnet.cli.errors import SomeInputsFailedError


@pytest.fixture
def command(monkeypatch, capsys):
    """Replaces the body of `upsnet train`, runs it, and returns exit code, standard output and errors."""

    def run(body):
        module = types.ModuleType("upsnet.cli.train")
        module.main = body
        monkeypatch.setitem(sys.modules, "upsnet.cli.train", module)
        return cli.main(["train", "a", "b"]), *capsys.readouterr()

    return run


def body_that_raises(error):
    def body(argv):
        raise error

    return body


def test_a_command_gets_the_words_after_its_name(command):
    seen = []
    assert command(lambda argv: seen.extend(argv) or 7)[0] == 7
    assert seen == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a.yaml: two\nlines"), 2, "error: a.yaml: two lines\n"),
        (FileNotFoundError("b: no such file"), 2, "error: b: no such file\n"),
        (FloatingPointError("iteration 3"), 2, "error: iteration 3\n"),
        (MemoryError(), 2, "error: MemoryError\n"),
        (SomeInputsFailedError("1 of 2 images failed"), 1, "error: 1 of 2 images failed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(command, error, code, text):
    assert command(body_that_raises(error)) == (code, "", text)


def test_a_bug_is_one_line_that_names_a_file_with_the_traceback(command, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = command(body_that_raises(TypeError("no such thing\nin two lines")))
    assert code == 3
    assert err.count("\n") == 1
    assert "unexpected TypeError: in two lines. This is a bug in upsnet" in err
    path = Path(err.split()[-1])
    assert path.parent == tmp_path
    assert "raise error" in path.read_text()


def test_a_bug_where_nothing_can_be_written_shows_the_traceback(command, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    code, _, err = command(body_that_raises(TypeError("x")))
    assert code == 3
    assert "Traceback" in err
    assert "unexpected TypeError" in err


def test_an_error_in_a_data_worker_is_told_without_its_traceback(command):
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\nValueError: a.png: truncated"
    )
    assert command(body_that_raises(ValueError(text))) == (2, "", "error: a.png: truncated\n")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, words):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in cli.COMMANDS)


@pytest.mark.parametrize(("word", "remedy"), [("trian", "did you mean train?"), ("x", "expected one of train, ")])
def test_an_unknown_command_is_an_error_with_the_nearest_name(capsys, word, remedy):
    assert cli.main([word]) == 2
    assert f"error: unknown command {word!r}; {remedy}" in capsys.readouterr().err


def test_every_command_has_a_script_in_a_checkout():
    texts = [path.read_text() for path in (*(ROOT / "tools").glob("*.py"), ROOT / "datasets" / "convert.py")]
    assert {name for name in cli.COMMANDS if any(f'main(["{name}"' in text for text in texts)} == set(cli.COMMANDS)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory\nmore"),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_no_bug(command, error):
    code, _, err = command(body_that_raises(error))
    assert code == 2
    assert err.startswith("error: out of memory: ")
    assert err.count("\n") == 1


def test_a_reader_that_leaves_early_ends_a_command_quietly():
    command = f"{sys.executable} -m upsnet --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: upsnet COMMAND")


@pytest.mark.parametrize("word", ["--submission", "--submission=coco", "--submiss", "--su"])
def test_a_submission_has_its_own_options_however_it_is_named(capsys, word):
    words = [word] if "=" in word else [word, "coco"]
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *words, "--output", "x"])
    assert end.value.code == 2
    assert "--predictions" in capsys.readouterr().err


def test_a_config_may_come_through_a_pipe(tmp_path):
    command = f"{sys.executable} -m upsnet doctor --split val --config <(sed s/1500/3/ {ROOT}/configs/shapes_r18.yaml)"
    command += " 'data.val.num_images=2' --workers 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_cityscapes_needs_to_be_told_what_to_do(capsys):
    for words in (["cityscapes"], ["cityscapes", "--root", "x"]):
        with pytest.raises(SystemExit):
            cli.main(["convert", *words])
        assert "{panoptic,check}" in capsys.readouterr().err
    assert cli.main(["convert", "cityscapes", "check", "--output", "x"]) == 2
    assert "check writes nothing" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_print_a_letter_does_not_fail_a_command(encoding):
    """A redirected Windows console, or LANG=C."""
    code = r"from upsnet.cli.errors import run_command; run_command(lambda: print('\u732b \udcff done') or 0)"
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert found.stdout.decode(encoding).strip() == r"\u732b \udcff done"


def test_a_long_error_is_cut(command):
    code, _, err = command(body_that_raises(ValueError("x" * 50_000 + " end")))
    assert code == 2
    assert len(err) < 1600
    assert err.endswith(" end\n")


def test_a_file_where_a_folder_is_needed_is_named_with_the_remedy(upsnet_command, checkpoint, tmp_path):
    file = tmp_path / "file"
    file.touch()
    expected = "this path needs a folder, but a file is there; choose another path"
    for output in (file, file / "below"):
        code, _, err = upsnet_command("evaluate", "--checkpoint", checkpoint, "--output", output)
        assert (code, err.count("\n")) == (2, 1), err
        assert str(file) in err
        assert expected in err
    code, _, err = upsnet_command("evaluate", "--gt", tmp_path, "--pred", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path}: is a folder, expected a file; give the path of the file\n")
