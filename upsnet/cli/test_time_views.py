"""The options of test-time augmentation, which `evaluate` and `predict` have."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upsnet.ops.views import ViewPlan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--tta-scales` and `--tta-flip`."""
    parser.add_argument(
        "--tta-scales",
        nargs="+",
        type=float,
        metavar="SCALE",
        help="test-time augmentation: average the predictions at these factors on the size of the network input, such "
        "as 0.75 1 1.25",
    )
    parser.add_argument(
        "--tta-flip", action="store_true", help="test-time augmentation: also predict the mirror image of each view"
    )


def chosen(args: argparse.Namespace) -> ViewPlan | None:
    """The views that the options ask for; None without test-time augmentation.

    Raises:
        ValueError: the scales are unusable.
    """
    if not args.tta_scales and not args.tta_flip:
        return None
    from upsnet.ops.views import ViewPlan

    return ViewPlan(tuple(args.tta_scales or (1.0,)), flip=args.tta_flip)
