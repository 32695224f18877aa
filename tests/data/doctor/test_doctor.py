"""Each fault, planted alone into a data set without one, is found under its name and under no other."""

import shutil

import pytest

from upsnet.data.coco import CocoPanoptic
from upsnet.data.doctor.checks import CHECKS
from upsnet.data.doctor.coco_files import read_coco
from upsnet.data.doctor.diagnosis import Source, diagnose
from upsnet.data.doctor.repair import repair

from .planted import FAULTS, json_of, write_set


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    write_set(root)
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def examine(root, **options):
    sources = {split: Source(read_coco(json_of(root, split), root / split)) for split in ("train", "val")}
    return diagnose(sources, workers=1, progress=False, **options)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found(diagnosis):
    return {finding.check.name for finding in diagnosis.findings}


def test_nothing_is_found_where_nothing_is_wrong(clean):
    assert not found(examine(clean))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_a_copy_is_without_errors(root, tmp_path, name):
    plant, expected = FAULTS[name]
    plant(root)
    before = contents(root)
    diagnosis = examine(root)
    assert found(diagnosis) == expected
    lines = repair(diagnosis, tmp_path / "fixed")
    by_hand = {check for check in expected if CHECKS[check].level == "error" and "--fix" not in CHECKS[check].remedy}
    assert contents(root) == before, "the original is never touched"
    again = examine(tmp_path / "fixed")
    assert {f.check.name for f in again.findings if f.check.level == "error"} == by_hand
    assert any(check in line for line in lines for check in by_hand) or not by_hand
    if not by_hand:
        for split in ("train", "val"):
            data = CocoPanoptic(tmp_path / "fixed" / split, json_of(tmp_path / "fixed", split))
            assert all(data[i].segment_map.any() or "void" in name for i in range(len(data)))
