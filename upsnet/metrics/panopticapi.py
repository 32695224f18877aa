"""`pq_compute` with the signature and the result of panopticapi, the reference program of COCO's panoptic task.

from upsnet.metrics import pq_compute  # in place of: from panopticapi.evaluation import pq_compute
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from upsnet.metrics.score_files import evaluate_files

SHOWN = 10
"""Maximum number of contradictions in the files that get a warning of their own."""


def pq_compute(
    gt_json_file: str | Path,
    pred_json_file: str | Path,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Scores COCO-panoptic predictions against the ground truth, in as many processes as there are CPUs.

    panopticapi stops if files contradict each other (a missing prediction, an id that is not in the JSON). This
    function warns instead, and counts the segments like `upsnet evaluate`. It prints nothing.

    Args:
        gt_json_file, pred_json_file: COCO-panoptic JSON files.
        gt_folder, pred_folder: folders of the PNGs; by default the path of the JSON without `.json`.

    Returns:
        `All`, `Things` and `Stuff`, each with `pq`, `sq`, `rq` (0 to 1) and the number of classes `n`; and `per_class`,
        which has `pq`, `sq` and `rq` for each category id. A class without a segment has 0, as in panopticapi, and is
        left out of the means. If no class of a group has a segment, its scores and `n` are 0.

    Raises:
        FileNotFoundError, ValueError: a JSON or a folder is missing or unusable; the message names it.
    """
    folders = (None if folder is None else Path(folder) for folder in (gt_folder, pred_folder))
    metrics, problems = evaluate_files(Path(gt_json_file), Path(pred_json_file), *folders, progress=False)
    for line in problems[:SHOWN]:
        warnings.warn(line, stacklevel=2)
    if len(problems) > SHOWN:
        warnings.warn(f"{len(problems) - SHOWN} more contradictions in the files", stacklevel=2)
    panoptic = metrics["panoptic"]
    result: dict[str, Any] = {
        name: {**_fractions(panoptic[name]), "n": panoptic[name]["n"]} for name in ("All", "Things", "Stuff")
    }
    result["per_class"] = {int(key): _fractions(row) for key, row in panoptic["per_class"].items()}
    return result


def _fractions(scores: dict[str, Any]) -> dict[str, float]:
    return {name: 0.0 if scores[name] is None else scores[name] / 100 for name in ("pq", "sq", "rq")}
