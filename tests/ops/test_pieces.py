import numpy as np
import pytest

from upsnet.ops import pieces
from upsnet.ops.pieces import connected_pieces


@pytest.fixture(params=["compiled", "cv2"])
def way(request, monkeypatch):
    if request.param == "cv2":
        monkeypatch.setattr(pieces, "compiled", lambda: None)
    return request.param


def test_pieces_of_a_map_by_hand(way):
    ids = np.array([[1, 1, 2, 0], [2, 2, 1, 0], [1, 3, 3, 1]], dtype=np.int32)
    assert connected_pieces(ids).tolist() == [
        [1, 4, 0, 0, 4, 3], [2, 3, 0, 0, 3, 2], [0, 2, 3, 0, 4, 2], [1, 1, 0, 2, 1, 3], [3, 2, 1, 2, 3, 3]
    ]  # fmt: skip
    assert connected_pieces(np.zeros((1, 1), dtype=np.int32)).tolist() == [[0, 1, 0, 0, 1, 1]]


def test_both_ways_find_the_same_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    for size in ((1, 40), (40, 1), (37, 53)):
        for number in (2, 5):
            ids = rng.integers(0, number, size).astype(np.int32)
            fast = connected_pieces(ids)
            with monkeypatch.context() as patch:
                patch.setattr(pieces, "compiled", lambda: None)
                np.testing.assert_array_equal(fast, connected_pieces(ids))
    spiral = np.zeros((9, 9), dtype=np.int32)
    spiral[1::2], spiral[1, 0], spiral[2, 8], spiral[4, 0], spiral[6, 8] = 1, 0, 1, 1, 1
    assert (connected_pieces(spiral)[:, 0] == 1).sum() == 1
