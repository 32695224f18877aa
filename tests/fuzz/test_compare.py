"""`upsnet compare` on changed files of an evaluation: a result, or one line that names the file."""

import json
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.harness import fuzz, run_command
from tests.fuzz.strategies import changed, dump
from tests.metrics.test_comparison import FOUND, MISSES, as_format_1, write


def documents():
    """Contents of per_image.json and metrics.json, of today's format and of format 1."""
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name) / "a", FOUND, MISSES)
        for _ in range(2):
            yield {
                path.name: json.loads(path.read_text()) for path in (folder / "per_image.json", folder / "metrics.json")
            }
            if _ == 0:
                as_format_1(folder)


TODAY, FORMAT_1 = documents()
FILES = [(document, name) for document in (TODAY, FORMAT_1) for name in document]


def compare(folders, root, *words):
    return run_command("compare", *folders, "--output", root / "out", *words, inputs=root / "in", output="out")


@fuzz(st.sampled_from(FILES).flatmap(lambda item: st.tuples(st.just(item), changed(item[0][item[1]]))), examples=30)
def test_changed_files(drawn):
    (document, name), value = drawn
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folders = [write(root / "in" / "a", FOUND, MISSES), root / "in" / "b"]
        folders[1].mkdir()
        for file, own in document.items():
            (folders[1] / file).write_text(dump(value if file == name else own))
        code, out, errors = compare(folders, root)
        assert code == 0 or str(root / "in") in errors[0]
        assert code != 0 or "B - A" in out


@fuzz(st.lists(st.lists(st.text(max_size=9), max_size=3), max_size=4), examples=20)
def test_a_table_of_attributes(rows):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = write(root / "in" / "a", FOUND, MISSES)
        text = "image,time\n0,day\n" + "\n".join(",".join(row) for row in rows)
        (root / "in" / "s.csv").write_text(text, encoding="utf-8", errors="replace")
        code, _, errors = compare([folder, folder], root, "--slices", root / "in" / "s.csv")
        assert code == 0 or "s.csv" in errors[0]
