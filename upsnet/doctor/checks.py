"""What can be wrong with a data set: the name of each check, how bad it is, what it says, and the remedy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Level = Literal["error", "warning", "info"]
SHOWN = 20
"""Names that are kept of each finding."""


class Check(NamedTuple):
    """One check. `error`: training would fail or learn what is wrong."""

    name: str
    level: Level
    text: str
    remedy: str


FIX = "--fix DIR writes a copy "
CHECKS = {
    check.name: check
    for check in (
        # the JSON
        Check("json-row", "error", "a row of the JSON lacks a field, or a field has a wrong value", FIX + "without it"),
        Check(
            "category-field",
            "error",
            "a category lacks id, name or isthing (0 or 1)",
            FIX + "without it, if no segment has it",
        ),
        Check("category-id-twice", "error", "several categories have one id", "give each an id of its own"),
        Check(
            "category-name-twice",
            "error",
            "several categories have one name",
            FIX + "with the first, if no segment has another",
        ),
        Check(
            "categories-differ",
            "error",
            "an id has another name, or is thing here and stuff there, or is missing",
            "make the categories of both JSONs and data.categories the same",
        ),
        Check(
            "image-id-twice", "error", "several images have one id, the last hides the others", FIX + "with the last"
        ),
        Check("annotation-twice", "error", "an image has several annotations", FIX + "with the first"),
        Check("png-named-twice", "error", "several annotations name one PNG", FIX + "with a PNG for each"),
        Check("annotation-without-image", "error", "an annotation is of an image not in `images`", FIX + "without it"),
        Check("image-without-annotation", "warning", "an image has no annotation, it is skipped", "annotate it"),
        Check(
            "segment-id", "error", "a segment id appears twice, or is not 1 to 2^24 - 1", FIX + "without the segment"
        ),
        Check("segment-category", "error", "a segment has a category that is not listed", FIX + "with void there"),
        Check("segment-crowd", "error", "a segment has an iscrowd that is neither 0 nor 1", "write 0 or 1 in the JSON"),
        # files
        Check("picture-missing", "error", "a picture is not there", "restore it; " + FIX + "without it"),
        Check("picture-unreadable", "error", "a picture is damaged or of no kind", "replace it; " + FIX + "without it"),
        Check("png-missing", "error", "an id PNG is not there", "restore it; " + FIX + "without the image"),
        Check("png-unreadable", "error", "an id PNG is damaged", "restore it; " + FIX + "without the image"),
        Check("png-mode", "error", "an id PNG is not 8-bit RGB (id = R + 256 G + 65536 B)", FIX + "with RGB PNGs"),
        Check("png-lossy", "error", "an id PNG holds JPEG data, its ids are lost", FIX + "without the image"),
        Check("png-alpha", "info", "an id PNG has an alpha channel, which is ignored", "nothing to do"),
        Check("file-unnamed", "info", "a file in the folder is named by no JSON", "nothing to do"),
        Check("size-picture", "error", "picture and id PNG have different sizes", FIX + "without the image"),
        Check("size-json", "warning", "the JSON gives another size than the files", FIX + "with the right one"),
        Check(
            "exif-rotated", "error", "the id PNG fits the picture only as EXIF turns it", FIX + "with it stored upright"
        ),
        Check("exif-orientation", "info", "EXIF would turn the picture; it is read as stored", "look at the overlays"),
        Check(
            "value-range-missing",
            "error",
            "an image has negative values, fractions, or values above 65535",
            "set data.value_range to the values that become black and white; the brackets hold those of all images",
        ),
        Check(
            "value-range-part",
            "warning",
            "an image of more than 8 bits uses a part of 16 bits: training may see it dark",
            "set data.value_range to the range in brackets, which holds the values of all images",
        ),
        Check("picture-mode", "info", "a picture is not 8-bit RGB, it is converted on reading", "nothing to do"),
        # ids and segments
        Check("id-not-in-json", "error", "ids of the PNG are not in the JSON", FIX + "with void there"),
        Check(
            "png-blended",
            "error",
            "the PNG has many unknown ids of few pixels: it was resized with blending, or went through JPEG",
            "make it again with nearest-neighbour resizing; " + FIX + "with void there",
        ),
        Check("segment-without-pixels", "error", "a segment of the JSON has no pixel", FIX + "without it"),
        Check("area-wrong", "warning", "an area of the JSON is not the number of pixels", FIX + "with the right one"),
        Check("box-wrong", "warning", "a bbox of the JSON is not that of the pixels", FIX + "with the right one"),
        Check("stuff-split", "warning", "a stuff class has several segments in an image", FIX + "with one segment"),
        Check("stuff-crowd", "warning", "a stuff segment is marked iscrowd", FIX + "without the mark"),
        Check(
            "thing-scattered",
            "warning",
            "a quarter of a thing lies apart from its largest piece by more than that is long: several under one id?",
            "look at the overlays; give each object an id",
        ),
        Check(
            "segment-tiny",
            "warning",
            "a segment is smaller than a cell of the finest level (16 px) at the network's size",
            "larger images (data.augment, data.test_short_side), or void there",
        ),
        Check(
            "image-void", "warning", "an image is void everywhere, it teaches nothing", "annotate it, or leave it out"
        ),
        Check("image-mostly-void", "warning", "more than half of an image is void", "look at the overlays"),
        Check(
            "image-small",
            "warning",
            "at the network's size a side is shorter than the coarsest cell (32 px)",
            "larger images",
        ),
        Check("sample-unreadable", "error", "the reader cannot give an image", "see what it says"),
        # over the whole set
        Check("class-unseen", "warning", "a class has no segment in the training images", "drop it, or annotate more"),
        Check("class-only-in-val", "warning", "a class is judged in val but never seen in train", "split anew"),
        Check(
            "anchors-miss",
            "warning",
            "more than 1 % of the instances have IoU < model.rpn.negative_iou with every anchor at the network's size",
            "fit model.rpn.anchor_sizes and aspect_ratios to the histogram in --json",
        ),
        Check(
            "over-max-detections",
            "warning",
            "an image has more instances than model.instance.max_detections",
            "raise model.instance.max_detections",
        ),
        Check(
            "over-train-slots",
            "info",
            "more instances than model.panoptic.train_slots: a random part enters the panoptic loss",
            "raise model.panoptic.train_slots",
        ),
        Check("same-data", "warning", "train and val are the same files: scores say nothing", "split the data"),
        Check(
            "duplicate-across-splits",
            "error",
            "a picture stands in train and in val, pixel by pixel",
            FIX + "without it in train",
        ),
        Check("duplicate-in-split", "warning", "a picture stands twice in a split, pixel by pixel", "leave one out"),
        Check(
            "near-duplicate-across-splits", "warning", "pictures of train and val look alike", "put them into one split"
        ),
        Check("near-duplicate-in-split", "info", "pictures of a split look alike", "nothing to do"),
    )
}


class Problem(NamedTuple):
    """One occurrence of a check: the file it is about (or another name), and what exactly."""

    check: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


@dataclass
class Finding:
    """All occurrences of a check in a split.

    Attributes:
        count: how many; images: on how many images, of `of` that were examined (0: it is not about images).
        first: the first ones.
    """

    check: Check
    split: str
    of: int = 0
    count: int = 0
    images: int = 0
    last: str | None = None
    first: list[Problem] = field(default_factory=list)


@dataclass
class Findings:
    """What was found, errors first.

    Attributes:
        found: by check and split.
    """

    found: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def add(self, split: str, problems: Iterable[Problem], *, of: int = 0) -> None:
        """Adds occurrences, those of an image one after the other; `of`: images that were examined."""
        for problem in problems:
            finding = self.found.setdefault((problem.check, split), Finding(CHECKS[problem.check], split, of))
            finding.count += 1
            finding.images += problem.name != finding.last
            finding.last = problem.name
            if len(finding.first) < SHOWN:
                finding.first.append(problem)

    def __iter__(self) -> Iterator[Finding]:
        order, checks = ("error", "warning", "info"), list(CHECKS)
        return iter(sorted(self.found.values(), key=lambda f: (order.index(f.check.level), checks.index(f.check.name))))

    def counts(self) -> Counter[str]:
        """Level -> how many kinds of findings there are of it."""
        return Counter(finding.check.level for finding in self)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [
            {
                "check": finding.check.name,
                "level": finding.check.level,
                "split": finding.split,
                "count": finding.count,
                "share_of_images": finding.images / finding.of if finding.of else None,
                "first": [{"name": problem.name, "detail": problem.detail} for problem in finding.first],
                "text": finding.check.text,
                "remedy": finding.check.remedy,
            }
            for finding in self
        ]
