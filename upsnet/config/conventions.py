"""Numeric conventions of other programs, for models that start from their weights (`model.conventions`).

| convention | ours | `upsnet_official` | `torchvision_maskrcnn` | `detectron2` |
| --- | --- | --- | --- | --- |
| anchor centre within its cell | middle | middle | corner | corner |
| anchor shapes | exact | rounded at stride 4..64, then enlarged | rounded | exact |
| RoIAlign | half-pixel shift | last pixel is the end | no shift | half-pixel shift |
| stride of a bottleneck | 3x3 | first 1x1 | 3x3 | first 1x1 |
| epsilon of the frozen norms | 1e-5 | 1e-5 | 0 | 1e-5 |
| mean, deviation | ImageNet's | Caffe's mean, 1 | ImageNet's | ImageNet's mean, 1 |

Sources: the behaviour of each program, from its documentation and its outputs. `detectron2` is its R-CNNs with the
backbone `R-50.pkl` or `R-101.pkl`.
"""

from __future__ import annotations

from typing import Any, Literal

Conventions = Literal["upsnet_official", "torchvision_maskrcnn", "detectron2"]


PRESETS: dict[str, dict[str, Any]] = {
    "upsnet_official": {
        "backbone": {"stride_in_1x1": True},
        "roi_align": "inclusive",
        "min_box": 1.0,
        "rpn": {
            "anchor_shapes": (
                ((48, 24), (32, 32), (24, 48)),
                ((88, 48), (64, 64), (48, 96)),
                ((184, 96), (128, 128), (88, 176)),
                ((360, 176), (256, 256), (184, 368)),
                ((728, 368), (512, 512), (360, 720)),
            )
        },
        "pixel_mean": (122.7717, 115.9465, 102.9801),
        "pixel_std": (1.0, 1.0, 1.0),
    },
    "torchvision_maskrcnn": {
        "backbone": {"norm_eps": 0},
        "roi_align": "legacy",
        "rpn": {
            "anchor_offset": 0.0,
            "anchor_shapes": (
                ((46, 22), (32, 32), (22, 46)),
                ((90, 46), (64, 64), (46, 90)),
                ((182, 90), (128, 128), (90, 182)),
                ((362, 182), (256, 256), (182, 362)),
                ((724, 362), (512, 512), (362, 724)),
            ),
        },
    },
    "detectron2": {"backbone": {"stride_in_1x1": True}, "rpn": {"anchor_offset": 0.0}, "pixel_std": (1.0, 1.0, 1.0)},
}
"""Values of the `model` section by the name of the convention."""


def with_conventions(values: Any) -> Any:
    """The `model` section with the values of its `conventions` filled in; what the section gives itself stays.

    Args:
        values: the section, as YAML gives it.
    """
    preset = PRESETS.get(str(values.get("conventions"))) if isinstance(values, dict) else None
    return values if preset is None else _filled(values, preset)


def _filled(values: Any, defaults: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(defaults, dict):
        return values
    filled = {key: _filled(values[key], default) if key in values else default for key, default in defaults.items()}
    return {**values, **filled}
