"""Causes of errors in cases small enough to see, and that they add up in random ones."""

import numpy as np
import pytest

from tests.metrics.test_panoptic_quality import random_map
from upsnet.metrics.error_causes import CAUSES, count_causes, find_causes, mended_pq
from upsnet.metrics.panoptic_quality import SegmentTable, class_sums, match_segments


def causes(truth, truth_classes, predicted, predicted_classes, crowd=None):
    """Names of the causes of the missed truths and of the spurious predictions; None where there is no error."""
    table = SegmentTable.of(truth_classes, crowd)
    found = match_segments(np.array(truth), table, np.array(predicted), SegmentTable.of(predicted_classes))
    result = find_causes(found)
    return tuple([CAUSES[c] if c >= 0 else None for c in side] for side in (result.truth, result.predicted))


def test_a_match_has_no_cause():
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 1, 0]], [2]) == ([None], [None])


def test_another_class_on_the_same_pixels_is_a_wrong_class():
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 1, 0]], [3]) == (["wrong class"], ["wrong class"])
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 0, 0]], [3]) == (["missed"], ["spurious"]), "exactly half is too little"


def test_pieces_of_one_truth_are_a_split():
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 2, 2]], [2, 2]) == (["split"], ["split", "split"])
    found = causes([[1, 1, 1, 1]], [2], [[1, 1, 1, 2]], [2, 2])
    assert found == ([None], [None, "split"]), "one piece matches, the other is a duplicate"
    found = causes([[1, 1, 1, 1, 1, 1, 1, 1]], [2], [[1, 1, 2, 2, 0, 0, 0, 0]], [2, 2])
    assert found == (["poor mask"], ["poor mask", "poor mask"]), "half of the truth is too little"


def test_one_prediction_on_several_truths_is_a_merge():
    assert causes([[1, 1, 2, 2]], [2, 2], [[1, 1, 1, 1]], [2]) == (["merge", "merge"], ["merge"])
    assert causes([[1, 1, 1, 2]], [2, 2], [[1, 1, 1, 1]], [2]) == ([None, "merge"], [None]), "it matches the larger"
    assert causes([[1, 1, 2, 2]], [2, 3], [[1, 1, 1, 1]], [2]) == (["poor mask", "missed"], ["poor mask"])


def test_a_bad_outline_is_a_poor_mask():
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 0, 0]], [2]) == (["poor mask"], ["poor mask"])
    found = causes([[1] * 10], [2], [[1, 1, 2, 2, 2, 2, 2, 2, 2, 2]], [2, 3])
    assert found == (["wrong class"], ["poor mask", "wrong class"]), "the earlier cause counts"


def test_an_overlap_below_a_tenth_means_nothing():
    assert causes([[1] * 10], [2], [[1] + [0] * 9], [2]) == (["poor mask"], ["poor mask"])
    assert causes([[1] * 11], [2], [[1] + [0] * 10], [2]) == (["void"], ["spurious"])


def test_a_truth_mostly_left_open_is_void_and_one_given_to_others_is_missed():
    assert causes([[1, 1, 1, 2]], [2, 3], [[0, 0, 2, 1]], [3, 4]) == (["void", None], [None, "spurious"])
    assert causes([[1, 1, 1, 1]], [2], [[0, 0, 0, 0]], []) == (["void"], [])
    assert causes([[1, 1, 1, 1]], [2], [[0, 0, 1, 1]], [3]) == (["missed"], ["spurious"]), "exactly half is no void"


def test_crowds_and_excused_predictions_have_no_cause():
    assert causes([[1, 1, 1, 1]], [2], [[1, 1, 2, 2]], [2, 3], [True]) == ([None], [None, "spurious"])
    assert causes([[0, 0, 0, 1]], [2], [[1, 1, 1, 1]], [3]) == (["wrong class"], [None])


def test_images_without_segments_have_no_errors():
    assert causes([[0, 0]], [], [[0, 0]], []) == ([], [])
    assert causes([[0, 0]], [], [[0, 0]], [2]) == ([], [None]), "a row without a pixel"


@pytest.mark.parametrize("seed", range(4))
def test_causes_add_up_to_the_errors_of_each_class(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        size = tuple(rng.integers(5, 40, 2))
        (truth, n), (predicted, m) = random_map(rng, size, void=True), random_map(rng, size, void=True)
        mixed = np.where(rng.random(size) < 0.4, np.where(predicted > 0, predicted + n, 0), truth)
        kinds = rng.integers(0, 5, n)
        table = SegmentTable.of(kinds, rng.random(n) < 0.2)
        guess = SegmentTable.of(np.concatenate([kinds, rng.integers(0, 5, m)]))
        found = match_segments(truth, table, mixed, guess)
        result, sums = find_causes(found), class_sums(found, 5)
        assert np.array_equal(count_causes(table.classes, result.truth, 5).sum(1), sums[:, 3])
        assert np.array_equal(count_causes(guess.classes, result.predicted, 5).sum(1), sums[:, 2])


def test_mended_pq_by_hand():
    sums = np.array([[1.5, 2, 1, 1], [0, 0, 0, 2], [0, 0, 1, 0]], dtype=float)
    missed, spurious = np.zeros((3, len(CAUSES)), dtype=int), np.zeros((3, len(CAUSES)), dtype=int)
    missed[0, CAUSES.index("split")] = spurious[0, CAUSES.index("split")] = 1
    missed[1, CAUSES.index("missed")] = 2
    spurious[2, CAUSES.index("spurious")] = 1
    mended = dict(zip(CAUSES, mended_pq(sums, missed, spurious), strict=True))
    assert mended["void"] == pytest.approx(100 * (0.5 + 0 + 0) / 3), "as it is: 1.5 / 3, 0 / 1, 0 / 0.5"
    assert mended["split"] == pytest.approx(100 * (0.75 + 0 + 0) / 3), "2.25 / 3: one match more, no piece left"
    assert mended["missed"] == pytest.approx(100 * (0.5 + 0.75 + 0) / 3), "two matches as good as all matches are"
    assert mended["spurious"] == pytest.approx(100 * (0.5 + 0) / 2), "nothing of the third class is left"
