"""Tables of images and their segments in a few large arrays.

An object per image would cost memory twice: in itself, and once more in every forked worker, since to look at a Python
object is to write its reference count, upon which the system copies the page. Arrays are looked at without a trace.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from upsnet.io.annotation import Annotation, ImageFile

Row = TypeVar("Row")


class Ragged:
    """Rows of numbers of any lengths, end to end.

    Args:
        kind: type code of `array.array`.
    """

    def __init__(self, kind: str) -> None:
        self.values, self.ends = array(kind), array("q", [0])

    def append(self, row: npt.NDArray[Any] | Sequence[int]) -> None:
        """Adds a row."""
        self.values.frombytes(np.asarray(row, dtype=self.values.typecode).tobytes() if len(row) else b"")
        self.ends.append(len(self.values))

    def __getitem__(self, position: int) -> npt.NDArray[Any]:
        return np.asarray(self.values)[self.ends[position] : self.ends[position + 1]]


class Strings:
    """Texts, end to end."""

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Adds a text."""
        self.text += text.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, position: int) -> str:
        return self.text[self.ends[position] : self.ends[position + 1]].decode("utf-8", "surrogatepass")


class _Table(Mapping[int | str, Row]):
    """Rows by image id, and by position: in the order in which they came, without a look at the ids."""

    def __init__(self) -> None:
        self._positions: dict[int | str, int] = {}
        self._ids, self._names = Strings(), Strings()

    def _add(self, image_id: int | str, file_name: str) -> None:
        self._positions[image_id] = len(self._ids)
        self._ids.append(json.dumps(image_id))
        self._names.append(file_name)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[int | str]:
        return iter(self._positions)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._positions

    def __getitem__(self, image_id: int | str) -> Row:
        return self.at(self._positions[image_id])

    def at(self, position: int) -> Row:
        """The row at a position, 0 to len - 1."""
        raise NotImplementedError

    def id_at(self, position: int) -> int | str:
        """The image id at a position."""
        found: int | str = json.loads(self._ids[position])
        return found

    def position(self, image_id: int | str) -> int:
        """Where an image stands."""
        return self._positions[image_id]

    def file_name(self, image_id: int | str) -> str:
        """That of a row, without the rest."""
        return self._names[self._positions[image_id]]


class ImageFiles(_Table[ImageFile]):
    """Image id -> picture."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes = array("q")

    def append(self, image_id: int | str, image: ImageFile) -> None:
        """Adds a picture of an id that has none yet."""
        self._add(image_id, image.file_name)
        self._sizes.extend((image.height, image.width))

    def at(self, position: int) -> ImageFile:
        """The picture at a position, 0 to len - 1."""
        return ImageFile(self._names[position], *self.size_at(position))

    def size_at(self, position: int) -> tuple[int, int]:
        """(H, W) of it."""
        return self._sizes[2 * position], self._sizes[2 * position + 1]


class Annotations(_Table[Annotation]):
    """Image id -> its segments; the arrays of an `Annotation` are views into those of the table."""

    def __init__(self) -> None:
        super().__init__()
        self._known, self._classes, self._crowds = Ragged("i"), Ragged("q"), Ragged("b")
        self._areas, self._scores, self._unknown = Ragged("q"), Ragged("d"), Ragged("q")
        self._has_scores = bytearray()

    def append(self, image_id: int | str, annotation: Annotation) -> None:
        """Adds the annotation of an image that has none yet."""
        self._add(image_id, annotation.file_name)
        self._known.append(annotation.known)
        self._classes.append(annotation.classes)
        self._crowds.append(annotation.is_crowd)
        self._areas.append(annotation.areas)
        self._scores.append(() if annotation.scores is None else annotation.scores)
        self._unknown.append(annotation.unknown)
        self._has_scores.append(annotation.scores is not None)

    def at(self, position: int) -> Annotation:
        """The annotation at a position, 0 to len - 1."""
        return Annotation(
            self._names[position],
            self._known[position],
            self._classes[position],
            self._crowds[position].view(np.bool_),
            self._areas[position],
            self._scores[position] if self._has_scores[position] else None,
            tuple(self._unknown[position].tolist()),
        )
