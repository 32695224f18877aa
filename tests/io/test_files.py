import numpy as np
import pytest
from PIL import Image

from upsnet.io.files import atomic_path, read_json, write_json
from upsnet.io.images import read_image

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
