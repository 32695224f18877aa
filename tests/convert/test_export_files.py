"""What all exports of annotation programs have."""

import pytest

from upsnet.convert.export_files import kind_of, notes_of_shared_images, read_text, require_kind


def test_splits_that_share_images_are_noted():
    splits = {"train": ["a", "b", "b"], "val": ["b", "c"], "test": ["c", "c"]}
    assert notes_of_shared_images(splits, "x") == [
        "x: 1 images of val are in train too and count for train",
        "x: all 1 images of test are in val too and count for val: there is no separate test split; --split-val makes "
        "a new one",
    ]
    assert notes_of_shared_images({"train": ["a"], "val": [], "test": ["b"]}, "x") == []


def test_a_kind_is_one_short_word():
    assert [kind_of(value) for value in ("box", "blob-2", "alpha_mask")] == ["box", "blob-2", "alpha_mask"]
    for value in (None, 7, [], "", "a b", "a\n", "-a", "a" * 41):
        assert kind_of(value) == "unknown"


def test_a_kind_that_cannot_be_drawn_is_named():
    require_kind("box", {"mask", "box"})
    with pytest.raises(ValueError, match=r"^shape type 'blob', expected box, mask; draw it as one of these$"):
        require_kind("blob", {"mask", "box"})


def test_a_text_has_one_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\xc3\xbc\n")
    assert read_text(path) == "\u00fc\n"
    path.write_bytes(b"\xfc")
    with pytest.raises(ValueError, match=r"a\.txt: not text in UTF-8"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match=r"b\.txt: no such file$"):
        read_text(tmp_path / "b.txt")
