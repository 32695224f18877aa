#!/usr/bin/env python
"""Compares training from ImageNet weights with training from random weights, with the same number of steps.

    python benchmarks/transfer.py fruits --weights tf_efficientnet_lite0.pth --output runs/transfer
    python benchmarks/transfer.py nuclei --weights tf_efficientnet_lite0.pth --output runs/transfer
    python benchmarks/transfer.py facades --weights tf_efficientnet_lite0.pth --output runs/transfer --arms pretrained

Needs timm, and the data sets `fruits_nuts`, `nuclei` and `facades_roboflow` in $UPSNET_DATASETS.

- fruits: all images in 3 fixed folds. A model that is trained on the other two folds predicts each fold, and all
  predictions are scored together. Config: `configs/photos_lite0.yaml`.
- nuclei: the validation images of the data set. Config: `configs/nuclei_r18.yaml` with a backbone of timm.
- facades: training on the train folder without the images that have a crop in the valid folder, validation on the valid
  folder. Config: the proposal of `upsnet doctor --write-config`.

The last weights are scored, not the best. Finished trainings are not repeated. Prints one JSON line for each run. For
two arms, also prints the paired difference with its 95 % interval (`upsnet compare`, over seeds and images).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from upsnet import compare_evaluations, evaluate_predictions

CONFIGS = Path(__file__).parents[1] / "configs"
FOLDS = 3
STUFF = "facade,street,vegetation,fence,non-building-infrastructure,traffic-infrastructure"
LITE0 = "timm/tf_efficientnet_lite0"


def main() -> None:
    """Runs the chosen trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["fruits", "nuclei", "facades"])
    parser.add_argument("--weights", type=Path, required=True, help="tf_efficientnet_lite0, with timm's names")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=["random", "pretrained"], default=["random", "pretrained"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    datasets, output = Path(os.environ.get("UPSNET_DATASETS", "datasets")).resolve(), args.output.resolve()
    parts = {"fruits": fruit_folds, "nuclei": nuclei, "facades": facades}[args.data](datasets, output)
    folders: dict[str, list[Path]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            weights = "null" if arm == "random" else str(args.weights.resolve())
            own = [*args.overrides, f"model.backbone.weights={weights}"]
            folders[arm].append(run(args.data, arm, seed, parts, own, output))
    if len(args.arms) == 2:
        found = compare_evaluations(folders["random"], folders["pretrained"])[0]
        print(json.dumps({"data": args.data, "pretrained - random": found["All"]["pq"]}), flush=True)


def run(data: str, arm: str, seed: int, parts: list[tuple[str, list[str]]], overrides: list[str], output: Path) -> Path:
    """Trains and evaluates every part with one seed, and scores their predictions together."""
    target = output / f"{data}_{arm}_{seed}"
    seconds = 0.0
    predicted, truths = [], []
    for name, (config, own) in zip(map(str, range(len(parts))), parts, strict=True):
        folder = target / name
        if not (folder / "evaluation" / "metrics.json").is_file():
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            resume = ["--resume"] if (folder / "last.pt").is_file() else []
            upsnet("train", "--config", config, "--output", folder, *resume, f"seed={seed}", *own, *overrides)
            (folder / "seconds").write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before))
            upsnet("evaluate", "--checkpoint", folder / "last.pt", "--output", folder / "evaluation")
        seconds += float((folder / "seconds").read_text())
        predicted.append(folder / "evaluation" / "predictions" / "panoptic.json")
        truths.append(next(Path(word.split("=")[1]) for word in own if word.startswith("data.val.annotation_file=")))
    truth, predictions = (
        _joined(files, target / f"{kind}.json") for files, kind in ((truths, "gt"), (predicted, "pred"))
    )
    metrics, _ = evaluate_predictions(truth, predictions, target / "evaluation")
    row = {"data": data, "arm": arm, "seed": seed, "cpu_seconds": round(seconds), "machine": platform.processor()}
    for group in ("All", "Things", "Stuff"):
        row[f"pq_{group.lower()}"] = round(metrics["panoptic"][group]["pq"], 2)
    print(json.dumps(row), flush=True)
    return target / "evaluation"


