"""What a run leaves to look at."""

import gzip
import json
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY
from upsnet.config import parse_config
from upsnet.engine.interval import Interval
from upsnet.engine.logging import RunLog
from upsnet.engine.train import Trainer
from upsnet.structures import PanopticBatch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    """A run with everything that can be seen switched on, its trainer and what it returned."""
    options = ("evaluate.panels=0", "evaluate.instance=false", "train.histograms_every=3", "train.clip_gradient=null")
    folder = tmp_path_factory.mktemp("looked_at")
    trainer = Trainer(parse_config(TINY, options, source="tiny"), folder, CPU, profile=True)
    return trainer, trainer.run()


def test_rows_hold_losses_norm_and_rate_and_apart_from_them_what_depends_on_the_machine(looked_at):
    rows = [json.loads(line) for line in (looked_at[0].output / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "lr" in row]
    assert [row["iteration"] for row in training] == [2, 3, 4, 6]
    for row in training:
        assert set(row["speed"]) == {"images_per_s", "data_wait", "memory_gb"}
        assert 0 < row["speed"]["data_wait"] < 1
        assert 0.05 < row["speed"]["memory_gb"] < 100
        assert row["gradient_norm"] > 0
    assert "speed" not in rows[-1]


def test_tensorboard_shows_the_same_and_histograms_of_what_learns(looked_at):
    events = EventAccumulator(str(looked_at[0].output / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/gradient_norm", "train/lr", "train/loss_mask", "speed/data_wait", "val/pq"} <= set(tags["scalars"])
    learns = {name for name, p in looked_at[0].model.named_parameters() if p.requires_grad}
    assert set(tags["histograms"]) == learns
    assert [h.step for h in events.Histograms("backbone.conv1.weight")] == [3, 6]


def test_a_profiled_run_leaves_a_trace_and_names_what_costs_most(looked_at):
    trainer, metrics = looked_at
    trace = json.loads(gzip.decompress((trainer.output / "profile.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert len({name for name in names if str(name).startswith("ProfilerStep#")}) == 3
    assert any("convolution_backward" in str(name) for name in names)
    words = "\n".join(trainer.summary(metrics))
    assert "6 iterations, 12 images in 0:00:" in words
    assert f"best PQ {trainer.best:.2f} (iteration 6)" in words
    assert "convolution_backward" in words
    table = trainer._profiler.report.splitlines()
    assert len(table) == 10 + 5, "ten operations between rules, heading and total"


def test_an_interval_is_read_once_and_goes_on_after_a_stop():
    def step(interval, number, *values):
        parts = [{"loss_a": torch.tensor(v)} for v in values]
        batches = [
            PanopticBatch(torch.zeros(1, 3, 1, 1), torch.ones(1, 2), [(1, 1)], [(1, 1)], [f"{v}.png"]) for v in values
        ]
        interval.add(number, batches, parts, torch.tensor(2.0 * number))

    whole, first = Interval(), Interval()
    for interval in (whole, first):
        step(interval, 1, 1.0, 3.0)
    step(whole, 2, 5.0, 6.0)
    second = Interval(first.rows())
    step(second, 2, 5.0, 6.0)
    assert whole.read() == second.read() == {"loss_a": 3.75, "gradient_norm": 3.0}
    assert len(whole) == 0
    step(whole, 3, 1.0, float("inf"))
    with pytest.raises(FloatingPointError, match=r"iteration 3: loss_a=inf; images inf.png"):
        whole.read()
    step(second, 4, 1.0, 1.0)
    second._steps[0].gradient_norm = torch.tensor(float("nan"))
    with pytest.raises(FloatingPointError, match=r"iteration 4: gradient norm=nan; images 1.0.png, 1.0.png"):
        second.read()


def test_rows_that_will_be_written_again_leave_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"iteration": 2, "lr": 1}, {"iteration": 4, "lr": 1}, {"iteration": 4, "pq": 1}, {"iteration": 6, "lr": 1}]
    for evaluation_due, kept in ((False, rows[:3]), (True, rows[:2])):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 7, "l')
        with RunLog(tmp_path, start=4, stop=9, evaluation_due=evaluation_due, device=CPU, enabled=True):
            pass
        assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    path.write_text(broken := '{"iteration": 1, "lr": 1}\n{"iteration": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: not a row of JSON: '{\"iteration\": 2}}"):
        RunLog(tmp_path, start=4, stop=9, evaluation_due=False, device=CPU, enabled=True)
    assert path.read_text() == broken


class FakeWandb(types.ModuleType):
    """The part of wandb that the log uses."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.rows, self.ended = [], [], []

    def init(self, **options):
        self.started.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "iteration")

    def log(self, values):
        self.rows.append((values["iteration"], {k: v for k, v in values.items() if k != "iteration"}))

    def finish(self, exit_code):
        self.ended.append(exit_code)


def test_weights_and_biases_gets_the_names_and_numbers_of_tensorboard(make_config, tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    options = ("train.wandb_project=panoptic", "train.log_every=2", "evaluate.panels=0")
    Trainer(make_config(*options), tmp_path / "run", torch.device("cpu")).run()
    assert fake.started[0]["project"] == "panoptic"
    assert fake.started[0]["config"]["train"]["iterations"] == 6
    assert fake.ended == [0]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = {(step, name): value for step, values in fake.rows for name, value in values.items()}
    for name in board.Tags()["scalars"]:
        for event in board.Scalars(name):
            assert logged[event.step, name] == pytest.approx(event.value, rel=1e-5)
    assert {name for _, name in logged} == set(board.Tags()["scalars"])
    Trainer(make_config(*options, "train.iterations=8"), tmp_path / "run", torch.device("cpu"), resume=True).run()
    Trainer(make_config(*options), tmp_path / "other", torch.device("cpu")).run()
    ids = [started["id"] for started in fake.started]
    assert ids[0] == ids[1] != ids[2], "a resumed run goes on, and a new run has an id of its own"


def test_a_missing_package_is_told_before_the_first_step(make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"train\.wandb_project needs the package wandb: pip install wandb"):
        Trainer(make_config("train.wandb_project=panoptic"), tmp_path, torch.device("cpu")).run()


def test_weights_and_biases_that_cannot_start_is_told_with_the_remedy(make_config, tmp_path, monkeypatch):
    def init(**options):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    fake = FakeWandb()
    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ValueError, match=r"cannot start \(api_key not configured \(no-tty\)\); run `wandb login`"):
        Trainer(make_config("train.wandb_project=panoptic"), tmp_path, torch.device("cpu")).run()


@pytest.mark.slow
def test_the_real_package_works_offline(make_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Trainer(make_config("train.wandb_project=panoptic"), tmp_path / "run", torch.device("cpu")).run()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_a_busy_minute_does_not_move_the_time_left(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("upsnet.engine.logging.time.perf_counter", lambda: now[0])
    log = RunLog(tmp_path, start=0, stop=1000, evaluation_due=False, device=torch.device("cpu"), enabled=True)
    values = {"loss_a": 1.0, "gradient_norm": 1.0, "lr": 0.1}
    with log:
        for number in range(1, 11):
            now[0] += 600.0 if number == 6 else 10.0
            log.interval(10 * number, values, steps=10, images=80, waited=0.0)
    left = [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert left[5] == "0:15:40 left"
    assert left[-1] == "0:15:00 left"
