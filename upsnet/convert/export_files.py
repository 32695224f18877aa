"""Where the images and the annotation files of an export are, and what all exports have: splits, kinds of shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from upsnet.convert.source import ImageFinder, Item
from upsnet.io.files import list_files, name_fault, read_bytes
from upsnet.io.images import IMAGE_SUFFIXES
from upsnet.text import shown

SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split of a data set -> names that annotation programs give it."""
KIND = re.compile(r"\w[\w-]{0,39}")


def split_of(name: str) -> str | None:
    """The split that a program's name for it means, in any case; None if it means none."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def notes_of_shared_images(splits: Mapping[str, Collection[Hashable]], source: str) -> list[str]:
    """A note for each two splits that share images.

    Args:
        splits: split -> its images. An image counts for the first of its splits.
        source: names the splits' file or folder.
    """
    notes = []
    for (first, images), (second, others) in combinations(splits.items(), 2):
        shared = len(set(images) & set(others))
        if shared and shared == len(set(others)):
            notes.append(
                f"{source}: all {shared} images of {second} are in {first} too and count for {first}: there is no "
                f"separate {second} split; --split-val makes a new one"
            )
        elif shared:
            notes.append(f"{source}: {shared} images of {second} are in {first} too and count for {first}")
    return notes


def kind_of(value: Any) -> str:
    """The kind of a shape as an annotation gives it; `unknown` for anything but one short word."""
    return value if isinstance(value, str) and KIND.fullmatch(value) else "unknown"


def require_kind(kind: str, known: Iterable[str]) -> None:
    """Checks that a shape is of a kind that can be drawn.

    Raises:
        ValueError: it is not.
    """
    if kind not in known:
        raise ValueError(f"shape type {shown(kind)}, expected {', '.join(sorted(known))}; draw it as one of these")


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError, ValueError: it is missing or not in UTF-8; the message names the file.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from None


def annotation_files(annotations: Path | Sequence[Path], suffix: str, what: str) -> list[Path]:
    """The annotation files of an export.

    Args:
        annotations: files, or folders with such files.
        suffix: of the files, lower case.
        what: names the kind of files in errors.

    Raises:
        FileNotFoundError: a file does not exist, or a folder has none.
    """
    files: list[Path] = []
    for path in as_list(annotations):
        found = list_files(path, {suffix}) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"{path}: no {suffix} file, expected {what}")
        if not found[0].exists():
            raise FileNotFoundError(f"{path}: no such file, expected {what}")
        files += found
    return files


def as_list(annotations: Path | Sequence[Path]) -> list[Path]:
    """One path or several, as a list."""
    return [annotations] if isinstance(annotations, Path) else list(annotations)


def image_folders(images: Sequence[Path], files: Iterable[Path]) -> list[Path]:
    """The folders to search for images: the given ones; by default `images` beside the files, or their own folders."""
    if images:
        return list(images)
    beside = dict.fromkeys(path.parent for path in files)
    return [folder / "images" if (folder / "images").is_dir() else folder for folder in beside]


def find_image(finder: ImageFinder, names: Sequence[str], named_by: str) -> tuple[Path, str] | None:
    """Finds an image that may have one of several names, see `ImageFinder.find`.

    Args:
        finder: searches.
        names: the first one that exists counts. One without a suffix of an image stands for all suffixes.
        named_by: what names the image, for errors.

    Returns:
        Its path and its name in the data set; None if there is no such image, which `finder` notes once.

    Raises:
        ValueError: a name is no name of a file.
    """
    before = len(finder.missing)
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        fault = name_fault(path.name) or ("has several lines" if name.splitlines() != [name] else None)
        if fault is not None:
            raise ValueError(f"image name {shown(name)} {fault}, expected the name of a file")
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found = finder.find(name, named_by)
        else:
            is_inside = name_fault(str(path)) is None
            found = finder.find_stem(str(path) if is_inside else path.name, named_by)
        if found is not None:
            del finder.missing[before:]
            return found
    del finder.missing[before + 1 :]
    return None


def images_left_out(folders: Iterable[Path], items: Iterable[Item]) -> list[Path]:
    """The images of some folders, and of the folders where the items' images are, that no item has."""
    known, places = set(), dict.fromkeys(folder.absolute() for folder in folders)
    for item in items:
        path = item.path.absolute()
        known.add(path)
        places.setdefault(path.parent)
    return [
        path for folder in places for path in list_files(folder, IMAGE_SUFFIXES) if path not in known and path.is_file()
    ]