def upsnet(*words: object) -> None:
    """Runs a command of the package."""
    subprocess.run([sys.executable, "-m", "upsnet", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def fruit_folds(datasets: Path, output: Path) -> list[tuple[str, list[str]]]:
    """Configs and overrides of the three folds of all images of fruits_nuts."""
    source, target = datasets / "fruits_nuts", output / "fruits"
    (target / "images").mkdir(parents=True, exist_ok=True)
    (target / "panoptic").mkdir(exist_ok=True)
    documents = [
        json.loads((source / "annotations" / f"panoptic_{split}.json").read_text()) for split in ("train", "val")
    ]
    for split, document in zip(("train", "val"), documents, strict=True):
        for image in document["images"]:
            _link(source / split / image["file_name"], target / "images" / image["file_name"])
        for row in document["annotations"]:
            png = row["file_name"]
            _link(source / "annotations" / f"panoptic_{split}" / png, target / "panoptic" / png)
    joined = _join(documents)
    ids = sorted(image["id"] for image in joined["images"])
    parts = []
    for fold in range(FOLDS):
        held_out = set(ids[fold::FOLDS])
        own = []
        for split in ("train", "val"):
            path = target / f"{split}_{fold}.json"
            path.write_text(json.dumps(_only(joined, held_out if split == "val" else set(ids) - held_out)))
            own += _paths(split, target / "images", path, target / "panoptic")
        parts.append((str(CONFIGS / "photos_lite0.yaml"), own))
    return parts


def nuclei(datasets: Path, output: Path) -> list[tuple[str, list[str]]]:
    """Config and overrides of nuclei, with the backbone of timm."""
    folder = datasets / "nuclei"
    config = yaml.safe_load((CONFIGS / "nuclei_r18.yaml").read_text())
    photos = yaml.safe_load((CONFIGS / "photos_lite0.yaml").read_text())
    config["model"]["backbone"] = {"name": LITE0}
    for key in ("optimizer", "lr", "weight_decay", "layer_decay"):
        if key in photos["train"]:
            config["train"][key] = photos["train"][key]
    config["train"].pop("nesterov")
    config["train"].update(iterations=1000, evaluate_every=1000)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "nuclei.yaml"
    path.write_text(yaml.safe_dump(config))
    own = []
    for split in ("train", "val"):
        own += _paths(split, folder / split, folder / "annotations" / f"panoptic_{split}.json")
    return [(str(path), own)]


def facades(datasets: Path, output: Path) -> list[tuple[str, list[str]]]:
    """Config and overrides of facades_roboflow, without training images that have a crop in the valid folder."""
    source, target = datasets / "facades_roboflow", output / "facades"
    trained, valid = (json.loads((source / name / "_annotations.coco.json").read_text()) for name in ("train", "valid"))
    held_out = {_original(image) for image in valid["images"]}
    kept = {image["id"] for image in trained["images"] if _original(image) not in held_out}
    output.mkdir(parents=True, exist_ok=True)
    if not (target / "annotations" / "panoptic_val.json").is_file():
        train = output / "facades_train.json"
        train.write_text(json.dumps(_only(trained, kept)))
        options = ["--stuff", STUFF, "--no-background", "--output", target]
        upsnet("convert", "coco", "--annotations", train, "--images", source / "train", "--split", "train", *options)
        annotations = source / "valid" / "_annotations.coco.json"
        upsnet("convert", "coco", "--annotations", annotations, "--split", "val", *options)
    config = output / "facades.yaml"
    if not config.is_file():
        upsnet("doctor", target, "--write-config", config)
    return [(str(config), _paths("val", target / "val", target / "annotations" / "panoptic_val.json"))]


def _original(image: dict[str, Any]) -> str:
    name: str = image["file_name"]
    return name.partition("_scaled_")[0]


def _paths(split: str, images: Path, annotations: Path, panoptic: Path | None = None) -> list[str]:
    own = [f"data.{split}.image_dir={images}", f"data.{split}.annotation_file={annotations}"]
    return own if panoptic is None else [*own, f"data.{split}.panoptic_dir={panoptic}"]


def _link(source: Path, target: Path) -> None:
    if not target.exists():
        target.symlink_to(source)


def _only(document: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    images = [image for image in document["images"] if image["id"] in ids]
    annotations = [row for row in document["annotations"] if row["image_id"] in ids]
    return {**document, "images": images, "annotations": annotations}


def _join(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        **documents[0],
        "images": [image for document in documents for image in document.get("images", [])],
        "annotations": [row for document in documents for row in document["annotations"]],
    }


def _joined(files: list[Path], target: Path) -> Path:
    """Joins several JSON files into one; their PNGs are linked in the folder of the same name."""
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    documents = []
    for file in files:
        document = json.loads(file.read_text())
        documents.append(document)
        names = {row["file_name"] for row in document["annotations"]}
        beside = file.with_suffix("")
        pngs = beside if beside.is_dir() else file.parent / "panoptic"
        for name in names:
            _link(pngs / name, folder / name)
    target.write_text(json.dumps(_join(documents)))
    return target


if __name__ == "__main__":
    main()
