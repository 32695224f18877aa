"""The exported graph gives the model's own segments, at any size that it was exported for."""

import json
import zipfile

import numpy as np
import pytest
import torch

from upsnet import PanopticPredictor
from upsnet.data.predictions import prediction_rows
from upsnet.data.shapes import Shapes
from upsnet.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upsnet.inference import export
from upsnet.inference.deploy import DeployedModel, panoptic_segments
from upsnet.inference.export import compare, export_pt2
from upsnet.models.build import build_model

from ..models.test_upsnet import lively
from ..ops.fusion_cases import METHODS, S, T, random_case

SIZES = ((64, 96), (50, 70), (97, 130), (33, 100))


@pytest.fixture(scope="module")
def lively_checkpoint(tmp_path_factory):
    """An untrained model that finds many things."""
    from upsnet.config import parse_config
    from upsnet.data.shapes import CATEGORIES

    from ..conftest import TINY

    config = parse_config(TINY, ["model.panoptic.score_threshold=0.3"], source="tiny")
    torch.manual_seed(0)
    model = lively(build_model(config, CATEGORIES))
    path = tmp_path_factory.mktemp("lively") / "model.pt"
    save_checkpoint(path, Checkpoint(config, CATEGORIES, model.state_dict()))
    return path


@pytest.fixture(scope="module")
def exported(lively_checkpoint):
    """A graph for any size, verified."""
    path = lively_checkpoint.with_suffix(".pt2")
    return path, export_pt2(lively_checkpoint, path)


def same(checkpoint, path, pictures):
    eager, other = (PanopticPredictor.from_checkpoint(p, "cpu") for p in (checkpoint, path))
    things = 0
    for picture in pictures:
        expected, found = eager(picture), other(picture)
        np.testing.assert_array_equal(found.segment_ids, expected.segment_ids)
        assert prediction_rows(found) == prediction_rows(expected)
        things += sum(s.is_thing for s in found.segments)
    return things


def test_a_graph_of_any_size_predicts_as_the_model_does(lively_checkpoint, exported):
    path, agreement = exported
    assert agreement.disagreement == 0
    assert agreement.instances >= 10, "the case must show something"
    pictures = [Shapes(1, size, seed=9)[0].image for size in SIZES]
    assert same(lively_checkpoint, path, pictures) >= 10


def test_a_graph_without_detections_predicts_as_the_model_does(lively_checkpoint, tmp_path):
    old = load_checkpoint(lively_checkpoint)
    weights = {**old.weights, "instance_head.cls_score.bias": torch.tensor([99.0] + [0.0] * 4)}
    save_checkpoint(tmp_path / "model.pt", Checkpoint(old.config, old.categories, weights))
    assert export_pt2(tmp_path / "model.pt", tmp_path / "model.pt2", size=(64, 96), verify=False) is None
    assert same(tmp_path / "model.pt", tmp_path / "model.pt2", [Shapes(1, (64, 96))[0].image]) == 0


def test_a_graph_of_fixed_size_and_batch_makes_pictures_fit(lively_checkpoint, tmp_path):
    path = tmp_path / "fixed.pt2"
    assert export_pt2(lively_checkpoint, path, size=(96, 128), batch_size=2).disagreement == 0
    predictor = PanopticPredictor.from_checkpoint(path, "cpu")
    for size in ((200, 150), (64, 96)):
        assert predictor(Shapes(1, size)[0].image).segment_ids.shape == size


def test_the_table_describes_the_map(lively_checkpoint):
    checkpoint = load_checkpoint(lively_checkpoint)
    model = DeployedModel(checkpoint.build(), checkpoint.categories)
    picture = torch.from_numpy(Shapes(1, (64, 96))[0].image).permute(2, 0, 1)[None]
    with torch.no_grad():
        found = model(picture, torch.tensor([[64, 96]]), torch.zeros(90, 130))
    ids = found["segment_ids"][0].numpy()
    assert set(np.unique(ids)) - {0} == set((found["valid"][0].nonzero()[:, 0] + 1).tolist())
    for row in found["valid"][0].nonzero()[:, 0].tolist():
        y, x = (ids == row + 1).nonzero()
        assert found["area"][0, row] == len(x)
        assert found["box"][0, row].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        category = checkpoint.categories[checkpoint.categories.channels[int(found["category_id"][0, row])]]
        assert bool(found["is_thing"][0, row]) == category.is_thing
    assert (found["area"][~found["valid"]] == 0).all()
    assert (found["box"][~found["valid"]] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_operator_is_well_formed(method):
    case = random_case(2, 2, 7, (40, 60), (40, 60))
    sizes, canvas = torch.tensor([[40, 60], [33, 50]]), torch.zeros(21, 37)
    torch.library.opcheck(panoptic_segments, (*case, sizes, canvas, S, T, method, 0.3, 0))


def test_the_file_tells_what_it_is(exported):
    with zipfile.ZipFile(exported[0]) as file:
        name = next(n for n in file.namelist() if n.endswith(export.METADATA))
        metadata = json.loads(file.read(name))
    assert metadata["network_size"] is None
    assert {"id", "name", "isthing", "color"} <= metadata["categories"][0].keys()
    assert metadata["config"]["data"]["test_max_side"] == 1333
    assert metadata["versions"]["torch"] == torch.__version__


def test_a_graph_that_disagrees_is_not_written(lively_checkpoint, tmp_path, monkeypatch):
    def other(checkpoint, path, size):
        changed = {k: v + 0.5 * torch.randn_like(v) if "score" in k else v for k, v in checkpoint.weights.items()}
        return compare(Checkpoint(checkpoint.config, checkpoint.categories, changed), path, size)

    monkeypatch.setattr(export, "compare", other)
    with pytest.raises(ValueError, match=r"model\.pt2: not written: .* differs from the model on \d+\.\d+ %"):
        export_pt2(lively_checkpoint, tmp_path / "model.pt2", size=(128, 160))
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_named(lively_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--size 100 96: expected multiples of 32"):
        export_pt2(lively_checkpoint, tmp_path / "m.pt2", size=(100, 96))
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt2: cannot be read as an exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "text.pt2", "cpu")
    with pytest.raises(FileNotFoundError, match=r"none\.pt2: no such exported model"):
        PanopticPredictor.from_checkpoint(tmp_path / "none.pt2", "cpu")
