"""Twins among pictures that are made so, and none among those that are not."""

import cv2
import numpy as np

from upsnet.doctor import duplicates
from upsnet.doctor.duplicates import find_twins
from upsnet.doctor.image_files import fingerprint


def smooth(seed, size=(90, 120)):
    grid = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)


def twins(*splits):
    prints = [[None if picture is None else fingerprint(picture) for picture in split] for split in splits]
    thumbnails, digests = ([[p and p[part] for p in split] for split in prints] for part in (0, 1))
    found = find_twins(thumbnails, digests, lambda split, row: splits[split][row])
    return {(twin.first, twin.second): twin.kind for twin in found}


def test_equal_and_alike_pictures_are_told_apart():
    a, b, c = (smooth(seed) for seed in range(3))
    darker, smaller = (a * 0.8).astype(np.uint8), cv2.resize(a, (100, 75))
    moved = np.roll(a, 25, axis=1)
    found = twins([a, b, None, moved], [c, darker, a.copy(), smaller])
    assert found[(0, 0), (1, 2)] == "equal"
    assert found[(0, 0), (1, 1)] == "alike"
    assert found[(0, 0), (1, 3)] == "alike"
    across = {second for (first, second) in found if first[0] != second[0]}
    assert across == {(1, 1), (1, 2), (1, 3)}
    assert not any((0, 3) in pair or (0, 1) in pair or (1, 0) in pair for pair in found)


def test_flat_pictures_are_equal_or_nothing():
    grey = [np.full((40, 40, 3), value, dtype=np.uint8) for value in (90, 91, 90)]
    assert twins(grey) == {((0, 0), (0, 2)): "equal"}


def test_blocks_change_nothing(monkeypatch):
    pictures = [smooth(seed % 7) if seed % 3 else smooth(seed % 7, (60, 80)) for seed in range(20)]
    whole = twins(pictures[:12], pictures[12:])
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    assert twins(pictures[:12], pictures[12:]) == whole
    assert {second for _, second in whole} == {(0, row) for row in range(7, 12)} | {(1, row) for row in range(8)}


def test_of_many_pictures_alike_each_is_read_with_the_one_it_resembles_most(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    scene, rng = smooth(0), np.random.default_rng(0)
    frames = [np.clip(scene + rng.normal(0, 5, scene.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    prints, reads = [fingerprint(frame) for frame in frames], []

    def read(_, row):
        reads.append(row)
        return frames[row]

    found = find_twins([[p[0] for p in prints]], [[p[1] for p in prints]], read)
    assert [(twin.second, twin.kind) for twin in found] == [((0, row), "alike") for row in range(1, 12)]
    assert len(reads) == 2 * len(found)


def test_nothing_to_compare():
    assert twins([None], []) == {}
