"""The report as a file: its numbers are those of metrics.json, it needs nothing else, and no name can break it."""

import json
import pickle
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import ROOT
from upsnet.categories import CategorySet
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.predictions import write_samples
from upsnet.metrics.bootstrap import quality
from upsnet.metrics.document import compute_metrics
from upsnet.metrics.error_causes import CAUSES, find_causes
from upsnet.metrics.image_pair import ImagePair
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable, match_segments
from upsnet.report.collector import ImageRow, ReportCollector
from upsnet.report.page import Identity, render
from upsnet.report.panels import EDGE_COLOR, encode, error_map
from upsnet.report.statistics import summarize

EVIL = "\"'><script>alert(1)</script>"


def flawed(sample, rng):
    """A prediction with errors of several kinds: map, classes and scores."""
    ids, classes = sample.segment_map.copy(), sample.classes.copy()
    for row in range(len(classes)):
        kind, mask = rng.integers(0, 6), sample.segment_map == row + 1
        if kind == 0:
            ids[mask] = 0
        elif kind == 1:
            classes[row] = (classes[row] + 1) % len(CATEGORIES)
        elif kind == 2:
            ids[mask & (np.arange(mask.shape[1]) % 3 == 0)] = 0
        elif kind == 3:
            ids[mask] = rng.integers(1, len(classes) + 1)
    return ids, SegmentTable.of(classes), rng.random(len(classes))


def collect(num_images=6, categories=CATEGORIES, num_pictures=2, pictures=True, images=None):
    """A collector and the metric, both fed with the same flawed predictions."""
    collector, meter = ReportCollector(categories, num_pictures), PanopticQuality(categories)
    data = Shapes(num_images, (48, 64))
    for index in images or range(num_images):
        sample = data[index]
        truth = SegmentTable.of(sample.classes, sample.is_crowd)
        ids, predicted, scores = flawed(sample, np.random.default_rng(index))
        picture = partial(np.asarray, sample.image) if pictures else None
        pair = ImagePair(sample.segment_map, truth, ids, predicted, scores, picture)
        collector.update(index, f"{index}{EVIL}.png", pair)
        meter.update(index, sample.segment_map, truth, ids, predicted)
    return collector, compute_metrics(meter)


def page(collector, metrics, config="key: value"):
    return render(collector, metrics, Identity(f"model {EVIL}", [("Data set", EVIL)], config))


class Outline(HTMLParser):
    """Tags with their attributes, and the tags that are open at the end."""

    VOID = ("meta", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k.replace("_", "-")) == v for k, v in wanted.items())]


def test_numbers_are_those_of_metrics_json():
    collector, metrics = collect()
    text = page(collector, metrics)
    outline = Outline(text)
    assert not outline.open
    shown = {a["data-metric"]: float(a["data-value"]) for _, a in outline.tags if "data-metric" in a}
    expected = {f"{g}.{k}": metrics["panoptic"][g][k] for g in ("All", "Things", "Stuff") for k in ("pq", "sq", "rq")}
    expected["semantic_from_panoptic"] = metrics["semantic_from_panoptic"]["miou"]
    assert shown == expected
    for category in CATEGORIES.categories:
        row = re.search(rf'<tr data-kind="\w+" data-seen="1" data-id="{category.id}">.*?</tr>', text).group()
        values = [float(v) for v in re.findall(r'<td class="(?:num|pq)" data-value="([^"]+)"', row)]
        scores = metrics["panoptic"]["per_class"][str(category.id)]
        assert values == [scores[k] for k in ("pq", "sq", "rq", "tp", "fp", "fn", "iou")]


def test_statistics_add_up_to_the_metric():
    collector, metrics = collect()
    stats = summarize(collector)
    per_class = metrics["panoptic"]["per_class"].values()
    assert stats.missed.sum(1).tolist() == [s["fn"] for s in per_class]
    assert stats.spurious.sum(1).tolist() == [s["fp"] for s in per_class]
    assert stats.image_sums.sum(0)[:, 0] == pytest.approx([s["iou"] for s in per_class])
    assert np.diag(stats.confusion).tolist() == [s["tp"] for s in per_class]
    assert stats.size_sums.sum(0) == pytest.approx(stats.image_sums.sum((0, 1)))
    assert quality(stats.image_sums.sum(0))[:, 0] == pytest.approx([s["pq"] for s in per_class])
    assert stats.score_bins.sum() == sum(
        s["tp"] + s["fp"] for s, c in zip(per_class, CATEGORIES.categories, strict=True) if c.is_thing
    )
    assert (stats.mended >= metrics["panoptic"]["All"]["pq"] - 1e-9).all()


