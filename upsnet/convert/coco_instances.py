"""COCO instance annotations (polygons, run lengths, crowds), with or without maps of stuff."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import read_class_map
from upsnet.convert.layers import Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import Item, declared_size, require_folder
from upsnet.io.annotation import crowd_flag
from upsnet.io.coco_masks import mask_of
from upsnet.io.files import name_fault, read_json
from upsnet.io.images import require_own_stems
from upsnet.text import shown


class CocoInstances:
    """A COCO instance JSON.

    Its categories are things, but for those that the options call stuff. A category keeps its id unless a classes file
    gives another; the JSON's and the file's are matched by name. A picture of the JSON without an annotation shows no
    object.

    Args:
        annotation_file: the JSON.
        images: folder of the pictures.
        options: what the user says about classes.
        semantic: folder of maps of classes, STEM.png for the picture STEM.*. Their things lie beneath everything: they
            are void where no instance covers them.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self, annotation_file: Path, images: Path, options: ClassOptions, semantic: Path | None = None
    ) -> None:
        self.path, self.semantic = annotation_file, semantic
        self.left_out: list[Path] = []
        document = read_json(annotation_file)
        for key in ("images", "annotations", "categories"):
            rows = document.get(key) if isinstance(document, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"{annotation_file}: no list {key!r}, expected a COCO instance JSON")
        require_folder(images, "pictures")
        if semantic is not None:
            require_folder(semantic, "maps of classes")
        used = {row["category_id"] for row in document["annotations"] if _is_key(row.get("category_id"))}
        names = self._category_names(document["categories"], used)
        self.classes = options.resolve(names.items(), str(annotation_file))
        rows_of_image = self._grouped(document["images"], document["annotations"], names)
        self.items = [
            self._item(images, row, [(a, names[a["category_id"]]) for a in rows_of_image[row["id"]]])
            for row in document["images"]
        ]
        require_own_stems((f"{annotation_file}: image {item.name!r}", item.name) for item in self.items)

    def _category_names(self, rows: list[dict[str, Any]], used: set[int | str]) -> dict[int | None, str]:
        """Id -> name. Some programs list the group of the classes first, by the name of one: nobody uses that row."""
        names: dict[int | None, str] = {}
        of_used = [row.get("name") for row in rows if _is_key(row.get("id")) and row["id"] in used]
        for row in rows:
            if not isinstance(row.get("id"), int) or not isinstance(row.get("name"), str):
                raise ValueError(f"{self.path}: category {row.get('name', row.get('id'))!r} lacks an id or a name")
            if row["id"] not in used and row["name"] in of_used:
                continue
            if row["id"] in names or row["name"] in names.values():
                raise ValueError(
                    f"{self.path}: category {row['name']!r} or its id {row['id']} stands twice, expected each once; "
                    "rename one, or take it out"
                )
            names[row["id"]] = row["name"]
        return names

    def _grouped(
        self, images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: dict[int | None, str]
    ) -> dict[Any, list[dict[str, Any]]]:
        known: set[Any] = set()
        for row in images:
            if not isinstance(row.get("file_name"), str) or not _is_key(row.get("id")) or row["id"] in known:
                raise ValueError(
                    f"{self.path}: image {row.get('file_name')!r} with id {row.get('id')!r}, expected a file_name and "
                    "an id of its own"
                )
            known.add(row["id"])
        grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in annotations:
            if not _is_key(row.get("image_id")) or row["image_id"] not in known:
                raise ValueError(
                    f"{self.path}: annotation {row.get('id')} has image_id {row.get('image_id')!r}, "
                    "expected one of 'images'"
                )
            if not _is_key(row.get("category_id")) or row["category_id"] not in names:
                raise ValueError(
                    f"{self.path}: annotation {row.get('id')} has category_id {row.get('category_id')!r}, "
                    f"expected one of 'categories' ({', '.join(map(str, names))})"
                )
            grouped[row["image_id"]].append(row)
        return grouped

    def _item(self, folder: Path, row: dict[str, Any], annotations: list[tuple[dict[str, Any], str]]) -> Item:
        """Finds the picture: below the folder as the JSON names it, or by the last part of that name."""
        name = PurePosixPath(row["file_name"].replace("\\", "/"))
        if name_fault(str(name)) is not None or not (folder / name).is_file():
            if name_fault(name.name) is not None or not (folder / name.name).is_file():
                raise FileNotFoundError(
                    f"{folder / name.name}: no such image, which {self.path} names {shown(row['file_name'])}; "
                    "give its folder with --images, or take it out of the JSON"
                )
            name = PurePosixPath(name.name)
        return Item(folder / name, str(name), row["id"], (row.get("height"), row.get("width"), annotations))

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the annotations of one picture."""
        height, width, annotations = item.annotation
        size = declared_size(height, width, picture.stored, f"{self.path}: image {item.name}")
        if size not in (picture.stored, picture.upright):  # before anything is drawn on a wrong size
            return Layers(size, [])
        regions = [self._region(item, row, name, size) for row, name in annotations]
        if self.semantic is None:
            return Layers(size, regions)
        path = self.semantic / PurePosixPath(item.name).with_suffix(".png")
        semantic = read_class_map(path, self.classes)
        if semantic.shape != size:
            raise ValueError(
                f"{path}: {semantic.shape[1]} x {semantic.shape[0]}, expected {size[1]} x {size[0]} as {item.path}"
            )
        semantic[semantic >= self.classes.categories.num_stuff] = IGNORE_LABEL
        return Layers(size, regions, semantic)

    def _region(self, item: Item, row: dict[str, Any], name: str, size: tuple[int, int]) -> Region:
        where = f"{self.path}: annotation {row.get('id')} of {item.name}"
        segmentation = row.get("segmentation")
        if not segmentation or not isinstance(segmentation, list | dict):
            raise ValueError(
                f"{where}: no segmentation, expected polygons or run lengths; export masks, not only boxes"
            )
        try:
            mask, is_crowd = mask_of(segmentation, size), crowd_flag(row.get("iscrowd"))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return Region.of(self.classes.channel(name, where), mask, is_crowd=is_crowd)


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)
