"""What an installed package needs: declared imports, configs, and commands that start without torch."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from tests.conftest import ROOT
from upsnet.cli.main import COMMANDS
from upsnet.config import find_config, list_configs, load_config
from upsnet.config import load as config_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = (ROOT / "requirements.txt").read_text().split("\n")
OPTIONAL = {name: PROJECT["optional-dependencies"][name] for name in ("onnx", "wandb", "supervision", "timm")}
WITH_TORCH = {"triton"}
"""GPU builds of torch install it; the package checks that it is installed before it imports it."""
USES_EXTRA = {"export/onnx_ops.py", "export/onnx_fusion.py", "export/onnx_grouping.py", "export/onnx_tiles.py"}
"""Imported only when a file is exported to ONNX."""


def names_of(requirements):
    return {re.split(r"[<>=!~\[ ;]", line)[0].lower().replace("_", "-") for line in requirements if line}


def imported_modules(path):
    """(top-level module, whether the import is inside a function or a `try`) for each import of another package."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.Try)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "upsnet":
                yield top, id(node) in lazy


@pytest.mark.parametrize("folder", ["upsnet", "tools", "datasets"])
def test_every_import_is_declared(folder):
    distributions = metadata.packages_distributions()
    required, extra = names_of(REQUIRED), names_of(line for lines in OPTIONAL.values() for line in lines)
    undeclared = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for module, is_lazy in imported_modules(path):
            providers = {name.lower().replace("_", "-") for name in distributions.get(module, [module])}
            may_use_extra = is_lazy or str(path.relative_to(ROOT / folder)) in USES_EXTRA
            if not (providers & required or (may_use_extra and providers & extra) or module in WITH_TORCH):
                undeclared.append((str(path.relative_to(ROOT)), module))
    assert not undeclared


def test_no_requirement_is_unused():
    distributions = metadata.packages_distributions()
    used = {module for path in (ROOT / "upsnet").rglob("*.py") for module, _ in imported_modules(path)}
    providers = {name.lower().replace("_", "-") for module in used for name in distributions.get(module, [])}
    assert names_of(REQUIRED) <= providers | {"tensorboard"}, "a requirement is not imported; remove it"


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_immediate(words):
    code = (
        "import sys\nfrom upsnet.cli.main import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "slow = {'torch', 'cv2', 'numba', 'torchvision'} & sys.modules.keys()\n"
        "assert not slow, slow\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "upsnet" in done.stdout


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, upsnet; assert 'torch' not in sys.modules; upsnet.PanopticPredictor; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["CategorySet", "PanopticPredictor", "Segment", "__version__"])
def test_public_names_are_found_and_others_are_not(name):
    import upsnet

    assert getattr(upsnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        _ = upsnet.Predictor


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("shapes_r18") == ROOT / "configs" / "shapes_r18.yaml"
    assert load_config("shapes_r18", ["train.iterations=300"]).train.iterations == 300
    assert list(list_configs()) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes_r18").write_text("seed: x")
    with pytest.raises(ValueError, match="shapes_r18: key"):
        load_config("shapes_r18")


@pytest.mark.parametrize("wrong", ["shape_r18", "configs/shapes_r18.yml", "shapes_r81.yaml"])
def test_a_config_that_is_nowhere_is_an_error_with_the_nearest_name(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{wrong}: no such config file; did you mean .*shapes_r18"):
        load_config(wrong)


def test_installed_configs_come_before_those_beside_the_package(tmp_path, monkeypatch):
    for folder in ("package/upsnet/configs", "package/configs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.yaml").touch()
    folders = (tmp_path / "package/upsnet/configs", tmp_path / "package/configs")
    monkeypatch.setattr(config_files, "CONFIG_FOLDERS", folders)
    assert find_config("a").parent == folders[0]
    (folders[0] / "a.yaml").unlink()
    assert find_config("a").parent == folders[1]
