"""Inputs that are nearly right: valid files and documents with a few changes."""

import copy
import io
import json
import struct

import numpy as np
from hypothesis import strategies as st
from PIL import Image

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [0, -1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e300, float("inf"), float("-inf"), float("nan"), 0.5, 1.0]
    ),
    st.text(max_size=8),
    st.sampled_from(
        ["", "1", "0", "true", "../a", "/etc/passwd", "a/../../b", "con", "\x00", "\ud800", "x" * 5000, "🙂"]
    ),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-3, 300), max_size=8),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just("@deep@"),
)


def dump(value) -> str:
    """JSON, in which the text `@deep@` becomes lists within lists."""
    return json.dumps(value).replace('"@deep@"', "[" * 20_000 + "]" * 20_000)


def places(value, at=()):
    """The path of every value within a document."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from places(inner, (*at, key))


@st.composite
def changed(draw, document, *, changes=3):
    """A copy of a document in which some values are replaced, removed or repeated."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, changes))):
        at = draw(st.sampled_from(list(places(document))[:400]))
        if not at:
            document = draw(ODD_VALUES)
            break
        holder = document
        for key in at[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
        if how == "remove":
            del holder[at[-1]]
        elif how == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[at[-1]]))
        else:
            holder[at[-1]] = draw(ODD_VALUES)
        if not isinstance(document, dict | list):
            break
    return document


@st.composite
def damaged(draw, data: bytes):
    """A file with some bytes changed, removed or put in, or cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["byte", "byte", "cut", "insert", "number"]))
        if how == "byte":
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, len(data)))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        else:
            data[at : at + 4] = struct.pack(">I", draw(st.sampled_from([0, 1, 2**16, 2**31 - 1, 2**32 - 1])))
    return bytes(data)


def exif(draw_tags) -> bytes:
    """An EXIF block of the given (tag, type, count, value) rows."""
    rows = b"".join(struct.pack("<HHI4s", *row) for row in draw_tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(draw_tags)) + rows + struct.pack("<I", 0)


TAGS = st.lists(
    st.tuples(
        st.sampled_from([0x100, 0x103, 0x112, 0x112, 0x11A, 0x131, 0x8769, 0x8825, 0x9286, 0xA005, 0x1234]),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 4, 100, 2**31, 2**32 - 1]),
        st.binary(min_size=4, max_size=4) | st.integers(1, 8).map(lambda n: struct.pack("<I", n)),
    ),
    max_size=5,
)


def image_bytes(kind: str, mode: str = "RGB", size=(12, 7), **options) -> bytes:
    """A small image file."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(memory, kind, **options)
    return memory.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 7\n(x) (w) file closefile showpage\n"
