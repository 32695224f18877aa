"""Writes data sets as annotation programs export them, and reads what a source makes of them."""

import base64
import io
import json
import zlib
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from upsnet.categories import IGNORE_LABEL
from upsnet.convert.id_pngs import BORDER_COLOR
from upsnet.convert.orientation import inspect, must_turn
from upsnet.convert.run import convert
from upsnet.data.shapes import CATEGORIES, Shapes


def shapes_without_crowds():
    """Some generated samples with stuff, void and things that occlude each other; no crowds."""
    data = Shapes(12, (64, 96))
    found = [sample for sample in (data[i] for i in range(12)) if not sample.is_crowd.any()][:6]
    assert any((sample.segment_map == 0).any() for sample in found)
    return found


STUFF = tuple((None, c.name) for c in CATEGORIES.categories if not c.is_thing)
"""What `ClassOptions.stuff` needs for the classes of these samples."""


def segments(sample, categories):
    """The category and the mask of each segment, in order."""
    for row, channel in enumerate(sample.classes.tolist()):
        yield categories[channel], sample.segment_map == row + 1


def things(sample, categories):
    return [(category, mask) for category, mask in segments(sample, categories) if category.is_thing]


def read(source, number=0):
    """The layers of one image, after a look at what every source must give."""
    item = source.items[number]
    picture = inspect(item.path)
    layers = source.read(item, picture)
    must_turn(picture, layers.size, applies_exif=source.applies_exif, annotation=item.name)
    return layers


def masks(source, number=0):
    """The class and the mask of each region of an image, in order."""
    layers = read(source, number)
    found = []
    for region in layers.regions:
        mask = np.zeros(layers.size, bool)
        region.window(mask)[region.mask] = True
        assert mask.sum() == region.area
        name = "void" if region.channel == IGNORE_LABEL else source.classes.categories[region.channel].name
        found.append((name, mask))
    return found


def converted(source, folder):
    """The data set that a source becomes."""
    assert not source.mistakes.lines
    convert(source, folder, ["train"] * len(source.items), workers=1, progress=False)
    return forms.opened(folder)


def require_things(ours, theirs, our_categories, their_categories):
    """Two samples have the same things: their classes by name, and their pixels."""
    found = [
        sorted((c.name, np.packbits(mask).tobytes()) for c, mask in things(sample, categories))
        for sample, categories in ((ours, our_categories), (theirs, their_categories))
    ]
    assert found[0] == found[1]


def error_of(make, *parts):
    """The one line of the error that a call raises; it has these parts."""
    with pytest.raises((OSError, ValueError)) as raised:
        make()
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 2000
    assert all(part in line for part in parts), line
    return line


def bridged(polygons):
    """One polygon of several, joined by bridges without width, as YOLO's programs join detached parts."""
    first = polygons[0][:2]
    joined = [*polygons[0], *first]
    for polygon in polygons[1:]:
        joined += [*polygon, *polygon[:2], *first]
    return joined if len(polygons) > 1 else polygons[0]


def write_yolo(samples, categories, folder, split="train"):
    """`folder/data.yaml` with Roboflow's paths, `folder/SPLIT/images` and `folder/SPLIT/labels`; things only."""
    names = [c.name for c in categories.categories if c.is_thing]
    for sample in samples:
        image = forms.save(folder / split / "images" / sample.file_name, sample.image)
        height, width = sample.size
        lines = []
        for category, mask in things(sample, categories):
            values = np.array(bridged(forms.outlines(mask))).reshape(-1, 2) / (width, height)
            lines.append(" ".join([str(names.index(category.name)), *(f"{v:.7f}" for v in values.ravel())]))
        labels = folder / split / "labels" / image.with_suffix(".txt").name
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(lines) + "\n" if lines else "")
    key = "val" if split == "valid" else split
    text = f"{key}: ../{split}/images\n\nnc: {len(names)}\nnames: {json.dumps(names)}\n"
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def element(tag, attributes, *children):
    text = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{tag}{text}>{''.join(children)}</{tag}>"


def cvat_document(images, labels=()):
    """CVAT's XML: images are (attributes, shapes), and a shape is (tag, attributes)."""
    rows = "".join(element("label", {}, element("name", {}, name), element("type", {}, "any")) for name in labels)
    meta = element("meta", {}, element("task", {}, element("labels", {}, rows)))
    body = [element("image", values, *(element(tag, v) for tag, v in shapes)) for values, shapes in images]
    return '<?xml version="1.0" encoding="utf-8"?>\n' + element("annotations", {}, meta, *body)


