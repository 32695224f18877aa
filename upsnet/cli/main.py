"""Entry point of `upsnet`. The command NAME runs `upsnet.cli.NAME.main`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from upsnet.cli.errors import run_command
from upsnet.version import __version__

COMMANDS = {
    "train": "train a model on one or many GPUs, or on a CPU",
    "evaluate": "score a model or prediction files; pack a submission for a benchmark server",
    "compare": "compare evaluations of the same images: differences of scores with intervals",
    "predict": "segment an image, a folder of images, or a video",
    "export": "write a trained model as a slim checkpoint, as .pt2, or as .onnx",
    "convert": "convert annotations of other programs into the COCO panoptic layout",
    "doctor": "check a data set, propose a config, write a corrected copy",
    "weights": "convert weights of other programs into a checkpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: arguments after `upsnet`; by default `sys.argv[1:]`.

    Returns:
        The exit code, see `cli.errors`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(words))


def _run(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_help(), flush=True)
        return 0
    if name == "--version":
        print(f"upsnet {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {name!r}; {remedy}")
    return int(import_module(f"upsnet.cli.{name}").main(words[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: upsnet COMMAND ...",
            "",
            "Panoptic segmentation: train, evaluate, predict, export.",
            "",
            "commands:",
            *(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "`upsnet COMMAND --help` lists the options of a command and shows examples.",
            "Exit codes: 0 done; 1 findings, or some inputs failed; 2 a mistake in the input; 3 a bug.",
            "",
            "example:",
            "  upsnet train --config shapes_r18 --output runs/demo",
        ]
    )
