"""The PNG decoder against Pillow, filter by filter, and what it says about files that are not right."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from upsnet.io import panoptic_png
from upsnet.io.panoptic_png import id_to_rgb, read_panoptic_png, rgb_to_id, write_panoptic_png


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(raw, width, height, kind=(8, 2, 0, 0, 0), pieces=1):
    stream = zlib.compress(raw)
    step = -(-len(stream) // pieces)
    parts = [chunk(b"IDAT", stream[i : i + step]) for i in range(0, len(stream), step)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *kind))
    return panoptic_png.SIGNATURE + header + chunk(b"tEXt", b"a") + b"".join(parts) + chunk(b"IEND", b"")


def by_pillow(data):
    return rgb_to_id(np.asarray(Image.open(io.BytesIO(data))))


def no_pillow(*_):
    raise AssertionError("a plain file went to Pillow")


@pytest.mark.parametrize("kind", ["noise", "regions"])
def test_every_row_filter_is_undone(tmp_path, kind, monkeypatch):
    rng = np.random.default_rng(0)
    width, height = 23, 60
    values = rng.integers(0, 256, (height, width, 3)) * (kind == "noise" or rng.random((height, width, 1)) < 0.1)
    filters = rng.integers(0, 5, (height, 1))
    raw = np.concatenate([filters, values.reshape(height, -1)], axis=1).astype(np.uint8).tobytes()
    data = png(raw, width, height, pieces=3)
    (tmp_path / "a.png").write_bytes(data)
    expected = by_pillow(data)
    monkeypatch.setattr(panoptic_png, "_read_by_pillow", no_pillow)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), expected)


def test_without_the_fast_decoder_pillow_reads_the_same(tmp_path, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 2**24, (9, 11)).astype(np.int32)
    write_panoptic_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)
    for missing in ("deflate", "compiled"):
        with monkeypatch.context() as patch:
            patch.setattr(panoptic_png, missing, None if missing == "deflate" else lambda: None)
            np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)


def test_alpha_and_interlacing_are_read(tmp_path):
    ids = np.arange(12, dtype=np.int32).reshape(3, 4) * 70000
    rgba = np.concatenate([id_to_rgb(ids), np.full((3, 4, 1), 255, dtype=np.uint8)], axis=2)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "alpha.png"), ids)
    row = np.concatenate([[0], id_to_rgb(ids)[0, 0]]).astype(np.uint8).tobytes()
    (tmp_path / "interlaced.png").write_bytes(png(row, 1, 1, (8, 2, 0, 0, 1)))
    assert read_panoptic_png(tmp_path / "interlaced.png").tolist() == [[0]]


def damaged(data, how):
    if how == "flipped":
        return data[:70] + bytes([data[70] ^ 255]) + data[71:]
    return data[: len(data) * how // 100]


@pytest.mark.parametrize("how", [3, 50, 90, 99, "flipped"])
def test_damaged_files_are_named(tmp_path, how):
    ids = np.random.default_rng(0).integers(0, 2**24, (20, 20)).astype(np.int32)
    write_panoptic_png(tmp_path / "a.png", ids)
    (tmp_path / "a.png").write_bytes(damaged((tmp_path / "a.png").read_bytes(), how))
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as a panoptic PNG"):
        read_panoptic_png(tmp_path / "a.png")


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "a.png"
    for raw, kind, message in (
        (bytes([0, 1, 2, 3]) * 2, (16, 2, 0, 0, 0), "16 bits per channel"),
        (bytes([7, 1, 2, 3]), (8, 2, 0, 0, 0), "row filter 7"),
        (bytes([0, 1]), (8, 2, 0, 0, 0), "2 bytes of pixels, expected 4"),
        (bytes([0, 1, 2, 3, 4, 5]), (8, 2, 0, 0, 0), "damaged"),
        (bytes([0, 1]), (8, 0, 0, 0, 0), "pixel mode L, expected RGB"),
    ):
        path.write_bytes(png(raw, 1, 1, kind))
        with pytest.raises(ValueError, match=rf"a\.png.*{message}"):
            read_panoptic_png(path)
    Image.new("P", (4, 4)).save(path)
    with pytest.raises(ValueError, match="pixel mode P"):
        read_panoptic_png(path)
