"""The options of test-time augmentation of `upsnet evaluate` and `upsnet predict`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from upsnet.text import shown

if TYPE_CHECKING:
    from upsnet.ops.views import ViewPlan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--tta-scales` and `--tta-flip`."""
    parser.add_argument(
        "--tta-scales",
        nargs="+",
        type=_scale,
        metavar="SCALE",
        help="test-time augmentation: average predictions at these scales of the network input, such as 0.75 1 1.25",
    )
    parser.add_argument(
        "--tta-flip", action="store_true", help="test-time augmentation: also average the predictions of mirror images"
    )


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        hint = "only numbers may follow --tta-scales" if "=" in text else "separate numbers by spaces"
        raise argparse.ArgumentTypeError(f"{shown(text)}, expected a number such as 0.75; {hint}") from None


def chosen(args: argparse.Namespace) -> ViewPlan | None:
    """The views that the options ask for; None without test-time augmentation.

    Raises:
        ValueError: a scale is out of range or appears twice.
    """
    if not args.tta_scales and not args.tta_flip:
        return None
    from upsnet.ops.views import ViewPlan

    return ViewPlan(tuple(args.tta_scales or (1.0,)), flip=args.tta_flip)