def test_confident_predictions_that_the_ground_truth_contradicts_are_listed_and_scores_are_checked():
    truth, table = np.array([[1, 1, 2, 2, 3, 3, 4, 4]]), SegmentTable.of([0, 3, 3, 0])
    predicted = np.array([[1, 1, 2, 2, 3, 3, 4, 4]])
    collector, meter = ReportCollector(CATEGORIES, 0), PanopticQuality(CATEGORIES)
    for number, (classes, scores) in enumerate(
        [
            ([0, 4, 3, 5], [1.0, 0.95, 0.99, 0.97]),  # another class; right; on stuff of another class
            ([0, 4, 3, 0], [1.0, 0.4, 0.99, 1.0]),  # not sure
        ]
    ):
        found = SegmentTable.of(classes)
        collector.update(number, f"{number}{EVIL}", ImagePair(truth, table, predicted, found, np.array(scores)))
        meter.update(number, truth, table, predicted, found)
    stats = summarize(collector)
    assert [(s.file_name, s.predicted, s.labelled, s.area) for s in stats.suspects] == [
        (f"0{EVIL}", 5, 0, 2), (f"0{EVIL}", 4, 3, 2),
    ]  # fmt: skip
    text = page(collector, compute_metrics(meter))
    assert not Outline(text).open
    assert text.count('<td class="num" data-value="0.97') == 1
    # things: 0.95 and 0.97 unmatched (bin centre 97.5), 0.99 twice matched, 0.4 unmatched (42.5)
    assert f"distance is {(4 * abs(50 - 97.5) + 42.5) / 5:.1f} points" in text


def test_names_from_the_data_cannot_become_markup():
    rows = [{**row, "name": f"{row['name']}{EVIL}"} for row in CATEGORIES.to_json()]
    categories = CategorySet.from_json(rows, source="test")
    text = page(*collect(categories=categories), config=EVIL)
    assert EVIL not in text
    assert len(Outline(text).values("script")) == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_needs_nothing_else():
    text = page(*collect())
    assert not re.findall(r"""\s(?:src|href|srcset|action|poster)=["']?(?!["']?(?:#|data:))\S+""", text)
    assert "url(" not in text
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", text)
    assert len(re.findall(r'src="data:image/jpeg;base64,', text)) == 4 * 4


def test_every_part_is_labelled():
    outline = Outline(page(*collect()))
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["alt"] for a in outline.values("img") if a.get("id") is None)
    assert all(a.get("aria-labelledby") in ids for a in outline.values("section"))
    assert all(a.get("scope") in ("row", "col") for a in outline.values("th"))
    assert {a["href"].removeprefix("#") for a in outline.values("a")} <= set(ids)
    assert {a["data-cause"] for a in outline.values("tr") if "data-cause" in a} == set(CAUSES)


@pytest.mark.parametrize(("images", "classes"), [([], 7), ([0], 7), ([0], 1)])
def test_few_images_classes_or_no_scores_still_make_a_page(images, classes):
    categories = CategorySet.from_json(CATEGORIES.to_json()[-classes:], source="test")
    collector, meter = ReportCollector(categories, 2), PanopticQuality(categories)
    for key in images:
        ids, table = np.ones((9, 12), dtype=np.int32), SegmentTable.of([0])
        collector.update(key, "a.png", ImagePair(ids, table, ids, table))
        meter.update(key, ids, table, ids, table)
    text = page(collector, compute_metrics(meter))
    assert not Outline(text).open
    assert "The predictions have no scores" in text


def test_a_page_with_many_pictures_of_noise_stays_below_ten_megabytes():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (400, 640, 3), dtype=np.uint8) for _ in range(2)]
    assert all(len(encode(picture, 20_000)) <= 20_000 for picture in noise)
    collector = ReportCollector(CATEGORIES, 20)
    ids, table = rng.integers(0, 8, (400, 640)), SegmentTable.of(np.arange(7))
    collector.update(0, "0.png", ImagePair(ids, table, ids[::-1], table, picture=lambda: noise[0]))
    sizes = [len(data) for data in collector.worst[0].panels.values()]
    assert len(sizes) == 4
    assert 40 * sum(sizes) * 4 / 3 < 9.5e6


def test_worst_and_best_are_kept_in_order_and_pictures_made_only_for_them():
    collector, _ = collect(num_images=12, num_pictures=3)
    order = sorted(collector.rows, key=lambda k: collector.rows[k].pq)
    worst, best = collector.shown()
    assert [r.key for r in worst] == order[:3]
    assert [collector.rows[r.key].pq for r in best] == [collector.rows[k].pq for k in order[::-1][:3]]
    few, _ = collect(num_images=3, num_pictures=8)
    worst, best = few.shown()
    assert (len(worst), len(best)) == (2, 1)
    assert {r.key for r in worst} | {r.key for r in best} == {0, 1, 2}
    none, _ = collect(num_images=3, num_pictures=0, pictures=False)
    assert none.shown() == ([], [])
    assert "data:image" not in page(*collect(num_images=3, num_pictures=0))


