"""The panoptic map and the mask removal on CUDA: no host round trip, no volume of logits.

A program fuses one tile of the result: it interpolates the semantic logits in registers, passes over the instances
whose regions meet the tile, keeps the running maximum, and writes the map. Removal packs every mask into bits (K H W
/ 8 bytes an image); one program per image and label goes through the label's instances in order. With
`TRITON_INTERPRET=1` all of it runs on the CPU.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import triton
import triton.language as tl
from torch import Tensor

from upsnet.categories import semantic_from_label
from upsnet.ops.panoptic_fusion.slots import ALWAYS, NEVER, Grid, Method, Slots

WORD = 32
"""Pixels of a mask per int32."""
FUSE_TILE = (16, 32)
BITS_TILE = (16, 2)
SWEEP_TILE = (32, 16)


def keep_instances(slots: Slots, size: tuple[int, int], overlap: Fraction) -> Tensor:
    """As `reference.keep_instances`: bool [B, K]."""
    (batch, count), (height, width) = slots.labels.shape, size
    words = triton.cdiv(width, WORD)
    bits = torch.zeros(batch, count, height, words, dtype=torch.int32, device=slots.labels.device)
    keep = torch.zeros(batch, count, dtype=torch.int8, device=bits.device)
    valid, regions = slots.valid.to(torch.int8).contiguous(), slots.region.contiguous()
    masks, frames = slots.mask_logits.float().contiguous(), slots.frame.float().contiguous()
    with torch.cuda.device_of(bits):
        tiles = (triton.cdiv(words, BITS_TILE[1]), triton.cdiv(height, BITS_TILE[0]), batch * count)
        _mask_bits[tiles](masks, frames, regions, valid, bits, height, words, masks.shape[-1], *BITS_TILE)
        _remove[(count, batch)](
            bits, slots.labels.contiguous(), regions, valid, keep, height, words, count,
            overlap.numerator, overlap.denominator, triton.next_power_of_2(count), *SWEEP_TILE,
        )  # fmt: skip
    return keep.bool()


def fuse(
    semantic_logits: Tensor, slots: Slots, grid: Grid, *, num_stuff: int, method: Method, with_semantic: bool
) -> tuple[Tensor, Tensor | None]:
    """As `reference.fuse`: int32 [B, H, W], and again or None."""
    (batch, count), (height, width) = slots.labels.shape, grid.size
    maps = torch.empty(batch, height, width, dtype=torch.int32, device=semantic_logits.device)
    semantic = torch.empty_like(maps) if with_semantic else None
    tiles = (triton.cdiv(width, FUSE_TILE[1]), triton.cdiv(height, FUSE_TILE[0]), batch)
    masks = slots.mask_logits.float().contiguous()
    with torch.cuda.device_of(maps):
        _fuse[tiles](
            semantic_logits, *semantic_logits.stride(), *semantic_logits.shape[2:],
            grid.rows.low, grid.rows.weight, grid.columns.low, grid.columns.weight,
            semantic_from_label(slots.labels, num_stuff).contiguous(), slots.valid.to(torch.int8).contiguous(),
            masks, slots.frame.float().contiguous(), slots.region.contiguous(),
            maps, maps if semantic is None else semantic,
            height, width, num_stuff, semantic_logits.shape[1], count, masks.shape[-1],
            method == "heuristic", with_semantic, NEVER, ALWAYS, *FUSE_TILE,
        )  # fmt: skip
    return maps, semantic


@triton.jit
def _axis_position(low, high, center, cells):
    """Cells on either side of pixel centres on a mask stretched from `low` to `high`, and the weight of the second."""
    position = tl.div_rn(center - low, tl.maximum(high - low, 1e-3)) * cells - 0.5
    position = tl.minimum(tl.maximum(position, 0.0), cells - 1.0)
    first = tl.floor(position)
    second = tl.minimum(first + 1, cells - 1.0)
    return first.to(tl.int32), second.to(tl.int32), position - first


@triton.jit
def bilinear(values, row_stride, column_stride, row_low, row_high, row_weight, low, high, weight):
    """Values [h, w] at rows [Y] and columns [X] between cells: float32 [Y, X]; rows first."""
    top, bottom = row_low[:, None] * row_stride, row_high[:, None] * row_stride
    left, right = low[None, :] * column_stride, high[None, :] * column_stride
    a, b = tl.load(values + top + left).to(tl.float32), tl.load(values + bottom + left).to(tl.float32)
    c, d = tl.load(values + top + right).to(tl.float32), tl.load(values + bottom + right).to(tl.float32)
    a += row_weight[:, None] * (b - a)
    c += row_weight[:, None] * (d - c)
    return a + weight[None, :] * (c - a)


@triton.jit
def _mask_logits(masks, frames, slot, x, y, cells):
    """Mask logits of a slot at columns x [X] and rows y [Y] of the result."""
    frame = frames + slot * 4
    x1, y1, x2, y2 = tl.load(frame), tl.load(frame + 1), tl.load(frame + 2), tl.load(frame + 3)
    row_low, row_high, row_weight = _axis_position(y1, y2, y.to(tl.float32) + 0.5, cells)
    low, high, weight = _axis_position(x1, x2, x.to(tl.float32) + 0.5, cells)
    return bilinear(masks + slot * cells * cells, cells, 1, row_low, row_high, row_weight, low, high, weight)


@triton.jit
def _inside(regions, slot, x, y):
    """bool [Y, X]: which pixels lie in the region of a slot."""
    region = regions + slot * 4
    columns = (x >= tl.load(region)) & (x < tl.load(region + 2))
    rows = (y >= tl.load(region + 1)) & (y < tl.load(region + 3))
    return rows[:, None] & columns[None, :]


@triton.jit
def _meets(regions, slot, x1, y1, x2, y2):
    """Whether the region of a slot and a tile share a pixel."""
    region = regions + slot * 4
    columns = (tl.load(region) < x2) & (tl.load(region + 2) > x1)
    return columns & (tl.load(region + 1) < y2) & (tl.load(region + 3) > y1)


@triton.jit
def best_channel(
    logits, first, last, channel_stride, row_stride, column_stride, row_low, row_high, row_weight, low, high, weight
):
    """Largest logit of channels first..last - 1, and which; the first wins a tie."""
    best = tl.full((row_low.shape[0], low.shape[0]), float("-inf"), tl.float32)
    winner = tl.zeros((row_low.shape[0], low.shape[0]), tl.int32)
    for channel in range(first, last):
        plane = logits + channel * channel_stride
        value = bilinear(plane, row_stride, column_stride, row_low, row_high, row_weight, low, high, weight)
        winner = tl.where(value > best, channel, winner)
        best = tl.maximum(best, value)
    return best, winner


@triton.jit
def _fuse(
    logits, image_stride, channel_stride, row_stride, column_stride, cell_rows, cell_columns,
    rows_low, rows_weight, columns_low, columns_weight,
    channels, valid, masks, frames, regions, maps, semantic,
    height, width, num_stuff, num_classes, count, cells,
    HEURISTIC: tl.constexpr, WITH_SEMANTIC: tl.constexpr,
    NEVER: tl.constexpr, ALWAYS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of the map of one image."""
    image = tl.program_id(2)
    x1, y1 = tl.program_id(0) * COLUMNS, tl.program_id(1) * ROWS
    x2, y2 = x1 + COLUMNS, y1 + ROWS
    x, y = x1 + tl.arange(0, COLUMNS), y1 + tl.arange(0, ROWS)
    # Pixels beyond the edge repeat the last one: loads need no mask, only stores do.
    xc, yc = tl.minimum(x, width - 1), tl.minimum(y, height - 1)
    row_low, low = tl.load(rows_low + yc).to(tl.int32), tl.load(columns_low + xc).to(tl.int32)
    row_high, high = tl.minimum(row_low + 1, cell_rows - 1), tl.minimum(low + 1, cell_columns - 1)
    row_weight, weight = tl.load(rows_weight + yc), tl.load(columns_weight + xc)
    logits += image.to(tl.int64) * image_stride
    best, winner = best_channel(
        logits, 0, num_stuff, channel_stride, row_stride, column_stride,
        row_low, row_high, row_weight, low, high, weight,
    )  # fmt: skip
    best_thing, thing = best_channel(
        logits, num_stuff, num_classes, channel_stride, row_stride, column_stride,
        row_low, row_high, row_weight, low, high, weight,
    )  # fmt: skip
    target = image.to(tl.int64) * height * width + y[:, None] * width + x[None, :]
    in_result = (y < height)[:, None] & (x < width)[None, :]
    if WITH_SEMANTIC:
        tl.store(semantic + target, tl.where(best_thing > best, thing, winner), mask=in_result)

    explained = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, count):
        slot = image * count + k
        if tl.load(valid + slot) != 0:  # noqa: SIM102 - `and` would load the region of every slot
            if _meets(regions, slot, x1, y1, x2, y2):
                inside = _inside(regions, slot, x, y)
                mask = _mask_logits(masks, frames, slot, x, y, cells)
                if HEURISTIC:
                    score = tl.where(inside & (mask > 0), ALWAYS, NEVER)
                else:
                    plane = logits + tl.load(channels + slot) * channel_stride
                    own = bilinear(plane, row_stride, column_stride, row_low, row_high, row_weight, low, high, weight)
                    own = tl.where(inside, own, 0.0)
                    score = tl.where(inside, own + mask, NEVER)
                    explained = tl.maximum(explained, own)
                winner = tl.where(score > best, num_stuff + k, winner)
                best = tl.maximum(best, score)
    winner = tl.where(best_thing - explained > best, num_stuff + count, winner)
    tl.store(maps + target, winner, mask=in_result)


