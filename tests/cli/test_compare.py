"""`upsnet compare` on evaluation folders, from the command line to the page."""

import json
import math

import numpy as np
import pytest

from tests.metrics.test_comparison import FOUND, MISSES, SHIFTED, as_format_1, write
from tests.report.test_report import EVIL, Outline, flawed
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.engine.compare import compare_evaluations
from upsnet.io.predictions import PanopticWriter, list_segments, prediction_rows, write_samples
from upsnet.structures import PanopticPrediction

IMAGES = 5


@pytest.fixture
def folders(tmp_path):
    return write(tmp_path / "a", FOUND, FOUND, SHIFTED), write(tmp_path / "b", FOUND, MISSES, SHIFTED)


def test_the_command_prints_differences_and_a_verdict(run_tool, folders):
    code, out, err = run_tool("compare", *folders)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["rq_stuff"] == ["100.000", "100.000", "+0.000", "+0.000", "to", "+0.000"]
    assert float(lines["pq"][2]) < 0
    assert lines["1.png"][2] == "-50.000"
    assert lines["void"][:3] == ["0.0", "1.0", "+1.0"]
    assert "No difference is shown" in out


@pytest.mark.parametrize(("allowed", "code"), [(None, 0), ("50", 0), ("0.5", 1), ("0", 1)])
def test_max_drop_is_the_exit_code_of_a_check(upsnet_command, folders, allowed, code):
    option = [] if allowed is None else ["--max-drop", allowed]
    found, out, err = upsnet_command("compare", *folders, *option)
    assert found == code
    assert "B - A" in out
    assert (err == "") == (code == 0)
    if code:  # things: 2 / 3 in A, 1 / 2.5 in B
        assert err.startswith(
            f"error: PQ of {folders[1]} is 13.333 below PQ of {folders[0]}, --max-drop allows {allowed}"
        )
    assert upsnet_command("compare", *folders[::-1], *option)[0] == 0, "a gain is no drop"
    assert upsnet_command("compare", folders[0], folders[0], folders[1], *option)[0] == code, "any of several"


def test_several_seeds_are_two_sides(upsnet_command, folders):
    a, b = folders
    code, out, _ = upsnet_command("compare", "--a", a, b, "--b", b, a)
    assert code == 0
    assert f"A: {a}, {b}\nB: {b}, {a}\n3 images" in out


@pytest.mark.parametrize(
    "words",
    [["x"], [], ["--a", "x"], ["x", "--a", "y", "--b", "z"], ["x", "y", "--max-drop", "-1"],
     ["x", "y", "--max-drop", "nan"], ["x", "y", "--gt", "g"], ["x", "y", "--output", "o", "--images", "i"],
     ["x", "y", "--report-images", "-1"]],
)  # fmt: skip
def test_options_that_do_not_go_together(upsnet_command, words):
    code, _, err = upsnet_command("compare", *words)
    assert code == 2
    assert "usage:" in err


def test_mistakes_are_one_line(upsnet_command, folders, tmp_path):
    other = write(tmp_path / "other", FOUND)
    for words, text in (
        ((folders[0], tmp_path), f"error: {tmp_path / 'per_image.json'}: no such file"),
        ((folders[0], other), f"error: {other}: lacks 2 of the 3 images of {folders[0]}"),
        ((*folders, "--slices", tmp_path / "none.csv"), "none.csv: no such file"),
        ((*folders, "--output", tmp_path / "o", "--gt", tmp_path / "none.json"), "none.json: no such file"),
    ):
        code, _, err = upsnet_command("compare", *words)
        assert code == 2
        assert err.count("\n") == 1
        assert text in err


def test_older_files_are_compared_and_the_page_says_what_is_missing(upsnet_command, folders, tmp_path):
    as_format_1(folders[0])
    code, out, _ = upsnet_command("compare", *folders, "--output", tmp_path / "out", "--max-drop", "20")
    assert code == 0
    assert "note: " in out
    assert "the difference may be chance" in out
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "has format 1: no intervals" in page
    assert "The evaluations do not list segments." in page
    assert not Outline(page).open


def test_names_of_images_cannot_control_the_terminal(upsnet_command, folders):
    path = folders[0] / "per_image.json"
    path.write_text(path.read_text().replace('"1.png"', r'"1\n\u001b[31m.png"'))
    code, out, _ = upsnet_command("compare", *folders)
    assert code == 0
    assert "  1??[31m.png" in out


def test_max_drop_needs_a_pq(upsnet_command, folders):
    as_format_1(folders[1])
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    metrics["panoptic"]["All"]["pq"] = math.nan
    (folders[1] / "metrics.json").write_text(json.dumps(metrics))
    assert upsnet_command("compare", *folders)[0] == 0
    code, _, err = upsnet_command("compare", *folders, "--max-drop", "100")
    assert code == 2
    assert err.startswith(f"error: --max-drop: no PQ of {folders[0]} or of {folders[1]}, expected")


