import errno
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests.conftest import ROOT
from upsnet.io import parallel
from upsnet.io.files import (
    atomic_path,
    name_fault,
    png_names,
    read_json,
    remove_leftovers,
    require_inside,
    retry,
    temporary_folder,
    write_json,
)
from upsnet.io.images import list_images, read_image, save_upright
from upsnet.io.parallel import cgroup_quota

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", ".png"), ("P", ".png"), ("RGBA", ".png"), ("1", ".png"), ("CMYK", ".tif"), ("LA", ".png")],
)
def test_every_pixel_mode_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(RGB).convert(mode).save(path)
    image = read_image(path, apply_exif=False)
    assert image.dtype == np.uint8
    assert image.shape == (20, 30, 3)
    expected = np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB"))
    np.testing.assert_array_equal(image, expected)


def test_a_cmyk_jpeg_is_read(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
    assert read_image(path, apply_exif=False)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_sixteen_bits_are_cut_to_the_upper_eight(tmp_path):
    path = tmp_path / "deep.png"
    grey = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path, apply_exif=False)[..., 0], (grey >> 8).astype(np.uint8))


def test_wide_integers_of_eight_bits_stay_as_they_are(tmp_path):
    path = tmp_path / "wide.tif"
    Image.fromarray(RGB[..., 0].astype(np.int32)).save(path)
    np.testing.assert_array_equal(read_image(path, apply_exif=False)[..., 1], RGB[..., 0])