def test_pictures_made_in_a_second_pass_are_the_same():
    at_once, _ = collect(num_images=9)
    later, asked = ReportCollector(CATEGORIES, 2), []

    def read(key):
        asked.append(key)
        sample = Shapes(9, (48, 64))[key]
        ids, predicted, scores = flawed(sample, np.random.default_rng(key))
        truth = SegmentTable.of(sample.classes, sample.is_crowd)
        return ImagePair(sample.segment_map, truth, ids, predicted, scores, lambda: sample.image)

    for key, row in at_once.rows.items():
        pair = read(key)
        found = match_segments(pair.truth_map, pair.truth, pair.predicted_map, pair.predicted)
        later.add(key, ImageRow.of(row.file_name, found, pair.scores))
    asked.clear()
    later.illustrate(read)
    assert later.shown() == at_once.shown()
    assert len(asked) == 4


def test_any_split_over_processes_gives_the_same_page():
    whole, metrics = collect(num_images=7)
    parts = [collect(num_images=7, images=[*range(r, 7, 3)])[0] for r in range(3)]
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    parts[1].merge(parts)
    same = [re.sub(r"<dt>Date</dt><dd>[^<]*</dd>", "", page(c, metrics)) for c in (whole, parts[1])]
    assert same[0] == same[1]


def test_errors_are_coloured_by_cause_and_the_rest_is_grey():
    truth, predicted = np.array([[1, 1, 1, 2, 2, 0]], dtype=np.int32), np.array([[1, 1, 0, 2, 2, 2]], dtype=np.int32)
    found = match_segments(truth, SegmentTable.of([0, 1]), predicted, SegmentTable.of([0, 2]))
    picture = error_map(np.full((1, 6, 3), 100, dtype=np.uint8), truth, predicted, found, find_causes(found))[0]
    assert (picture[0] == picture[0, 0]).all()
    assert np.array_equal(picture[0], picture[1]), "a match stays grey"
    near = [int(np.abs(p.astype(int) - np.array(EDGE_COLOR)).sum()) for p in picture]
    assert near.index(min(near)) == 2, "a lost pixel of a match is its edge"
    assert picture[3, 0] > picture[3, 1], "the wrong class is pink"


def test_a_semantic_model_has_no_report():
    with pytest.raises(ValueError, match=r"model\.heads=both"):
        page(collect(2)[0], {"panoptic": None})


def test_the_command_line_writes_the_report_of_files_and_of_a_model(run_tool, checkpoint, tmp_path):
    out = tmp_path / "model"
    code, printed, err = run_tool("evaluate", "--checkpoint", checkpoint, "--output", out, "--report")
    assert code == 0, err
    assert str(out / "report.html") in printed
    text = (out / "report.html").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert f'data-metric="All.pq" data-value="{metrics["panoptic"]["All"]["pq"]!r}"' in text
    for part in ("SHA-256 of the checkpoint", "Resolved config", "backbone:", "Versions", "3 images"):
        assert part in text

    data = Shapes(3, (64, 96), seed=1)
    write_samples((data[i] for i in range(3)), CATEGORIES, tmp_path / "truth", "val")
    gt = tmp_path / "truth" / "annotations" / "panoptic_val.json"
    arguments = (
        "--gt",
        gt,
        "--pred",
        out / "predictions" / "panoptic.json",
        "--report",
        "--output",
        tmp_path / "files",
    )
    code, _, err = run_tool("evaluate", *arguments, "--images", tmp_path / "truth" / "val", "--report-images", 1)
    assert code == 0, err
    text = (tmp_path / "files" / "report.html").read_text()
    assert text.count('src="data:image/jpeg') == 2 * 4
    code, _, err = run_tool("evaluate", *arguments, "--images", tmp_path)
    assert code == 2
    assert "000000.png: no such photograph (3 of 3 are missing)" in err
    code, _, err = run_tool("evaluate", *arguments)
    assert code == 0, err
    assert "<span>Photograph</span>" not in (tmp_path / "files" / "report.html").read_text()


@pytest.mark.parametrize("options", [["--report"], ["--output", "o", "--images", "i"]])
def test_options_of_the_report_that_do_not_go_together(run_tool, options):
    code, _, err = run_tool("evaluate", "--gt", "a", "--pred", "b", *options)
    assert code == 2
    assert "usage:" in err


def test_the_files_of_the_page_are_package_data():
    folder = ROOT / "upsnet" / "report"
    declared = (ROOT / "pyproject.toml").read_text()
    for path in folder.iterdir():
        assert path.suffix in (".py", "") or f'"{path.name}"' in declared, path
