"""Files that an older version wrote: they load, predict the same map, and training resumes from them."""

import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import ROOT
from upsnet import PanopticPredictor
from upsnet.config import migrate, parse_config
from upsnet.config.migrate import rename_key
from upsnet.engine.resume import flatten
from upsnet.engine.train import Trainer
from upsnet.export import exported_model
from upsnet.models import file_format
from upsnet.models.checkpoint import load_checkpoint, save_checkpoint
from upsnet.models.pretrained.weights import read_weights

FILES = Path(__file__).parent / "files"
FORMAT1 = FILES / "format1"
FOLDERS = [FILES / f"format{number}" for number in range(1, migrate.current_format())]
NUM_SEGMENTS = {"format1": 7, "format2": 5, "format3": 4}
MODELS = ("model.pt", "model.pt2", "model.onnx")


def unpack(name, folder, source=FORMAT1):
    path = folder / name
    path.write_bytes(lzma.decompress((source / f"{name}.xz").read_bytes()))
    return path


def expected_of(source):
    with np.load(source / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def expected():
    return expected_of(FORMAT1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", FOLDERS, ids=lambda source: source.name)
def test_older_files_predict_the_stored_map(tmp_path, source, name):
    predictor = PanopticPredictor.from_checkpoint(unpack(name, tmp_path, source), "cpu")
    expected = expected_of(source)
    prediction = predictor(expected["image"])
    assert [s.id for s in prediction.segments] == list(range(1, 1 + NUM_SEGMENTS[source.name]))
    # Processors round sums differently, so pixels with nearly equal logits may change.
    assert (prediction.segment_ids != expected["segment_ids"]).mean() < 1e-3


def test_a_checkpoint_of_format_1_keeps_every_weight_and_key(tmp_path):
    raw = torch.load(unpack("model.pt", tmp_path), weights_only=True)
    found = load_checkpoint(tmp_path / "model.pt")
    assert raw["format"] == "upsnet-checkpoint-1"
    assert found.weights.keys() == raw["weights"].keys()
    assert all(torch.equal(found.weights[key], value) for key, value in raw["weights"].items())
    assert flatten(raw["config"]).items() <= flatten(found.config.dump()).items() or migrate.STEPS
    assert found.build().state_dict().keys() == raw["weights"].keys()


@pytest.mark.parametrize("source", FOLDERS, ids=lambda source: source.name)
def test_training_resumes_from_an_older_last_pt(tmp_path, source):
    config = load_checkpoint(unpack("last.pt", tmp_path, source)).config
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"num_workers": 0}),
            "train": config.train.model_copy(update={"log_every": 1}),
        }
    )
    stored = torch.load(tmp_path / "last.pt", weights_only=True)["training"]["optimizer"]["state"]
    trainer = Trainer(config, tmp_path, torch.device("cpu"), resume=True)
    assert trainer.iteration == 400
    state = trainer.optimizer.state_dict()["state"]
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[n]["momentum_buffer"], stored[n]["momentum_buffer"]) for n in stored)
    assert any(row["momentum_buffer"].any() for row in stored.values())
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [[row[name] for name in sorted(row) if name.startswith("loss_")] for row in rows if "lr" in row]
    assert np.array(losses) == pytest.approx(expected_of(source)["losses"], rel=1e-3)
    assert load_checkpoint(tmp_path / "last.pt").training["iteration"] == 402


def set_newer_format(path):
    """The same file with a format number from the future."""
    if path.suffix == ".pt":
        torch.save({**torch.load(path, weights_only=True), "format": "upsnet-checkpoint-99"}, path)
    elif path.suffix == ".onnx":
        change_onnx(path, lambda about: {**about, "format": 99})
    else:
        change_pt2(path, lambda about: {**about, "format": 99})


def change_onnx(path, change):
    model = onnx.load(path)
    row = next(row for row in model.metadata_props if row.key == exported_model.METADATA)
    row.value = json.dumps(change(json.loads(row.value)))
    onnx.save(model, path)


def change_pt2(path, change):
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            is_description = name.endswith(exported_model.METADATA)
            file.writestr(name, json.dumps(change(json.loads(content))) if is_description else content)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_from_a_newer_version_is_refused_with_the_remedy(tmp_path, name):
    set_newer_format(unpack(name, tmp_path))
    with pytest.raises(ValueError, match=rf"^\S+{name}: has format 99, expected 1 to \d+; a newer upsnet wrote it"):
        PanopticPredictor.from_checkpoint(tmp_path / name, "cpu")


def test_the_graph_of_a_newer_file_is_not_even_loaded(tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.export, "load", load)
    set_newer_format(unpack("model.pt2", tmp_path))
    with pytest.raises(ValueError, match="a newer upsnet wrote it"):
        PanopticPredictor.from_checkpoint(tmp_path / "model.pt2", "cpu")


def test_a_newer_checkpoint_is_refused_as_weights_to_begin_with(tmp_path):
    set_newer_format(unpack("model.pt", tmp_path))
    with pytest.raises(ValueError, match="a newer upsnet wrote it"):
        read_weights(tmp_path / "model.pt")


