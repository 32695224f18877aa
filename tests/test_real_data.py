"""Real COCO images through the recipe for COCO, and the README's commands."""

import json
import re
import subprocess

import pytest

from tests.conftest import ROOT
from tests.metrics.test_panoptic_quality import peer_scores
from upsnet.config import load_config
from upsnet.metrics.score_files import evaluate_files


def coco_overrides(real_data):
    folder = real_data / "coco_sample"
    annotation = next((folder / "annotations").glob("panoptic_*.json"))
    source = f"{{format: coco, image_dir: {folder / 'val2017'}, annotation_file: {annotation}}}"
    return [f"data.train={source}", f"data.val={source}", "data.num_workers=0", "model.backbone.weights=null"]


@pytest.mark.slow
def test_the_coco_recipe_learns_on_two_real_images(real_data, run_tool, tmp_path):
    """800/1333, ResNet-50 from random weights (group norm in place of the frozen statistics of pretrained ones)."""
    options = [
        *coco_overrides(real_data), "model.backbone.norm=gn", "model.backbone.freeze_at=0", "train.batch_size=2",
        "train.iterations=6", "train.warmup_iterations=0", "train.lr=0.01", "train.clip_gradient=5",
        "train.log_every=1", "train.evaluate_every=6", "evaluate.panels=0",
    ]  # fmt: skip
    code, _, err = run_tool("train", "--config", ROOT / "configs/coco_r50.yaml", "--output", tmp_path / "run", *options)
    assert code == 0, err
    weights = load_config(ROOT / "configs/coco_r50.yaml").model.loss.weights()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    totals = [sum(weights[k] * v for k, v in row.items() if k in weights) for row in rows if "loss_mask" in row]
    assert totals[-1] < 0.8 * totals[0]


def test_written_predictions_score_alike_here_and_with_the_peer(real_data, run_tool, tmp_path):
    """A small model on the real images; its COCO-panoptic files by our evaluator and by cityscapesscripts."""
    options = [
        *coco_overrides(real_data), "model.backbone.name=resnet18", "model.backbone.width=16", "model.backbone.norm=gn",
        "model.backbone.freeze_at=0", "model.fpn_channels=16", "model.semantic.channels=16",
        "model.rpn.pre_nms_train=100", "model.rpn.post_nms_train=50", "model.instance.roi_samples=16",
        "model.instance.box_channels=32", "model.instance.mask_channels=16",
        "model.panoptic.stuff_area_limit=64", "data.augment.short_sides=[200]",
        "data.test_short_side=200", "train.batch_size=2", "train.iterations=12", "train.lr=0.02",
        "train.clip_gradient=5", "train.warmup_iterations=0", "train.steps=[]", "train.evaluate_every=12",
        "train.checkpoint_every=12",
        "evaluate.panels=0", "evaluate.instance=false", "train.precision=fp32",
    ]  # fmt: skip
    code, _, err = run_tool("train", "--config", ROOT / "configs/coco_r50.yaml", "--output", tmp_path / "run", *options)
    assert code == 0, err
    code, _, err = run_tool("evaluate", "--checkpoint", tmp_path / "run/model.pt", "--output", tmp_path / "eval")
    assert code == 0, err
    gt = next((real_data / "coco_sample" / "annotations").glob("panoptic_*.json"))
    pred = tmp_path / "eval" / "predictions" / "panoptic.json"
    ours = json.loads((tmp_path / "eval" / "metrics.json").read_text())["panoptic"]
    files, _ = evaluate_files(gt, pred, progress=False)
    assert files["panoptic"] == ours
    for category, row in peer_scores(gt, pred).items():
        for key in ("iou", "tp", "fp", "fn"):
            assert ours["per_class"][str(category)][key] == pytest.approx(getattr(row, key), abs=1e-9)


def test_the_commands_of_the_readme_exist(upsnet_command):
    """Every command, option, config and `make` target that the README names is real."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(
        r"^(?:torchrun --nproc-per-node \d+ -m )?upsnet (.*?)(?:  +#.*)?$", text.replace("\\\n", " "), re.MULTILINE
    )
    assert len(commands) >= 12
    helps = {}
    for command in commands:
        name, *words = command.split()
        form = words[:1] if name == "convert" else []
        helps[name] = helps.get(name) or upsnet_command(name, *form, "--help")[1]
        for option in (word for word in words if word.startswith("--")):
            assert option in helps[name], command
        for config in re.findall(r"--config ([a-z]\w+)", command):
            load_config(config)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_repository_speaks_of_the_project_alone():
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", "") and path.is_file() and name != ".ci/run":
            assert "../" + "shared" not in path.read_text(), name
