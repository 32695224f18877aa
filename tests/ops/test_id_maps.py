"""Rows and pair counts of id maps: compiled, numpy and torch give the same, and as a loop would."""

import numpy as np
import pytest
import torch

from upsnet.ops import id_maps
from upsnet.ops.id_maps import count_pairs, rows_of_ids, segment_geometry


def example(seed, ids=12, size=(17, 23)):
    """Two maps and tables that lack an id of the maps and hold one that does not occur."""
    rng = np.random.default_rng(seed)
    maps, tables = [], []
    for _ in range(2):
        names = rng.choice(2**24, ids, replace=False).astype(np.int32)
        cells = rng.integers(0, ids - 1, (size[0] // 4 + 1, size[1] // 4 + 1))
        maps.append(names[cells.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]])
        tables.append(rng.permutation(names[1:]))
    return maps[0], tables[0], maps[1], tables[1]


def by_loop(first, first_known, second, second_known):
    counts = np.zeros((len(first_known) + 1, len(second_known) + 1), dtype=np.int64)
    rows = [{value: i + 1 for i, value in enumerate(table.tolist())} for table in (first_known, second_known)]
    for a, b in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
        counts[rows[0].get(a, 0), rows[1].get(b, 0)] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_every_implementation_counts_as_a_loop_does(seed, monkeypatch):
    first, first_known, second, second_known = arguments = example(seed)
    expected = by_loop(*arguments)
    np.testing.assert_array_equal(count_pairs(*arguments), expected)
    tensors = torch.from_numpy(first), first_known, torch.from_numpy(second), second_known
    np.testing.assert_array_equal(count_pairs(*tensors), expected)
    rows = rows_of_ids(first, first_known)
    monkeypatch.setattr(id_maps, "compiled", lambda: None)
    np.testing.assert_array_equal(count_pairs(*arguments), expected)
    np.testing.assert_array_equal(rows_of_ids(first, first_known), rows)
    np.testing.assert_array_equal(np.concatenate([[-1], first_known])[rows][rows > 0], first[rows > 0])


@pytest.mark.parametrize("pixels", [1, 1024, 1025, 4096, 4097, 9000])
def test_noise_with_more_pairs_than_the_cache_holds_is_counted(pixels):
    rng = np.random.default_rng(pixels)
    first, second = rng.integers(0, 90, (2, 1, pixels)).astype(np.int32)
    known = np.arange(80)
    np.testing.assert_array_equal(
        count_pairs(first, known, second, known[::-1]), by_loop(first, known, second, known[::-1])
    )


def test_maps_of_any_layout_and_type_are_counted():
    arguments = first, first_known, second, second_known = example(0)
    expected = count_pairs(*arguments)
    first.flags.writeable = first_known.flags.writeable = False
    np.testing.assert_array_equal(count_pairs(*arguments), expected)
    wide = np.asfortranarray(first.astype(np.int64)), first_known.astype(np.int64)
    np.testing.assert_array_equal(count_pairs(*wide, second.astype(np.uint32), second_known), expected)


def test_empty_maps_count_nothing():
    empty, known = np.zeros((0, 5), dtype=np.int32), np.array([0, 1])
    assert count_pairs(empty, known, empty, known).tolist() == [[0] * 3] * 3
    assert rows_of_ids(empty, known).shape == (0, 5)
    one = np.ones((1, 1), dtype=np.int32)
    assert count_pairs(one, known[:0], one, known[:0]).tolist() == [[1]]


def test_wide_ids_and_maps_of_two_sizes_are_refused():
    known = np.array([1], dtype=np.int32)
    with pytest.raises(ValueError, match="expected integers of 32 bits"):
        count_pairs(np.array([[1]]), known, np.array([[2**32 + 1]]), known)
    with pytest.raises(ValueError, match="expected one size"):
        count_pairs(np.array([[1, 1]]), known, np.array([[1]]), known)
    wide = torch.tensor([[2**32 + 1]])
    assert count_pairs(wide, known, wide, known).tolist() == [[1, 0], [0, 0]]
    assert count_pairs(wide, known, wide, known[:0]).tolist() == [[1], [0]]


@pytest.mark.parametrize("is_compiled", [True, False])
def test_tables_are_looked_up_into_parts_of_larger_maps(monkeypatch, is_compiled):
    if not is_compiled:
        monkeypatch.setattr(id_maps, "compiled", lambda: None)
    ids = np.random.default_rng(0).integers(0, 6, (20, 30), dtype=np.int32)
    tables = np.arange(10, 16, dtype=np.int32), np.arange(6, dtype=np.uint8)[::-1].copy()
    first, second = np.zeros((25, 33), np.int32), np.zeros((25, 33), np.uint8)
    id_maps.look_up(ids, *tables, first[:20, :30], second[:20, :30])
    np.testing.assert_array_equal(first[:20, :30], ids + 10)
    np.testing.assert_array_equal(second[:20, :30], 5 - ids)
    assert not first[20:].any()
    assert not second[:, 30:].any()
    with pytest.raises(IndexError, match=r"expected 0\.\.4"):
        id_maps.look_up(ids, tables[0][:5], tables[1][:5], first[:20, :30], second[:20, :30])


@pytest.mark.parametrize("is_compiled", [True, False])
def test_geometry_of_segments(monkeypatch, is_compiled):
    if not is_compiled:
        monkeypatch.setattr("upsnet.ops.id_maps.compiled", lambda: None)
    ids = np.array([[0, 1, 1], [0, 1, 0], [3, 0, 0]], dtype=np.int32)
    areas, boxes = segment_geometry(ids, 3)
    assert areas.tolist() == [3, 0, 1]
    assert boxes.tolist() == [[1, 0, 3, 2], [0, 0, 0, 0], [0, 2, 1, 3]]
    ids = np.random.default_rng(0).integers(0, 9, (30, 40), dtype=np.int32)
    ids[:, 20:] = 0
    areas, boxes = segment_geometry(ids[:, ::-1], 9)
    for segment in range(1, 10):
        rows, columns = np.nonzero(ids[:, ::-1] == segment)
        assert areas[segment - 1] == len(rows)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert boxes[segment - 1].tolist() == edges
