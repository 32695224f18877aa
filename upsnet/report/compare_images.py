"""Draws the panels of the images on the page of a comparison: image, ground truth and both predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from upsnet.io.panoptic_json import PanopticJson
from upsnet.json_values import match_image_ids
from upsnet.metrics.error_causes import find_causes
from upsnet.metrics.image_pair import PairScorer
from upsnet.metrics.matching import match_segments
from upsnet.report.panels import PanelMaker
from upsnet.text import first_line, shown

PREDICTIONS = Path("predictions") / "panoptic.json"
"""Where `upsnet evaluate --checkpoint` writes predictions in its folder."""

PANELS_PER_IMAGE = 6


def draw_images(
    truth: PanopticJson, folders: tuple[Path, Path], keys: Sequence[int | str], image_dir: Path | None
) -> tuple[dict[int | str, dict[str, bytes]], list[str]]:
    """Draws images with the predictions of two evaluations.

    Args:
        truth: the ground truth.
        folders: folders of the evaluations A and B, which contain `PREDICTIONS`.
        keys: ids of the images to draw.
        image_dir: folder of the images; without it, segments are drawn on grey.

    Returns:
        Image id -> name of the panel -> JPEG file; and one line for each image that cannot be drawn or read.

    Raises:
        FileNotFoundError, ValueError: a JSON or its folder is missing or unusable.
    """
    problems: list[str] = []
    scorers = [PairScorer(truth, PanopticJson(f / PREDICTIONS, truth=truth, problems=problems)) for f in folders]
    maker = PanelMaker(truth.categories, -(-len(keys) * PANELS_PER_IMAGE // 4))
    own = match_image_ids(keys, truth.images)
    drawn: dict[int | str, dict[str, bytes]] = {}
    for key in keys:
        if key not in own or own[key] not in truth.annotations:
            problems.append(f"{truth.path}: no ground truth of image {shown(key)}")
            continue
        try:
            panels = [_panels(scorer, own[key], image_dir, maker, problems) for scorer in scorers]
        except (OSError, ValueError) as error:
            problems.append(first_line(error))
            continue
        images = {"Ground truth": panels[0]["Truth"]}
        if "Photograph" in panels[0]:
            images["Image"] = panels[0]["Photograph"]
        for name, side in zip("AB", panels, strict=True):
            images |= {name: side["Prediction"], f"{name}: errors": side["Errors"]}
        drawn[key] = images
    return drawn, list(dict.fromkeys(problems))


def _panels(
    scorer: PairScorer, key: int | str, image_dir: Path | None, maker: PanelMaker, problems: list[str]
) -> dict[str, bytes]:
    pair = scorer.pair(key, image_dir)
    image = None
    if pair.picture is not None:
        try:
            image = pair.picture()
        except (OSError, ValueError) as error:
            problems.append(first_line(error))
            pair = replace(pair, picture=None)
    found = match_segments(pair.truth_map, pair.truth, pair.predicted_map, pair.predicted)
    return maker.make(image, pair.truth_map, pair.predicted_map, pair.scores, found, find_causes(found))
