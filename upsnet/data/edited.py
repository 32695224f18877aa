"""A data set under other classes: merged, renamed, left out, thing to stuff and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL, CategorySet
from upsnet.categories.edits import channel_table
from upsnet.class_edits import ClassEdits
from upsnet.data.reading import FileDataset, PanopticDataset
from upsnet.structures import Sample
from upsnet.text import shown


class EditedClasses:
    """Changes the classes of each sample as it is read.

    Instances of merged classes stay separate. Stuff has one segment per class and image. Pixels of a dropped class are
    void.

    Args:
        source: the data set.
        categories: the classes after the changes.
        edits: the changes.
        name: of the data set, for errors.

    Raises:
        ValueError: a class of the data set is neither dropped nor one of `categories`.
    """

    def __init__(self, source: PanopticDataset, categories: CategorySet, edits: ClassEdits, *, name: str) -> None:
        self.source, self.categories = source, categories
        self.table = channel_table(source.categories, categories, edits, source=name)
        names = [category.name for category in categories.categories]
        if edits.background is not None and edits.background not in names:
            raise ValueError(f"data.classes.background {shown(edits.background)} is no class of the model")
        self.background = None if edits.background is None else names.index(edits.background)

    def __len__(self) -> int:
        return len(self.source)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) without reading the image."""
        return self.source.size(index)

    def file_name(self, index: int) -> str:
        """The path of the image, if the data set has files."""
        return self.source.file_name(index) if isinstance(self.source, FileDataset) else f"image {index}"

    def classes(self, index: int) -> npt.NDArray[np.int64]:
        """Semantic channels of the segments of an image, without reading it. Background is not among them."""
        found = self.table[self.source.classes(index)]  # type: ignore[attr-defined]
        return np.asarray(found[found != IGNORE_LABEL])

    def __getitem__(self, index: int) -> Sample:
        return self._edit(self.source[index])

    def read(self, index: int, reduction: int = 1) -> Sample:
        """As `[index]`; a large JPEG may be read at a part of its size, see the reader."""
        sample = self.source.read(index, reduction) if isinstance(self.source, FileDataset) else self.source[index]
        return self._edit(sample)

    def _edit(self, sample: Sample) -> Sample:
        channels = self.table[sample.classes]
        rows = np.zeros(len(channels) + 1, dtype=np.int32)  # old id -> new id
        classes: list[int] = []
        is_crowd: list[bool] = []
        id_of_stuff: dict[int, int] = {}
        if self.background is not None:
            classes, is_crowd = [self.background], [False]
            rows[0] = id_of_stuff[self.background] = 1
        for row, (channel, crowd) in enumerate(zip(channels.tolist(), sample.is_crowd.tolist(), strict=True), start=1):
            if channel == IGNORE_LABEL:
                continue
            is_stuff = channel < self.categories.num_stuff
            if is_stuff and channel in id_of_stuff:
                rows[row] = id_of_stuff[channel]
                continue
            classes.append(channel)
            is_crowd.append(crowd and not is_stuff)
            rows[row] = len(classes)
            if is_stuff:
                id_of_stuff[channel] = len(classes)
        return replace(
            sample,
            segment_map=rows[sample.segment_map],
            classes=np.array(classes, dtype=np.int64),
            is_crowd=np.array(is_crowd, dtype=bool),
        )
