"""The layers of ARCHITECTURE.md: who may import whom."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "upsnet"
LAYERS = {
    "version": 0, "errors": 0, "files": 0, "structures": 0, "data.categories": 0,
    "config": 0, "config_model": 0, "config_errors": 0,
    "ops": 1,
    "losses": 2, "data": 2,
    "models": 3, "metrics": 3,
    "engine": 4, "inference": 4,
}  # fmt: skip
CONFIG_READERS = ("models.build", "data.loader", "engine")


def layer(module: str) -> int:
    for name in sorted(LAYERS, key=len, reverse=True):
        if module == name or module.startswith(name + "."):
            return LAYERS[name]
    raise AssertionError(f"{module} belongs to no layer")


def imports():
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("upsnet."):
                yield module, node.module.removeprefix("upsnet.")


def test_no_module_imports_from_a_higher_layer():
    wrong = [(a, b) for a, b in imports() if a != "__init__" and layer(b) > layer(a)]
    assert not wrong


def test_only_the_named_modules_read_the_config():
    wrong = [a for a, b in imports() if b == "config" and not a.startswith(CONFIG_READERS)]
    assert not wrong


def test_subpackage_inits_are_empty():
    assert not [p for p in PACKAGE.rglob("*/__init__.py") if p.read_text()]


def test_no_eval_no_bare_except_no_print():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
                assert node.func.id != "print" or path.name == "errors.py", path
