"""Boundary IoU of segments (Cheng et al. 2021, *Boundary IoU*, sec. 4 and the section on Boundary PQ).

The boundary of a segment is its own pixels within d of its contour, d = 2 % of the image's diagonal. Distance is that
of the paper's published protocol: d erosions by a 3x3 square, in which everything beyond the image is outside, so that
a segment's cut at the image's edge is boundary, too.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from upsnet.ops.id_maps import IntArray, count_pairs

DILATION_RATIO = 0.02
OUTSIDE = -1
"""Stands in an id map of boundaries for every pixel that lies on none."""


def boundary_distance(height: int, width: int, ratio: float = DILATION_RATIO) -> int:
    """d in pixels, at least 1."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_pixels(ids: IntArray, distance: int) -> npt.NDArray[np.bool_]:
    """The pixels that lie on the boundary of their own segment, for all segments at once.

    A pixel is on it if the square of side 2 d + 1 around it holds another id or reaches beyond the image. The nearest
    pixel of an edge of width 1, whoever's it is, is always one of the pixel's own segment, because the way to another
    segment's edge leads over the own one; so dilating the edges of all segments together gives the same set.

    Args:
        ids: [H, W].
        distance: d, 1 or more.

    Returns:
        bool [H, W].
    """
    edge = np.zeros(ids.shape, dtype=np.uint8)
    edge[[0, -1]] = edge[:, [0, -1]] = 1
    height, width = ids.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows = slice(0, height - down), slice(down, height)
        columns = slice(max(0, -right), width - max(0, right)), slice(max(0, right), width + min(0, right))
        differs = ids[rows[0], columns[0]] != ids[rows[1], columns[1]]
        edge[rows[0], columns[0]] |= differs
        edge[rows[1], columns[1]] |= differs
    side = 2 * distance - 1
    return cv2.dilate(edge, np.ones((side, side), dtype=np.uint8)).view(bool)


def boundary_iou(
    truth_map: IntArray, truth_ids: IntArray, predicted_map: IntArray, predicted_ids: IntArray
) -> npt.NDArray[np.float64]:
    """Boundary IoU of every pair of segments; as for masks, the union leaves out the prediction's pixels on void truth.

    Args:
        truth_map, predicted_map: [H, W] of one size, numpy; ids that the tables lack are void, 0 too.
        truth_ids: [n]; predicted_ids: [m], all different and not 0.

    Returns:
        float64 [n, m].
    """
    distance = boundary_distance(*truth_map.shape)
    edges = [np.where(boundary_pixels(ids, distance), ids, OUTSIDE) for ids in (truth_map, predicted_map)]
    inter = count_pairs(edges[0], truth_ids, edges[1], predicted_ids)
    on_void = count_pairs(truth_map, truth_ids, edges[1], predicted_ids)[0, 1:]
    areas = inter.sum(1)[1:, None], inter.sum(0)[1:]
    union = areas[0] + areas[1] - inter[1:, 1:] - on_void
    return inter[1:, 1:] / np.maximum(union, 1)
