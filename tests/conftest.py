"""Small things that many tests need: a config and a model that run in milliseconds, and real data if it is there."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from upsnet.config import Config, parse_config
from upsnet.data.loader import collate, open_dataset
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint

pytest.register_assert_rewrite("tests.engine.processes")

ROOT = Path(__file__).parents[1]

TINY = {
    "data": {
        "train": {"format": "shapes", "num_images": 8, "image_size": [64, 96]},
        "val": {"format": "shapes", "num_images": 3, "image_size": [64, 96], "seed": 1},
        "num_workers": 0,
    },
    "model": {
        "backbone": {"name": "resnet18", "width": 16, "norm": "bn", "freeze_at": 0},
        "fpn_channels": 16,
        "semantic": {"num_layers": 2, "channels": 16},
        "rpn": {
            "anchor_sizes": [[12], [24], [48], [80]],
            "pre_nms": 60,
            "post_nms": 30,
            "pre_nms_train": 60,
            "post_nms_train": 30,
            "samples": 32,
        },
        "instance": {
            "roi_samples": 16,
            "canonical_size": 112,
            "box_channels": 32,
            "mask_channels": 16,
            "mask_layers": 1,
            "max_detections": 12,
        },
        "panoptic": {"stuff_area_limit": 0, "train_slots": 6},
    },
    "train": {
        "iterations": 6,
        "batch_size": 2,
        "lr": 0.02,
        "warmup_iterations": 2,
        "schedule": "cosine",
        "precision": "fp32",
        "log_every": 2,
        "checkpoint_every": 3,
        "evaluate_every": 6,
        "clip_gradient": 5,
    },
    "evaluate": {"batch_size": 2, "panels": 1},
}


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Two threads, or one beside other test processes: threads that wait for a busy core take several times as long."""
    alone = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) == 1
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2 if alone else 1)))


def pytest_collection_modifyitems(items):
    """Runs the files that fork trainings first.

    Exports, onnxruntime and `torch.library.opcheck` start threads in the test process. A process that is forked from it
    later has neither these threads nor a working autograd.
    """
    items.sort(key=lambda item: not hasattr(item.module, "needs_fork"))


@pytest.fixture
def make_config():
    """A function of overrides -> the tiny config."""
    return lambda *overrides: parse_config(TINY, overrides, source="tiny")


@pytest.fixture
def config(make_config) -> Config:
    return make_config()


@pytest.fixture
def dataset(config):
    return open_dataset(config.data, "train")


@pytest.fixture
def model(config, dataset):
    torch.manual_seed(0)
    return build_model(config, dataset.categories)


@pytest.fixture
def batch(dataset):
    return collate([(dataset[0], 10), (dataset[1], 11)], dataset.categories.num_stuff, 32)


def _run_script(path, monkeypatch, capfd, args) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, args)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    return int(end.value.code or 0), *capfd.readouterr()


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Runs `tools/NAME.py` (or another script) in this process; gives exit code, standard output and errors."""

    def run(name: str, *args: object) -> tuple[int, str, str]:
        path = ROOT / (name if name.endswith(".py") else f"tools/{name}.py")
        return _run_script(path, monkeypatch, capfd, args)

    return run


@pytest.fixture
def upsnet_command(monkeypatch, capfd):
    """Runs `upsnet ...` in this process; gives exit code, standard output and errors."""
    return lambda *args: _run_script(ROOT / "upsnet" / "__main__.py", monkeypatch, capfd, args)


@pytest.fixture(scope="session", autouse=True)
def _short_waits():
    """No test needs its files to outlast a power cut, and torch waits 5 s for a data worker that ended badly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


@pytest.fixture
def tiny_yaml(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def checkpoint(tmp_path, model, config, dataset) -> Path:
    """An untrained model's file."""
    path = tmp_path / "checkpoint" / "model.pt"
    save_checkpoint(path, Checkpoint(config, dataset.categories, model.state_dict()))
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped without."""
    folder = os.environ.get("UPSNET_DATASETS")
    if not folder or not (Path(folder) / "coco_sample").is_dir():
        pytest.skip("UPSNET_DATASETS does not name a folder with coco_sample")
    return Path(folder)
