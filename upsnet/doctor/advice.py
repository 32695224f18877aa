"""What is wrong with the data for a training, and no config repairs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from upsnet.doctor.plan import CPU_MICROSECONDS, MOST_CPUS, Plan
from upsnet.doctor.related_names import find_related
from upsnet.doctor.verdicts import (
    ANCHORS_MISS,
    FEW_SMALL,
    SMALLEST,
    Verdict,
    judge_training_classes,
    judge_val_classes,
    percent,
    printable,
    some,
)

FEW_CUT = 0.1
"""Share of the objects of a class that crops may cut. The others are enough to learn whole objects."""
MIXED = 3.0
"""Ratio of the largest to the smallest short side from which one scale does not suit all images."""
SCALES_DIFFER = 1.5
"""Ratio of the scales of an image in testing and in the middle of training that random scaling (4/3) does not cover."""
LONG_EVALUATION = 0.5
"""Time of one evaluation over that of the training, from which a CPU waits for evaluations most of the time."""


def advise(plan: Plan) -> list[Verdict]:
    """Everything about the data that a person should change, the worst first."""
    return [*_splits(plan), *_classes(plan), *_objects(plan), *_images(plan)]


def _splits(plan: Plan) -> Iterator[Verdict]:
    if plan.is_same_data:
        yield Verdict(
            "train and val are the same images, so that scores measure nothing but the training error",
            "hold images out: upsnet convert ... --split-val 0.2",
        )
        return
    names = {category.name.lower() for category in plan.train.categories.categories}
    related = find_related(plan.train.names, plan.val.names, names)
    if related is not None:
        val, train = map(printable, related.example)
        yield Verdict(
            f"{related.shared} of {related.total} val images seem to have the same originals as training images, so "
            f"that scores are too good ({val} and {train})",
            f"look at them; if so, split again: upsnet convert ... --split-val 0.2 --group-by '{related.pattern}'",
        )
    if not plan.is_on_gpu and plan.evaluation_pixels > LONG_EVALUATION * plan.pixels:
        cores = min(plan.device.cpus, MOST_CPUS)
        minutes = CPU_MICROSECONDS[-1] * plan.evaluation_pixels / 1e6 / cores / 60
        yield Verdict(
            f"an evaluation of {len(plan.val.names)} images takes up to {minutes:.0f} minutes on this CPU",
            "hold fewer images out: upsnet convert ... --split-val 0.05",
        )


def _classes(plan: Plan) -> Iterator[Verdict]:
    categories = plan.train.categories
    names = [category.name for category in categories.categories]
    objects = dict(zip(names, plan.train.objects_of_class().tolist(), strict=True))
    verdicts = [judge_training_classes(objects, names[: categories.num_stuff], len(plan.train.names))]
    if (in_val := plan.objects_in_val()) is not None:
        verdicts.append(judge_val_classes(in_val))
    yield from (verdict for verdict in verdicts if verdict.fact)


def _objects(plan: Plan) -> Iterator[Verdict]:
    view = plan.view
    small = float((view.sides < SMALLEST).mean()) if len(view.sides) else 0.0
    if small > FEW_SMALL:
        yield Verdict(
            f"{percent(small)} of the objects are smaller than {SMALLEST} pixels at the proposed size, and are hardly "
            "learned",
            "cut the images into tiles, so that the objects are larger in them",
        )
    if plan.coverage is not None and plan.coverage.below_negative > ANCHORS_MISS:
        yield Verdict(
            f"{percent(plan.coverage.below_negative, 1)} of the objects have no anchor near them, because they are "
            "very small or very long",
            "tiles show small objects larger; make very long objects stuff",
        )
    if plan.heads != "semantic" and plan.most_instances > plan.detections:
        yield Verdict(
            f"an image has {plan.most_instances} instances, and the model finds at most {plan.detections}",
            "cut full images into tiles, or raise model.instance.max_detections",
        )
    if cut := _cut_classes(plan):
        yield Verdict(
            f"objects that most crops of {view.crop} pixels cut through, so that training hardly sees them whole: "
            f"{some(cut)}",
            "raise data.augment.crop_size as far as memory and time allow, or make these classes stuff",
        )


def _cut_classes(plan: Plan) -> list[str]:
    """Names and shares of the classes with many objects that are larger than the crop."""
    channels, count = plan.train.instances.channels, len(plan.train.categories)
    total = np.bincount(channels, minlength=count)
    cut = np.bincount(channels, plan.view.is_cut, minlength=count)
    rows = zip(plan.train.categories.categories, cut.tolist(), total.tolist(), strict=True)
    return [
        f"{printable(c.name)} {percent(some_cut / all_)}" for c, some_cut, all_ in rows if some_cut > FEW_CUT * all_
    ]


def _images(plan: Plan) -> Iterator[Verdict]:
    short = plan.train.short_sides
    low, high = int(short.min()), int(short.max())
    if high > MIXED * low:
        yield Verdict(
            f"short sides from {low} to {high} pixels, {high / low:.1f} times as large, become one size, so that equal "
            "objects get unequal sizes",
            "leave out the smallest images, or cut the largest into tiles",
        )
    ratios = plan.view.scales * plan.train.long_sides / plan.view.crop
    middle = math.sqrt(math.prod(plan.view.jitter))
    differ = float((np.abs(np.log(ratios / middle)) > math.log(SCALES_DIFFER)).mean())
    if differ > FEW_SMALL:
        yield Verdict(
            f"images of very different shapes: {percent(differ)} are trained at more than {SCALES_DIFFER:g} times the "
            "scale of testing, or less than its inverse",
            "cut long images into pieces",
        )