def cvat_mask(mask):
    """The attributes of a `mask` element: run lengths of the mask's own box, row by row."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], cut.ravel()])))
    runs = np.diff(np.concatenate([[0], edges, [cut.size]])).tolist()
    values = {"left": columns[0], "top": rows[0], "width": cut.shape[1], "height": cut.shape[0]}
    return {"rle": ", ".join(map(str, runs)), **values}


def write_cvat(samples, categories, folder):
    """`folder/annotations.xml` and `folder/images`: masks and polygons in turn, parts of one object in a group."""
    images = []
    for number, sample in enumerate(samples):
        forms.save(folder / "images" / sample.file_name, sample.image)
        shapes = []
        for row, (category, mask) in enumerate(segments(sample, categories)):
            polygons = forms.outlines(mask) if category.is_thing and row % 2 else []
            group = row + 1 if len(polygons) > 1 else 0
            for polygon in polygons:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(polygon, (-1, 2)))
                shapes.append(("polygon", {"label": category.name, "points": points, "z_order": 0, "group_id": group}))
            if not polygons:
                shapes.append(("mask", {"label": category.name, "z_order": 0, **cvat_mask(mask)}))
        size = {"width": sample.size[1], "height": sample.size[0]}
        images.append(({"id": number, "name": sample.file_name, **size}, shapes))
    names = [c.name for c in categories.categories]
    (folder / "annotations.xml").write_text(cvat_document(images, names), encoding="utf-8")
    return folder / "annotations.xml"


def brush(values, sizes=(3, 4, 8, 16)):
    """Label Studio's code of bytes, from its description: blocks of equal values, and blocks of different ones."""
    values = np.asarray(values, dtype=np.uint8).ravel()
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in sizes)]
    starts = np.flatnonzero(np.diff(np.concatenate([[-1], values.astype(int)])))
    ends = np.append(starts[1:], len(values))
    pending = []

    def block(is_run, of):
        while of:
            part, of = of[: 2 ** sizes[-1]], of[2 ** sizes[-1] :]
            place = next(number for number, size in enumerate(sizes) if len(part) <= 2**size)
            bits.append(f"{is_run:b}{place:02b}{len(part) - 1:0{sizes[place]}b}")
            bits.extend(f"{value:08b}" for value in (part[:1] if is_run else part))

    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start > 2:
            block(0, pending)
            pending = []
            block(1, values[start:end].tolist())
        else:
            pending += values[start:end].tolist()
    block(0, pending)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def brush_result(mask, label, color=(30, 140, 60, 178)):
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = color
    return label_studio_result(
        "brushlabels", mask.shape, {"format": "rle", "rle": brush(pixels), "brushlabels": [label]}
    )


def label_studio_result(kind, size, value, **more):
    row = {"id": "Xy12", "type": kind, "from_name": "label", "to_name": "image", "value": value, "image_rotation": 0}
    return {**row, "original_width": size[1], "original_height": size[0], **more}


def label_studio_task(number, image, results, **annotation):
    row = {"id": 100 + number, "result": results, "was_cancelled": False, "ground_truth": False, **annotation}
    return {"id": number, "annotations": [row], "predictions": [], "data": {"image": image}}


def write_label_studio(samples, categories, folder, color=(30, 140, 60, 178)):
    """`folder/export.json` and `folder/images`: polygons where one is enough, else brushes."""
    tasks = []
    for number, sample in enumerate(samples, start=1):
        forms.save(folder / "images" / sample.file_name, sample.image)
        results, (height, width) = [], sample.size
        for category, mask in segments(sample, categories):
            polygons = forms.outlines(mask)
            if category.is_thing and len(polygons) == 1:
                points = (np.reshape(polygons[0], (-1, 2)) / (width, height) * 100).tolist()
                value = {"points": points, "closed": True, "polygonlabels": [category.name]}
                results.append(label_studio_result("polygonlabels", sample.size, value))
            else:
                results.append(brush_result(mask, category.name, color))
        tasks.append(label_studio_task(number, f"/data/upload/1/a1b2c3d4-{sample.file_name}", results))
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def sly_bitmap(mask, label, **more):
    """An object of Supervisely, in the way of its own programs: a PNG with a palette, whose index 0 is transparent."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    image = Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=0, optimize=0)
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    bitmap = {"data": data, "origin": [int(columns[0]), int(rows[0])]}
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": bitmap, **more}


def sly_polygon(exterior, label, *holes, **more):
    points = {"exterior": exterior, "interior": list(holes)}
    return {"classTitle": label, "geometryType": "polygon", "points": points, **more}


def write_sly(folder, objects, size=(20, 30), name="a.png", classes=("cat", "dog")):
    """A project with one image in the data set `ds0`."""
    forms.save(folder / "ds0" / "img" / name, np.zeros((*size, 3), np.uint8))
    (folder / "meta.json").write_text(json.dumps({"classes": [{"title": c, "shape": "any"} for c in classes]}))
    path = folder / "ds0" / "ann" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"size": {"height": size[0], "width": size[1]}, "tags": [], "objects": objects}))
    return path


def write_supervisely(samples, categories, folder):
    """A project: bitmaps, and polygons through the outermost pixels where one is enough."""
    names = [c.name for c in categories.categories]
    for sample in samples:
        objects = []
        for category, mask in segments(sample, categories):
            found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            if category.is_thing and len(found) == 1 and len(found[0]) > 2:
                objects.append(sly_polygon(found[0].reshape(-1, 2).tolist(), category.name))
            else:
                objects.append(sly_bitmap(mask, category.name))
        write_sly(folder, objects, sample.size, sample.file_name, names)
        forms.save(folder / "ds0" / "img" / sample.file_name, sample.image)
    return folder


def write_voc(samples, categories, folder):
    """VOC's folders with a labelmap.txt, as CVAT writes them; void pixels have the colour of the border."""
    colors = np.array([[0, 0, 0], *(c.color for c in categories.categories)], np.uint8)
    border = [BORDER_COLOR & 255, BORDER_COLOR >> 8 & 255, BORDER_COLOR >> 16]
    for sample in samples:
        forms.save(folder / "JPEGImages" / sample.file_name, sample.image)
        is_thing = np.array([categories[channel].is_thing for channel in sample.classes], bool)
        ids = np.concatenate([[0], np.where(is_thing, np.arange(len(is_thing)) + 1, 0)])[sample.segment_map]
        classes = colors[np.concatenate([[0], sample.classes + 1])[sample.segment_map]]
        classes[sample.segment_map == 0] = border
        name = f"{sample.file_name[:-4]}.png"
        forms.save(folder / "SegmentationObject" / name, ids.astype(np.uint8))
        forms.save(folder / "SegmentationClass" / name, classes)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{c.name}:{','.join(map(str, c.color))}::" for c in categories.categories]
    (folder / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return folder
