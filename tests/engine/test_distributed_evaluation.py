"""Two and three processes score as one does, bit for bit."""

import json
import multiprocessing
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from tests.conftest import TINY
from tests.engine.processes import needs_fork
from upsnet.config import parse_config
from upsnet.data.loader import open_dataset
from upsnet.engine.evaluate import evaluate
from upsnet.ops.id_maps import segment_geometry
from upsnet.ops.mask_paste import paste_in_windows
from upsnet.ops.sizes import MULTIPLES_OF_32
from upsnet.structures import Instances, PanopticOutput

IMAGES = 7
SLOTS = 12


class NoisyTruth:
    """Stands for a model: shifts the truth and changes some classes, by chance that depends on the image alone."""

    training = False
    tasks = frozenset({"panoptic", "semantic", "instance"})
    input_form = MULTIPLES_OF_32

    def eval(self):
        return self

    def train(self, mode):
        return self

    def predict(self, batch, **_):
        maps, classes, semantic = [], torch.zeros(len(batch), SLOTS, dtype=torch.long), []
        instances = []
        for row, truth in enumerate(batch.truths):
            rng = np.random.default_rng(int(truth.image_id) + 5)
            ids = np.roll(truth.segment_map, rng.integers(0, 4, 2), (0, 1))
            kinds = np.where(
                rng.random(len(truth.classes)) < 0.2, rng.integers(0, 7, len(truth.classes)), truth.classes
            )
            maps.append(torch.from_numpy(np.where(rng.random(ids.shape) < 0.02, 0, ids)))
            classes[row, : len(kinds)] = torch.from_numpy(kinds)
            semantic.append(torch.from_numpy(np.concatenate([[0], kinds])[ids]))
            _, boxes = segment_geometry(ids, len(kinds))
            things = np.flatnonzero(kinds >= 3)
            count = len(things)
            scores = torch.from_numpy(rng.integers(1, 4, count) / 4).float()
            masks, valid = torch.full((count, 7, 7), 3.0), torch.ones(count, dtype=torch.bool)
            windows = partial(paste_in_windows, masks, torch.from_numpy(boxes[things]).float(), valid, truth.size)
            instances.append(Instances(scores, torch.from_numpy(kinds[things] - 2), valid, windows))
        return PanopticOutput(maps, classes, torch.ones(len(batch), SLOTS), semantic, instances)


def score(rank, world_size, folder):
    torch.set_num_threads(1)
    if world_size > 1:
        address = f"file://{folder}/store{world_size}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    data = {**TINY["data"], "val": {**TINY["data"]["val"], "num_images": IMAGES}}
    config = parse_config({**TINY, "data": data}, ["evaluate.instance=true"], source="tiny")
    dataset = open_dataset(config.data, "val")
    rows = folder / "rows" / f"{world_size}.json"
    device = torch.device("cpu")
    metrics = evaluate(NoisyTruth(), dataset, config, device, boundary=True, per_image=rows, progress=False)
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(metrics))
    if world_size > 1:
        dist.destroy_process_group()


@needs_fork
def test_any_number_of_processes_gives_the_bits_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    for world_size in (1, 2, 3):
        processes = [context.Process(target=score, args=(rank, world_size, tmp_path)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert len(texts) == 6
    assert len(set(texts.values())) == 1
    metrics = json.loads(texts["1-0.json"])
    rows = [path.read_text() for path in (tmp_path / "rows").glob("*.json")]
    assert len(rows) == 3
    assert len(set(rows)) == 1
    assert len(json.loads(rows[0])["images"]) == IMAGES
    for value in (metrics["panoptic"]["All"]["pq"], metrics["semantic"]["miou"], metrics["instance_ap"]["ap"]):
        assert 0 < value < 95, "a case in which something can differ"
    assert metrics["panoptic"]["boundary"]["All"]["n"] > 3
