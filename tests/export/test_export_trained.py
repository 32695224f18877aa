"""A trained model, exported in every form, on held-out pictures full of things."""

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.export.test_export import same
from upsnet.config import load_config, parse_config
from upsnet.data.shapes import Shapes
from upsnet.engine.train import Trainer
from upsnet.export.exporter import export_graph
from upsnet.inference.predictor import PanopticPredictor
from upsnet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow
SIZES = ((128, 128), (160, 224), (200, 150), (192, 320), (97, 301))
"""Of the pictures; one size does not suit the graph of fixed size, which makes it fit."""


@pytest.fixture(scope="module", params=["dilated", "deformable"])
def trained(request, tmp_path_factory):
    """A short run on `shapes`."""
    folder = tmp_path_factory.mktemp(request.param)
    options = [f"model.semantic.conv={request.param}", "train.iterations=250", "train.evaluate_every=250"]
    options += ["evaluate.panels=0", "evaluate.instance=false", "data.val.num_images=8"]
    config = load_config(ROOT / "configs/shapes_r18.yaml", options)
    Trainer(config, folder, torch.device("cpu"), resume=False, init=None).run()
    return folder / "model.pt"


@pytest.fixture(scope="module")
def pictures(trained):
    """20 of several sizes, in each of which the model finds at least 5 things."""
    predictor, found = PanopticPredictor.from_checkpoint(trained, "cpu"), []
    for index in range(400):
        picture = Shapes(400, SIZES[index % len(SIZES)], seed=77)[index].image
        if sum(s.is_thing for s in predictor(picture).segments) >= 5:
            found.append(picture)
        if len(found) == 20:
            return found
    raise AssertionError(f"{len(found)} pictures with 5 things")


@pytest.mark.parametrize("size", [None, (224, 320)])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_maps_and_tables_are_those_of_the_model(trained, pictures, tmp_path, suffix, size):
    path = tmp_path / f"model{suffix}"
    agreement = export_graph(trained, path, size=size)
    assert agreement.disagreement == 0
    if size is None:
        assert same(trained, path, pictures) >= 100
        blank = np.full((128, 160, 3), 127, np.uint8)
        same(trained, path, [blank])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_more_candidates_than_slots(trained, pictures, tmp_path, suffix):
    old = load_checkpoint(trained)
    options = ["model.instance.max_detections=4", "model.panoptic.score_threshold=0.05", "model.panoptic.nms_iou=0.9"]
    config = parse_config(old.config.dump(), options, source="fewer slots")
    save_checkpoint(tmp_path / "model.pt", Checkpoint(config, old.categories, old.weights))
    path = tmp_path / f"model{suffix}"
    assert export_graph(tmp_path / "model.pt", path).disagreement == 0
    assert same(tmp_path / "model.pt", path, pictures) >= 40, "slots are taken"
