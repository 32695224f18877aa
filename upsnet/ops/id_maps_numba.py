"""Loops over the pixels of id maps, compiled by numba: PNG filters undone, ids looked up, pairs of ids counted.

Import this module through `id_maps` alone, which has a numpy twin of each function for machines without numba.
Compiling takes seconds, once; later processes load the cached code.
"""

import numpy as np
from numba import njit

LOW_BITS = np.uint32(0x7F7F7F)
HIGH_BITS = np.uint32(0x808080)
HASH = 2654435761  # Knuth's multiplicative hash: 2^32 / golden ratio
GOLDEN = -7046029254386353131  # the same of 64 bits, as a signed number
CACHE = 1024
BLOCK = 1024  # of both maps fits into the first cache
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)  # times 2^n it has another 6 upper bits for each n
BYTE_OF_BIT = np.zeros(64, np.int64)
BYTE_OF_BIT[[(0x03F79D71B4CB0A89 << n) % 2**64 >> 58 for n in range(64)]] = np.arange(64) // 8


def compile_now(signature):
    """Compiles at once, and keeps the code on the disk where there is a place for it."""

    def compile_it(function):
        try:
            return njit(signature, cache=True, nogil=True)(function)
        except Exception:  # no place for the code, a full disk, or damaged code from before: numba raises many kinds
            return njit(signature, nogil=True)(function)

    return compile_it


@njit(inline="always")
def _add_bytes(a, b):
    """The sum of the three low bytes of two words, each modulo 256."""
    return ((a & LOW_BITS) + (b & LOW_BITS)) ^ ((a ^ b) & HIGH_BITS)


@njit(inline="always")
def _pixel(raw, at):
    return np.uint32(raw[at]) | np.uint32(raw[at + 1]) << np.uint32(8) | np.uint32(raw[at + 2]) << np.uint32(16)


@njit(inline="always")
def _paeth(left, up, corner):
    """Paeth predictor of each byte (PNG specification, 9.4)."""
    result = 0
    for shift in (0, 8, 16):
        a, b, c = left >> shift & 255, up >> shift & 255, corner >> shift & 255
        to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        best = a if to_a <= to_b and to_a <= to_c else (b if to_b <= to_c else c)
        result |= best << shift
    return np.uint32(result)


@compile_now("i4(u1[::1], i4[:, ::1])")
def unfilter(raw, ids):
    """Undoes the filters of an RGB PNG's rows and packs each pixel into an id; returns a bad filter type, or -1.

    Ids are constant over regions, where a Paeth prediction is the pixel to the left or above without arithmetic.
    """
    height, width = ids.shape
    above = np.zeros(width, np.int32)
    start = 0
    for y in range(height):
        kind, row, at = raw[start], ids[y], start + 1
        start += 1 + 3 * width
        if kind == 0:
            for x in range(width):
                row[x] = _pixel(raw, at + 3 * x)
        elif kind == 1:
            left = np.uint32(0)
            for x in range(width):
                left = _add_bytes(left, _pixel(raw, at + 3 * x))
                row[x] = left
        elif kind == 2:
            for x in range(width):
                row[x] = _add_bytes(np.uint32(above[x]), _pixel(raw, at + 3 * x))
        elif kind == 3:
            red, green, blue = 0, 0, 0
            for x in range(width):
                up, i = above[x], at + 3 * x
                red = (raw[i] + ((red + (up & 255)) >> 1)) & 255
                green = (raw[i + 1] + ((green + (up >> 8 & 255)) >> 1)) & 255
                blue = (raw[i + 2] + ((blue + (up >> 16)) >> 1)) & 255
                row[x] = red | green << 8 | blue << 16
        elif kind == 4:
            left, corner = np.uint32(0), np.uint32(0)
            for x in range(width):
                up, difference = np.uint32(above[x]), _pixel(raw, at + 3 * x)
                if left == corner:
                    value = up
                elif up == corner:
                    value = left
                else:
                    value = _paeth(np.int32(left), np.int32(up), np.int32(corner))
                if difference != 0:
                    value = _add_bytes(value, difference)
                row[x] = value
                left, corner = value, up
        else:
            return kind
        above = row
    return -1


@njit
def _hash_table(known):
    """Slots of an open-addressing table, a quarter full: index into `known` + 1, 0 where empty; and its shift."""
    bits = 3
    while 1 << bits < 4 * len(known):
        bits += 1
    shift = 32 - bits
    slots = np.zeros(1 << bits, np.int32)
    for i in range(len(known)):
        slot = (known[i] * HASH & 0xFFFFFFFF) >> shift
        while slots[slot] != 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = i + 1
    return slots, shift