def test_exif_orientation_is_applied_only_when_asked_for(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: show the picture turned by 90 degrees
    Image.fromarray(RGB).save(path, exif=exif, quality=100, subsampling=0)
    stored = read_image(path, apply_exif=False)
    turned = read_image(path, apply_exif=True)
    assert stored.shape == (20, 30, 3)
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


def test_truncated_missing_and_foreign_files_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(RGB).resize((300, 200)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name, apply_exif=True)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_image(tmp_path / "none.jpg", apply_exif=True)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "sub" / "value.json"
    write_json(path, {"a": 1})

    def fail_halfway():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_halfway()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize("size", [(64, 96), (61, 95), (9, 11)])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_is_read_at_a_part_of_its_size_each_pixel_in_its_place(tmp_path, size, reduction):
    """A slope gives each pixel its position as its value: means over blocks of it are known."""
    y, x = np.indices(size)
    image = np.stack([2 * x, 2 * y, x + y], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    found = read_image(tmp_path / "a.jpg", apply_exif=False, reduction=reduction)
    assert found.shape == (-(-size[0] // reduction), -(-size[1] // reduction), 3)
    whole = size[0] // reduction * reduction, size[1] // reduction * reduction
    blocks = image[: whole[0], : whole[1]].reshape(whole[0] // reduction, reduction, -1, reduction, 3).mean((1, 3))
    np.testing.assert_allclose(found[: blocks.shape[0], : blocks.shape[1]], blocks, atol=4)


def test_other_files_keep_their_size(tmp_path):
    for name in ("a.png", "grey.jpg"):
        Image.fromarray(RGB if name == "a.png" else RGB[..., 0]).save(tmp_path / name)
        assert read_image(tmp_path / name, apply_exif=False, reduction=4).shape == RGB.shape


def rotated_file(folder, kind, suffix, orientation, tags=()):
    """An image with an EXIF orientation, and (tag, value) rows."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in tags:
        exif[tag] = value
    path = folder / f"{kind}{orientation}{suffix}"
    Image.fromarray(RGB).save(path, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")])
def test_every_orientation_is_applied_once(tmp_path, kind, suffix, orientation):
    """As Pillow's own function does, which fails on odd tags."""
    path = rotated_file(tmp_path, kind, suffix, orientation)
    found = read_image(path, apply_exif=True)
    with Image.open(path) as image:
        image.load()  # a TIFF is rotated here, and then has no orientation
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(found, expected)
    target = tmp_path / f"upright{suffix}"
    save_upright(path, target)
    assert read_image(target, apply_exif=False).shape == found.shape
    with Image.open(target) as image:
        assert image.getexif().get(0x0112, 1) == 1


def test_an_odd_exif_tag_is_dropped_and_the_orientation_counts(tmp_path):
    """A text where the standard has a number, in a file whose pixels are sound."""
    tags = [(0x112, 3, 1, struct.pack("<H", 6) + b"\0\0"), (0x103, 2, 4, b"abc\0")]
    rows = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + rows + struct.pack("<I", 0)
    plain, odd = tmp_path / "plain.jpg", tmp_path / "odd.jpg"
    Image.fromarray(RGB).save(plain, quality=100, subsampling=0)
    data = plain.read_bytes()
    odd.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:])
    np.testing.assert_array_equal(read_image(odd, apply_exif=True), np.rot90(read_image(plain, apply_exif=False), -1))
    save_upright(odd, tmp_path / "upright.jpg")
    assert read_image(tmp_path / "upright.jpg", apply_exif=True).shape == (30, 20, 3)


def test_a_short_exif_chunk_of_a_png_is_dropped(tmp_path):
    path = tmp_path / "short.png"
    Image.fromarray(RGB).save(path)
    data, chunk = path.read_bytes(), b"eXIf" + b"II*"
    path.write_bytes(data[:33] + struct.pack(">I", 3) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    np.testing.assert_array_equal(read_image(path, apply_exif=True), RGB)


def test_large_images_are_refused_before_they_are_decoded_unless_the_variable_allows_them(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((200, 300), dtype=np.uint8)).save(path)
    monkeypatch.setenv("UPSNET_MAX_PIXELS", "59999")
    with pytest.raises(
        ValueError, match=r"large\.png: .*300 x 200 pixels, expected at most 59999; set UPSNET_MAX_PIXELS"
    ):
        read_image(path, apply_exif=False)
    monkeypatch.setenv("UPSNET_MAX_PIXELS", "60000")
    assert read_image(path, apply_exif=False).shape == (200, 300, 3)
    for wrong in ("many", "-1", "1.5", "9" * 30):
        monkeypatch.setenv("UPSNET_MAX_PIXELS", wrong)
        with pytest.raises(ValueError, match="UPSNET_MAX_PIXELS="):
            read_image(path, apply_exif=False)


def test_the_variable_also_allows_more_than_pillow_does(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((200, 300), dtype=np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("UPSNET_MAX_PIXELS", "60000")
    assert read_image(path, apply_exif=False).shape == (200, 300, 3)


def test_only_one_module_opens_images():
    """Image.open accepts every format that Pillow knows, and some of them start programs."""
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "upsnet").rglob("*.py")
        if re.search(r"\bImage\.open\(|\bimread\(|decode_image\(", path.read_text())
    ]
    assert users == ["upsnet/io/images.py"]


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    target, link = tmp_path / "real" / "value.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    write_json(link, [1])
    assert link.is_symlink()
    assert read_json(target) == [1]
    write_json(link, [2])
    assert link.is_symlink()
    assert read_json(target) == [2]
    assert [path.name for path in target.parent.iterdir()] == ["value.json"]


def test_a_device_stays_a_device_and_a_fifo_receives_the_content(tmp_path):
    link = tmp_path / "null.json"
    link.symlink_to("/dev/null")
    write_json(link, [1])
    assert Path("/dev/null").is_char_device()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
    reader.start()
    write_json(fifo, {"a": 1})
    reader.join(10)
    assert json.loads(received[0]) == {"a": 1}
    assert fifo.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "null.json"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder, expected a file.*a\.json"):
        write_json(tmp_path / "a.json", 1)


def test_a_full_disk_is_named_with_the_file(tmp_path):
    def write():
        with atomic_path(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write()
    assert not list(tmp_path.iterdir())


def test_an_image_is_never_read_from_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image \(no regular file\)"):
        read_image(tmp_path / "a.png", apply_exif=False)


def test_errors_of_network_disks_are_tried_again(tmp_path, monkeypatch):
    waits, errors = [], [errno.EIO, errno.ESTALE, errno.EIO]
    monkeypatch.setattr("time.sleep", waits.append)

    def read():
        if errors:
            raise OSError(errors.pop(), "transient")
        return 5

    assert retry(read) == 5
    assert waits == [0.1, 0.5, 2.0]
    errors += [errno.EIO] * 4
    with pytest.raises(OSError, match="transient"):
        retry(read)
    errors[:] = [errno.EACCES]
    waits.clear()
    with pytest.raises(OSError, match="transient"):
        retry(read)
    assert not waits, "a file that may not be read stays so"


def test_an_image_on_a_network_disk_is_read_again(tmp_path, monkeypatch):
    """The error comes while Pillow decodes; the second attempt reads the whole image."""
    waits, errors = [], [errno.EIO]
    monkeypatch.setattr("time.sleep", waits.append)
    Image.fromarray(np.full((40, 60, 3), 7, np.uint8)).save(tmp_path / "a.jpg")
    load = ImageFile.ImageFile.load

    def failing(image):
        if errors:
            raise OSError(errors.pop(), "transient")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    assert read_image(tmp_path / "a.jpg", apply_exif=False).shape == (40, 60, 3)
    assert waits == [0.1]
    errors += [errno.EIO] * 4
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be read as an image \(transient\)"):
        read_image(tmp_path / "a.jpg", apply_exif=False)
    assert not errors


def test_leftovers_of_processes_that_ended_are_removed(tmp_path):
    code = """
import os, sys
from pathlib import Path
from upsnet.io.files import atomic_path, temporary_folder
folder = Path(sys.argv[1])
(temporary_folder(folder) / "a").write_text("x")
with atomic_path(folder / "model.pt") as path:
    path.write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "model.pt").touch()
    (tmp_path / ".hidden").touch()
    own = temporary_folder(tmp_path)
    foreign = tmp_path / own.name.replace(f"-{os.getpid()}-", "-1-").replace(".upsnet-", ".upsnet-other_")
    foreign.mkdir()
    assert len(remove_leftovers(tmp_path)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", ".hidden", own.name, foreign.name}
    assert remove_leftovers(tmp_path / "absent") == []


@pytest.mark.parametrize("name", ["a.png", "a/b c/d-e.png", "é.png", "..a/b..", "a..b", "-a", "~/a", "1", "x" * 255])
def test_names_below_the_folder(name):
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"), (".", "is empty"), ("a/", "is empty"), ("/a", "is absolute"), ("//a/b", "is absolute"),
        ("C:\\a", "is absolute"), ("c:a", "is absolute"), ("\\\\host\\a", "is absolute"), ("../a", "leaves its folder"),
        ("a/../../b", "leaves its folder"), ("a\\..\\..\\b", "leaves its folder"), ("a\x00", "has control characters"),
        ("a\nb", "has control characters"), ("x" * 256, "is too long"), ("é" * 200, "is too long"),
        ("\ud800", "cannot be written in UTF-8"),
    ],
)  # fmt: skip
def test_names_that_leave_the_folder_or_fit_no_file_system(name, fault):
    assert name_fault(name) == fault
    with pytest.raises(ValueError, match=f"a.json: file name .* {fault}, expected a relative path below its folder"):
        require_inside(name, source="a.json")


def test_every_image_gets_a_png_name_of_its_own():
    assert png_names(["a.jpg", "b/c.png", "d"]) == ["a.png", "b/c.png", "d.png"]
    assert png_names(["a.jpg", "a.png", "b.jpg"]) == ["a.jpg.png", "a.png.png", "b.png"]
    assert png_names(["a.jpg", "A.png"]) == ["a.jpg.png", "A.png.png"]
    names = png_names(["a.jpg", "a.png", "a.png.jpg", "a.jpg", "a.jpg"])
    assert len({name.casefold() for name in names}) == 5


def test_hidden_files_and_folders_are_not_listed(tmp_path):
    for name in ("b.jpg", "a.JPG", "._a.jpg", ".c.png", "notes.txt"):
        (tmp_path / name).touch()
    for name in (".ipynb_checkpoints", "folder.jpg"):
        (tmp_path / name).mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "absent.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.jpg", "dangling.png"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5), ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "x"}, None),
        ({}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_found(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == expected


def test_the_quota_limits_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert parallel.available_cpus() == 1
    (tmp_path / "cpu.max").write_text("max 100000")
    assert parallel.available_cpus() == len(os.sched_getaffinity(0))