@triton.jit
def _mask_bits(masks, frames, regions, valid, bits, height, words, cells, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Bits of the pixels whose mask logit is positive, 32 to a word along a row."""
    slot = tl.program_id(2)
    word1, y1 = tl.program_id(0) * WORDS, tl.program_id(1) * ROWS
    meets = _meets(regions, slot, word1 * 32, y1, (word1 + WORDS) * 32, y1 + ROWS)
    if meets & (tl.load(valid + slot) != 0):
        x, y = word1 * 32 + tl.arange(0, WORDS * 32), y1 + tl.arange(0, ROWS)
        on = _inside(regions, slot, x, y) & (_mask_logits(masks, frames, slot, x, y, cells) > 0)
        packed = tl.reshape(on.to(tl.int32), (ROWS, WORDS, 32)) << tl.arange(0, 32)[None, None, :]
        word = word1 + tl.arange(0, WORDS)
        target = (slot * height + y).to(tl.int64)[:, None] * words + word[None, :]
        tl.store(bits + target, tl.sum(packed, 2), mask=(y < height)[:, None] & (word < words)[None, :])


@triton.jit
def _popcount(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def _remove(
    bits, labels, regions, valid, keep, height, words, count, numerator, denominator,
    COUNT: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The first slot of a label decides for all of its label, in order; its bitmap becomes the union of the kept."""
    first, offset = tl.program_id(0), tl.program_id(1) * count
    label = tl.load(labels + offset + first)
    k = tl.arange(0, COUNT)
    earlier = tl.load(labels + offset + k, mask=k < first, other=-1) == label
    if tl.sum(earlier.to(tl.int32)) == 0:
        taken = bits + (offset + first).to(tl.int64) * height * words
        for number in range(first, count):
            slot = offset + number
            if (tl.load(labels + slot) == label) & (tl.load(valid + slot) != 0):
                mine = bits + slot.to(tl.int64) * height * words
                region = regions + slot * 4
                word1, word2 = tl.load(region) // 32, (tl.load(region + 2) + 31) // 32
                y1, y2 = tl.load(region + 1), tl.load(region + 3)
                area = tl.zeros((ROWS, WORDS), tl.int32)
                shared = tl.zeros((ROWS, WORDS), tl.int32)
                for y in range(y1, y2, ROWS):
                    for word in range(word1, word2, WORDS):
                        cell, inside = _cells(y, y2, word, word2, words, ROWS, WORDS)
                        on = tl.load(mine + cell, mask=inside, other=0)
                        area += _popcount(on)
                        if number != first:
                            shared += _popcount(on & tl.load(taken + cell, mask=inside, other=0))
                pixels = tl.sum(area).to(tl.int64)
                if (pixels > 0) & (tl.sum(shared).to(tl.int64) * denominator <= pixels * numerator):
                    tl.store(keep + slot, 1)
                    if number != first:
                        for y in range(y1, y2, ROWS):
                            for word in range(word1, word2, WORDS):
                                cell, inside = _cells(y, y2, word, word2, words, ROWS, WORDS)
                                on = tl.load(mine + cell, mask=inside, other=0)
                                union = on | tl.load(taken + cell, mask=inside, other=0)
                                tl.store(taken + cell, union, mask=inside)
                        tl.debug_barrier()


@triton.jit
def _cells(y, y2, word, word2, words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Offsets [ROWS, WORDS] in a bitmap from row `y` and `word` on, and which of them lie before `y2` and `word2`."""
    rows, columns = y + tl.arange(0, ROWS), word + tl.arange(0, WORDS)
    return rows[:, None] * words + columns[None, :], (rows < y2)[:, None] & (columns < word2)[None, :]