@njit(inline="always")
def _find(known, slots, shift, value):
    slot = (value * HASH & 0xFFFFFFFF) >> shift
    while slots[slot] != 0 and known[slots[slot] - 1] != value:
        slot = (slot + 1) & (len(slots) - 1)
    return slots[slot]


@compile_now("void(i4[::1], i4[::1], i4[::1])")
def rows_of_ids(ids, known, rows):
    """`id_maps.rows_of_ids` over flat maps; one lookup for each run of equal ids."""
    slots, shift = _hash_table(known)
    last, row = ids[0], _find(known, slots, shift, ids[0])
    for i in range(len(ids)):
        if ids[i] != last:
            last = ids[i]
            row = _find(known, slots, shift, last)
        rows[i] = row


@njit
def _settle(pair, pixels, first_table, second_table, counts):
    """Adds pixels of one pair of ids to the counts."""
    row = _find(first_table[0], first_table[1], first_table[2], np.int32(pair >> 32))
    column = _find(second_table[0], second_table[1], second_table[2], np.int32(pair & 0xFFFFFFFF))
    counts[row, column] += pixels


@compile_now("void(i4[::1], i4[::1], i4[::1], i4[::1], i8[:, ::1])")
def count_pairs(first, first_known, second, second_known, counts):
    """`id_maps.count_pairs` over flat maps.

    Blocks of pixels are compared with their left neighbours in vector code, one byte a pixel; the ends of runs are read
    from those bytes eight at a time, by the position of the lowest bit. A small cache, one pair of ids per slot, takes
    the lengths of the runs; a pair that loses its slot is looked up and settled.
    """
    first_table = (first_known, *_hash_table(first_known))
    second_table = (second_known, *_hash_table(second_known))
    pairs, pixels = np.zeros(CACHE, np.int64), np.zeros(CACHE, np.int64)
    flags = np.zeros(BLOCK, np.uint8)
    words, positions = flags.view(np.uint64), np.zeros(BLOCK // 8, np.int64)
    size, start = len(first), 0
    for base in range(1, size + 1, BLOCK):
        length = min(BLOCK, size - base)
        a, b = first[base : base + length], second[base : base + length]
        before_a, before_b = first[base - 1 : base - 1 + length], second[base - 1 : base - 1 + length]
        for j in range(length):
            flags[j] = ((a[j] ^ before_a[j]) | (b[j] ^ before_b[j])) != 0
        if length < BLOCK:
            flags[length:] = 0
            flags[length] = 1  # the end of the map ends a run
        marked = 0
        for q in range(BLOCK // 8):  # without a branch, which the processor would often guess wrong
            positions[marked] = q
            marked += words[q] != 0
        for k in range(marked):
            q = positions[k]
            word = words[q]
            while word != 0:
                lowest = word & (~word + np.uint64(1))
                word ^= lowest
                end = base + 8 * q + BYTE_OF_BIT[(lowest * DE_BRUIJN) >> np.uint64(58)]
                pair = np.int64(first[end - 1]) << 32 | np.int64(np.uint32(second[end - 1]))
                slot = (pair * GOLDEN) >> 54 & (CACHE - 1)
                if pairs[slot] != pair:
                    if pixels[slot] != 0:
                        _settle(pairs[slot], pixels[slot], first_table, second_table, counts)
                    pairs[slot], pixels[slot] = pair, 0
                pixels[slot] += end - start
                start = end
    for slot in range(CACHE):
        if pixels[slot] != 0:
            _settle(pairs[slot], pixels[slot], first_table, second_table, counts)


@compile_now("void(i4[:, ::1], i8[::1], i8[:, ::1])")
def segment_geometry(ids, areas, boxes):
    """Areas [n + 1] and boxes [n + 1, 4] of the ids 0..n, run by run; `boxes` comes as (W, H, 0, 0), without pixels."""
    height, width = ids.shape
    for y in range(height):
        row, start = ids[y], 0
        while start < width:
            value, end = row[start], start + 1
            while end < width and row[end] == value:
                end += 1
            areas[value] += end - start
            box = boxes[value]
            box[0], box[1] = min(box[0], start), min(box[1], y)
            box[2], box[3] = max(box[2], end), y + 1
            start = end


@compile_now("void(i4[:, ::1], i4[::1], u1[::1], i4[:, :], u1[:, :])")
def look_up(ids, first_table, second_table, first, second):
    """`id_maps.look_up`; one lookup for each run of equal ids."""
    height, width = ids.shape
    for y in range(height):
        row, a, b = ids[y], first[y], second[y]
        last, value, kind = row[0], first_table[row[0]], second_table[row[0]]
        for x in range(width):
            if row[x] != last:
                last = row[x]
                value, kind = first_table[last], second_table[last]
            a[x], b[x] = value, kind
