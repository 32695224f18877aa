"""The import rule of ARCHITECTURE.md. Imports inside functions count; imports under TYPE_CHECKING do not."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "upsnet"
GROUPS = (
    ("version", "text"),
    ("json_values", "class_edits"),
    ("structures", "categories", "config"),
    ("ops",),
    ("io",),
    ("data", "models"),
    ("metrics",),
    ("export",),
    ("inference",),
    ("report", "convert", "doctor"),
    ("engine",),
    ("cli",),
    ("__init__", "__main__"),
)
"""Top-level packages, lowest first. A package may import itself and packages of lower groups."""
LEVEL = {name: level for level, group in enumerate(GROUPS) for name in group}
RUN_CONFIG_READERS = ("models.build", "models.checkpoint", "data.loader", "export.", "doctor.", "engine.", "cli.")
WITH_RE_EXPORTS = ("__init__", "config", "categories", "metrics")


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def only_for_types(tree):
    """The import statements below `if TYPE_CHECKING:`, which never run."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    return {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}


def imports_of(module):
    """(imported module, imported name) for each import of this package."""
    tree = ast.parse(MODULES[module].read_text())
    skipped = only_for_types(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, expected an absolute one"
            if node.module and node.module.split(".")[0] == "upsnet":
                source = node.module.removeprefix("upsnet").lstrip(".")
                for alias in node.names:
                    full = f"{source}.{alias.name}".lstrip(".")
                    yield (full, "") if full in MODULES else (source or "__init__", alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "upsnet":
                    yield alias.name.removeprefix("upsnet").lstrip(".") or "__init__", ""


GRAPH = {module: {name for name, _ in imports_of(module)} for module in MODULES}


def top(module):
    return module.split(".")[0]


def test_every_package_has_a_place():
    assert {top(module) for module in MODULES} == set(LEVEL)


def test_imports_name_modules_that_exist():
    unknown = {(module, name) for module, names in GRAPH.items() for name in names if name not in MODULES}
    assert not unknown


def test_no_module_imports_from_a_higher_package():
    wrong = [(a, b) for a, bs in GRAPH.items() for b in bs if top(a) != top(b) and LEVEL[top(b)] >= LEVEL[top(a)]]
    assert not wrong


def test_packages_have_no_cycle():
    packages = {}
    for module, names in GRAPH.items():
        packages.setdefault(top(module), set()).update(top(name) for name in names if top(name) != top(module))
    TopologicalSorter(packages).prepare()


def test_files_have_no_cycle():
    TopologicalSorter(GRAPH).prepare()


def test_only_the_named_modules_read_the_config_of_a_run():
    """Others take a section: they import names such as `RPNConfig`, and neither `Config` nor a module of `config`."""
    readers = (*RUN_CONFIG_READERS, "config", "models.file_format")
    wrong = [
        (module, source, name)
        for module in MODULES
        if module != "__init__" and not module.startswith(readers)
        for source, name in imports_of(module)
        if top(source) == "config" and not re.fullmatch(r"\w+Config", name)
    ]
    assert not wrong


def test_no_import_hides_from_this_test():
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "__import__" not in names, module
        assert "import_module" not in names or module in ("__init__", "metrics", "cli.main"), module
        assigned = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        assert "TYPE_CHECKING" not in {node.id for node in assigned}, module
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.split(".")[0] == "upsnet"], f"{module}: use from"
            if isinstance(node, ast.ImportFrom):
                assert "*" not in [alias.name for alias in node.names], module


def test_packages_without_re_exports_have_an_empty_init():
    inits = [p for p in PACKAGE.rglob("__init__.py") if module_name(p) not in WITH_RE_EXPORTS]
    assert not [p for p in inits if p.read_text()]


def test_no_eval_no_bare_except_no_print():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
                assert node.func.id != "print" or path.parent.name == "cli", path