@pytest.fixture
def drawn(tmp_path):
    """A ground truth with its images, and two evaluations with predictions; names that would be markup."""
    data = Shapes(IMAGES, (48, 64))
    samples = [data[i] for i in range(IMAGES)]
    write_samples(samples, CATEGORIES, tmp_path / "truth", "val")
    gt = tmp_path / "truth" / "annotations" / "panoptic_val.json"
    folders = []
    for name, seed in (("a", 0), (f"b{EVIL.replace('/', '')}", 50)):
        writer = PanopticWriter(tmp_path / name / "predictions" / "panoptic.json", CATEGORIES)
        for index, sample in enumerate(samples):
            ids, table, scores = flawed(sample, np.random.default_rng(seed + index))
            segments = list_segments(ids, table.classes.tolist(), scores.tolist(), CATEGORIES)
            rows = prediction_rows(PanopticPrediction(ids, segments))
            writer.add(sample.image_id, sample.file_name, ids, rows)
        writer.close()
        folders.append(tmp_path / name)
    return gt, folders


def test_the_page_shows_the_images_that_lost_most_first(drawn, run_tool, tmp_path):
    gt, folders = drawn
    for folder in folders:
        arguments = ("--gt", gt, "--pred", folder / "predictions" / "panoptic.json", "--output", folder, "--workers", 1)
        assert run_tool("evaluate", *arguments)[0] == 0
    options = {"truth": gt, "image_dir": gt.parents[1] / "val", "report_images": 30}
    (result,) = compare_evaluations(*folders, output=tmp_path / "out", **options)
    page = (tmp_path / "out" / "compare.html").read_text()
    outline = Outline(page)
    assert not outline.open
    assert EVIL.replace("/", "") not in page
    assert "url(" not in page
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in outline.values("a")} <= set(ids)
    shown = [a["alt"] for a in outline.values("img") if a.get("id") is None]
    assert len(shown) == 6 * sum(row["difference"] != 0 for row in result["images"])
    lost = [row for row in result["images"] if row["difference"] < 0]
    assert shown[:6] == [
        f"{name}: {lost[0]['file_name']}" for name in ("Ground truth", "Image", "A", "A: errors", "B", "B: errors")
    ]
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (document["format"], document["comparisons"]) == (1, [json.loads(json.dumps(result))])

    (tmp_path / "truth" / "val" / lost[0]["file_name"]).unlink()
    (result,) = compare_evaluations(*folders, output=tmp_path / "out", **options)
    assert any("cannot be read" in note or "No such file" in note or "no such" in note for note in result["notes"])
    (result,) = compare_evaluations(*folders, output=tmp_path / "out")
    assert "the ground truth (--gt) is not given" in result["notes"][-1]
    (folders[0] / "predictions" / "panoptic.json").unlink()
    (result,) = compare_evaluations(*folders, output=tmp_path / "out", truth=gt)
    assert "panoptic.json does not exist" in result["notes"][-1]
    assert "data:image" not in (tmp_path / "out" / "compare.html").read_text()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_files(run_tool, tmp_path):
    data = Shapes(40, (32, 32))
    for name, seed in (("gt", None), ("a", 0), ("b", 100)):
        writer = PanopticWriter(tmp_path / f"{name}.json", CATEGORIES)
        for index in range(40):
            sample = data[index]
            ids, classes = sample.segment_map, sample.classes
            if seed is not None:
                ids, table, _ = flawed(sample, np.random.default_rng(seed + index))
                classes = table.classes
            segments = list_segments(ids, classes.tolist(), [1.0] * len(classes), CATEGORIES)
            writer.add(index, sample.file_name, ids, prediction_rows(PanopticPrediction(ids, segments)))
        writer.close()
    found = set()
    for workers in (1, 2):
        for name in "ab":
            arguments = ("--gt", tmp_path / "gt.json", "--pred", tmp_path / f"{name}.json", "--workers", workers)
            assert run_tool("evaluate", *arguments, "--output", tmp_path / "out" / name)[0] == 0
        assert run_tool("compare", tmp_path / "out" / "a", tmp_path / "out" / "b", "--output", tmp_path / "c")[0] == 0
        files = (tmp_path / "out" / "a" / "per_image.json", tmp_path / "c" / "compare.json")
        found.add("".join(path.read_text() for path in files))
    assert len(found) == 1


def test_slices_of_the_command_reach_every_file(run_tool, drawn, tmp_path):
    gt, folders = drawn
    (tmp_path / "s.csv").write_text("image,weather\n000000.png,rain\n000001.png,<b>sun\n")
    slices = ("--slices", tmp_path / "s.csv")
    for folder in folders:
        arguments = ("--gt", gt, "--pred", folder / "predictions" / "panoptic.json", "--output", folder, "--workers", 1)
        assert run_tool("evaluate", *arguments, *slices, "--report")[0] == 0
        found = json.loads((folder / "metrics.json").read_text())["panoptic"]["slices"]["weather"]
        assert {name: row["images"] for name, row in found.items()} == {"rain": 1, "<b>sun": 1}
        assert "&lt;b&gt;sun" in (folder / "report.html").read_text()
    code, out, _ = run_tool("compare", *folders, *slices, "--output", tmp_path / "out")
    assert code == 0
    assert "PQ by weather:" in out
    assert "&lt;b&gt;sun" in (tmp_path / "out" / "compare.html").read_text()
