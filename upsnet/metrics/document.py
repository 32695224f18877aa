"""`metrics.json`: its sections, its format number, and short names for its main scores.

| section | what it measures |
| --- | --- |
| `panoptic` | PQ and related scores of the panoptic map |
| `semantic` | mIoU of the semantic head's map |
| `semantic_from_panoptic` | mIoU of the classes of the panoptic map |
| `instance_ap` | AP of the list of instances, which may overlap |
| `panoptic_ap` | AP of the things of the panoptic map |

A section is null if it does not apply, or if the predictions lack the data for it. A number is null if there is nothing
to score. `docs/metrics.schema.json` lists every key.
"""

from __future__ import annotations

from typing import Any

from upsnet.metrics.instance_ap import InstanceAP
from upsnet.metrics.panoptic_quality import PanopticQuality
from upsnet.metrics.semantic_iou import SemanticIoU
from upsnet.metrics.slices import Attributes

FORMAT = 2
"""A file without a format number has format 1. There, `semantic` and `instance` have two meanings. For a checkpoint,
they are `semantic` and `instance_ap`. For prediction files, they are `semantic_from_panoptic` and `panoptic_ap`."""


def compute_metrics(
    panoptic: PanopticQuality | None,
    semantic: SemanticIoU | None = None,
    instance_ap: InstanceAP | None = None,
    panoptic_ap: InstanceAP | None = None,
    attributes: Attributes | None = None,
) -> dict[str, Any]:
    """Computes the contents of `metrics.json`, in percent; a section without a meter is None.

    Args:
        panoptic: meter of the panoptic map; `semantic_from_panoptic` is computed from it, too.
        semantic: meter of the semantic head.
        instance_ap: meter of the list of instances.
        panoptic_ap: meter of the things of the panoptic map.
        attributes: attributes of the images, for `panoptic.slices`.

    Raises:
        ValueError: the attributes name none of the images.
    """
    from_panoptic = None
    if panoptic is not None:
        from_panoptic = SemanticIoU(panoptic.categories)
        from_panoptic.add(panoptic.rows.values())
    return {
        "format": FORMAT,
        "panoptic": None if panoptic is None else panoptic.compute(attributes),
        "semantic": None if semantic is None else semantic.compute(),
        "semantic_from_panoptic": None if from_panoptic is None else from_panoptic.compute(),
        "instance_ap": None if instance_ap is None else instance_ap.compute(),
        "panoptic_ap": None if panoptic_ap is None or not panoptic_ap.is_scored else panoptic_ap.compute(),
    }


def headlines(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The main scores of `metrics.json` under short names; None where there is nothing to score.

    Args:
        metrics: the contents of the file. Sections other than `panoptic` may be missing.
    """
    values: dict[str, float | None] = {}
    if metrics["panoptic"] is not None:
        for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
            values |= {f"{key}{suffix}": metrics["panoptic"][group][key] for key in ("pq", "sq", "rq")}
    for section, name in (("semantic", "miou"), ("semantic_from_panoptic", "miou_from_panoptic")):
        if metrics.get(section) is not None:
            values[name] = metrics[section]["miou"]
    for section in ("instance_ap", "panoptic_ap"):
        if metrics.get(section) is not None:
            values |= {section: metrics[section]["ap"], f"{section}50": metrics[section]["ap50"]}
    return values


def flat_metrics(metrics: dict[str, Any], *, per_class: bool = False) -> dict[str, float | None]:
    """`metrics.json` as one flat dictionary, for TensorBoard, Weights & Biases, MLflow and others.

    Args:
        metrics: the contents of the file, or what `evaluate_checkpoint` returned.
        per_class: also return `pq/NAME`, `sq/NAME` and `rq/NAME` of each class.

    Returns:
        `headlines`, then `pq_dagger`, `boundary_pq` if it was computed, and `pq_low` and `pq_high`, the ends of the
        95 % interval of PQ. In percent; None where there is nothing to score.
    """
    values, panoptic = headlines(metrics), metrics["panoptic"]
    if panoptic is None:
        return values
    values["pq_dagger"] = panoptic["pq_dagger"]["All"]
    if panoptic["boundary"] is not None:
        values["boundary_pq"] = panoptic["boundary"]["All"]["pq"]
    if panoptic["interval"] is not None and panoptic["interval"]["All"] is not None:
        values["pq_low"], values["pq_high"] = panoptic["interval"]["All"]["pq"]
    if per_class:
        for row in panoptic["per_class"].values():
            values |= {f"{key}/{row['name']}": row[key] for key in ("pq", "sq", "rq")}
    return values
