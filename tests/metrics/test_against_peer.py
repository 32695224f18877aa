"""Data sets of every nasty kind score as cityscapesscripts, an independent implementation of the rules, says."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.metrics.test_panoptic_quality import CATEGORIES, peer_scores
from upsnet.io.predictions import PanopticWriter
from upsnet.metrics.score_files import evaluate_files

MOST = 5
IDS = st.lists(st.integers(1, 2**24 - 1), min_size=MOST, max_size=MOST, unique=True)


@st.composite
def side_of(draw, size, maps):
    """One map and its segments: dense map, classes, crowd flags and 24-bit ids of MOST rows."""
    classes = draw(st.lists(st.integers(0, draw(st.sampled_from([0, 4]))), min_size=MOST, max_size=MOST))
    crowds = draw(st.lists(st.booleans(), min_size=MOST, max_size=MOST))
    ids = draw(IDS)
    return draw(maps(size)), classes, crowds, ids


@st.composite
def image(draw):
    """A truth and a prediction that is like it, a mixture, or its own."""
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    few = draw(st.sampled_from([0, 1, 2, MOST]))
    truth = draw(side_of(size, lambda s: arrays(np.int32, s, elements=st.integers(0, few))))
    predicted = draw(side_of(size, lambda s: arrays(np.int32, s, elements=st.integers(0, MOST), fill=st.just(1))))
    kept = draw(arrays(np.bool_, size))
    ids = np.where(kept, truth[0], predicted[0])
    classes = truth[1] if draw(st.booleans()) else predicted[1]
    return truth, (ids, classes, [False] * MOST, predicted[3])


def write(folder, images):
    for name, side in (("gt", 0), ("pred", 1)):
        writer = PanopticWriter(folder / f"{name}.json", CATEGORIES)
        for number, sides in enumerate(images):
            dense, classes, crowds, ids = sides[side]
            areas = np.bincount(dense.ravel(), minlength=MOST + 1)
            rows = [
                {"id": ids[i], "category_id": CATEGORIES[classes[i]].id, "area": int(areas[i + 1]), "iscrowd": int(c)}
                for i, c in enumerate(crowds)
                if areas[i + 1]
            ]
            writer.add(number, f"{number}.jpg", np.array([0, *ids], dtype=np.int32)[dense], rows)
        writer.close()


def hand_made(truth, classes, predicted, predicted_classes, crowds=()):
    pad = [0] * MOST
    ids = [2**24 - 1, 256, 65536, 7, 255]
    flags = [*crowds, *[False] * MOST][:MOST]
    left = np.array([truth], dtype=np.int32), [*classes, *pad][:MOST], flags, ids
    return left, (np.array([predicted], dtype=np.int32), [*predicted_classes, *pad][:MOST], [False] * MOST, ids[::-1])


HALF = hand_made([1, 1, 1, 1], [2], [1, 1, 2, 2], [2, 2])
HALF_VOID = hand_made([0, 0, 1, 1], [2], [1, 1, 1, 1], [3])
CROWDS = hand_made([1, 2, 2, 3], [2, 2, 3], [1, 1, 2, 0], [2, 2], [True, True])
SPLIT_CROWD = hand_made([1, 1, 2, 3, 0], [2, 2, 3], [1, 1, 1, 1, 1], [2], [True, True])
EMPTY = hand_made([0, 0], [], [0, 0], [])
NOTHING_FOUND = hand_made([1, 2], [0, 3], [0, 0], [])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(image(), min_size=1, max_size=4))
@example([HALF, HALF_VOID, CROWDS])
@example([SPLIT_CROWD])
@example([EMPTY])
@example([EMPTY, NOTHING_FOUND])
def test_any_data_set_scores_as_the_peer_says(images):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, images)
        paths = folder / "gt.json", folder / "pred.json"
        metrics, problems = evaluate_files(*paths, strict=True, progress=False)
        assert not problems
        expected = peer_scores(*paths)
    for category in CATEGORIES.categories:
        ours, theirs = metrics["panoptic"]["per_class"][str(category.id)], expected[category.id]
        assert (ours["tp"], ours["fp"], ours["fn"]) == (theirs.tp, theirs.fp, theirs.fn)
        assert ours["iou"] == pytest.approx(theirs.iou, abs=1e-12)