def test_a_newer_last_pt_is_an_error_and_not_replaced_by_an_older_one(tmp_path):
    config = load_checkpoint(unpack("last.pt", tmp_path)).config
    shutil.copy(tmp_path / "last.pt", tmp_path / "last-00000300.pt")
    set_newer_format(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match="a newer upsnet wrote it"):
        Trainer(config, tmp_path, torch.device("cpu"), resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("key", ["config", "categories", "weights", "metrics", "training"])
@pytest.mark.parametrize("value", ["absent", 3, [1]])
def test_a_damaged_checkpoint_is_one_line_that_names_it(tmp_path, key, value):
    values = torch.load(unpack("model.pt", tmp_path), weights_only=True)
    if value == "absent":
        del values[key]
    else:
        values[key] = value
    torch.save(values, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt") as error:
        load_checkpoint(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["", "x", "1" * 5000, "-1", "1.0"])
def test_an_odd_format_is_no_checkpoint_of_this_project(tmp_path, number):
    values = torch.load(unpack("model.pt", tmp_path), weights_only=True)
    torch.save({**values, "format": f"upsnet-checkpoint-{number}"}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("change", [lambda about: [], lambda about: None, lambda about: {}, *(
    lambda about, key=key, value=value: {**about, key: value}
    for key in ("config", "categories", "network_size", "batch_size", "format") for value in ("x", True, {"a": 1})
)])  # fmt: skip
def test_a_damaged_description_is_one_line_that_names_the_file(tmp_path, change):
    change_onnx(unpack("model.onnx", tmp_path), change)
    with pytest.raises(ValueError, match=r"model\.onnx") as error:
        PanopticPredictor.from_checkpoint(tmp_path / "model.onnx", "cpu")
    assert "\n" not in str(error.value)


@pytest.fixture
def first_step(monkeypatch):
    """Puts a step before all others: it renames one key and one parameter of format 1."""

    def rename_old_weights(weights):
        return {key.replace("backbone.stem.", "backbone.conv1."): value for key, value in weights.items()}

    monkeypatch.setattr(migrate, "STEPS", (rename_key("train.learning_rate", "train.lr"), *migrate.STEPS))
    monkeypatch.setattr(file_format, "WEIGHT_STEPS", (rename_old_weights, *file_format.WEIGHT_STEPS))


def with_old_key(config):
    train = {("learning_rate" if key == "lr" else key): value for key, value in config["train"].items()}
    return {**config, "train": train}


def test_a_renamed_key_and_parameter_are_migrated(tmp_path, expected, first_step):
    path = unpack("model.pt", tmp_path)
    values = torch.load(path, weights_only=True)
    weights = {key.replace("backbone.conv1.", "backbone.stem."): value for key, value in values["weights"].items()}
    torch.save({**values, "config": with_old_key(values["config"]), "weights": weights}, path)
    found = load_checkpoint(path)
    assert found.config.train.lr == values["config"]["train"]["lr"]
    assert torch.equal(found.weights["backbone.conv1.weight"], values["weights"]["backbone.conv1.weight"])
    save_checkpoint(path, found)
    assert torch.load(path, weights_only=True)["format"] == f"upsnet-checkpoint-{migrate.current_format()}"
    again = load_checkpoint(path)
    assert again.config == found.config
    assert len(PanopticPredictor.from_checkpoint(path, "cpu")(expected["image"]).segments) >= 7
    torch.save({**values, "weights": weights}, path)
    read = read_weights(path).tensors
    assert torch.equal(read["backbone.conv1.weight"], values["weights"]["backbone.conv1.weight"])


@pytest.mark.parametrize(("name", "change"), [("model.onnx", change_onnx), ("model.pt2", change_pt2)])
def test_an_exported_file_with_a_renamed_key_is_migrated(tmp_path, expected, first_step, name, change):
    path = unpack(name, tmp_path)
    change(path, lambda about: {**about, "config": with_old_key(about["config"])})
    assert len(PanopticPredictor.from_checkpoint(path, "cpu")(expected["image"]).segments) >= 7


def test_a_file_of_today_is_not_migrated_again(tmp_path, first_step):
    path = unpack("model.pt", tmp_path)
    save_checkpoint(path, load_checkpoint(path))
    values = torch.load(path, weights_only=True)
    torch.save({**values, "config": with_old_key(values["config"])}, path)
    with pytest.raises(ValueError, match=r"unknown key .train\.learning_rate."):
        load_checkpoint(path)


def test_every_format_has_a_step_for_the_config_and_one_for_the_weights():
    assert len(file_format.WEIGHT_STEPS) == len(migrate.STEPS)
    assert all(folder.is_dir() for folder in FOLDERS)


def test_an_older_checkpoint_resumes_with_todays_key(tmp_path, first_step):
    path = unpack("last.pt", tmp_path)
    values = torch.load(path, weights_only=True)
    torch.save({**values, "config": with_old_key(values["config"])}, path)
    config = parse_config(with_old_key(values["config"]), ["data.num_workers=0"], source="test", file_format=1)
    assert Trainer(config, tmp_path, torch.device("cpu"), resume=True).iteration == 400
    other = config.train.model_copy(update={"lr": 1.0})
    with pytest.raises(ValueError, match=r"--resume: train\.lr is 1\.0, expected"):
        Trainer(config.model_copy(update={"train": other}), tmp_path, torch.device("cpu"), resume=True)


@pytest.mark.slow
def test_the_files_of_the_next_format_can_be_made(tmp_path):
    command = [sys.executable, FORMAT1.parent / "make.py", tmp_path / "format", "--steps", "30"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert {path.name for path in (tmp_path / "format").iterdir()} == {path.name for path in FORMAT1.iterdir()}
    assert sum(path.stat().st_size for path in (tmp_path / "format").iterdir()) < 2e6
