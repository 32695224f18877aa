"""Checks of `.pt2` files before torch loads them.

Loading a `.pt2` can run code from the file: torch unpickles sample inputs and weights that ask for it, evaluates
expressions for sizes, and looks up functions by name; a compiled file is machine code. These checks refuse what this
package never writes. They make a crafted file harder to write, not impossible: load only files of people you trust.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from upsnet.io.files import name_fault
from upsnet.text import shown

MAX_JSON_BYTES = 2**28
MAX_BYTES = 2**36
TARGETS = re.compile(
    r"torch\.ops\.(aten|upsnet|torchvision|prims|higher_order)\.\w+(\.\w+)?"
    r"|torch\.(sym_\w+|_check\w*)|math\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
"""Functions that an exported graph of this package may call."""
SYMBOL = re.compile(r"[a-z]+\d+")
FUNCTIONS = re.compile(
    "Add|Mul|Pow|Rational|Integer|Float|Symbol|Dummy|Max|Min|Abs|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv"
    "|FloatTrueDiv|ModularIndexing|Where|TruncToInt|TruncToFloat|FloorToInt|CeilToInt|RoundToInt|RoundDecimal|ToFloat"
    "|PowByNatural|FloatPow|LShift|RShift|BitwiseFn_bitwise_and|BitwiseFn_bitwise_or|Identity|floor|ceiling"
    "|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
)
"""Functions in the expressions of sizes."""
NAMES = re.compile(r"[a-z]+\d+|oo|int_oo|True|False")
"""Names in the expressions of sizes."""
EXPRESSIONS = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.keyword, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def require_harmless(path: Path) -> None:
    """Checks a `.pt2` that is not compiled.

    Raises:
        ValueError: it is no archive of `torch.export`, or holds something that this package never writes.
        zipfile.BadZipFile, OSError: it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        require_plain_names(archive)
        for info in archive.infolist():
            if "/data/sample_inputs/" in f"/{info.filename}" and info.file_size:
                _require_tensors(archive.read(info), info.filename)
            elif info.filename.endswith(".json"):
                if info.file_size > MAX_JSON_BYTES:
                    raise ValueError(f"{shown(info.filename)} has {info.file_size} bytes, expected a graph")
                _require_plain_graph(json.loads(archive.read(info)), info.filename)


def require_plain_names(archive: zipfile.ZipFile) -> None:
    """Checks the names and the sizes in an archive.

    Raises:
        ValueError: a name leaves the folder that the archive is unpacked into, a file is compressed (torch stores files
            as they are), or they are too large.
    """
    for info in archive.infolist():
        if (fault := name_fault(info.filename.rstrip("/"))) is not None:
            raise ValueError(f"file {shown(info.filename)} in the archive {fault}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"file {shown(info.filename)} in the archive is compressed, expected it as it is")
    if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes in the archive")


def _require_tensors(data: bytes, name: str) -> None:
    """Sample inputs of older files must load as tensors; otherwise torch would unpickle whatever they hold."""
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        raise ValueError(f"{name} holds more than tensors") from None


def _require_plain_graph(value: Any, name: str) -> None:
    """Checks the functions and expressions in a JSON file of the archive."""
    for holder in _dictionaries(value):
        if holder.get("use_pickle") not in (None, False):
            raise ValueError(f"{name} asks to unpickle a tensor")
        if isinstance(target := holder.get("target"), str) and "inputs" in holder and not TARGETS.fullmatch(target):
            raise ValueError(f"{name} calls {shown(target)}, which no exported model of this package calls")
        expression = holder.get("expr_str")
        if isinstance(expression, str) and not is_plain_expression(expression):
            raise ValueError(f"{name} has the expression {shown(expression)}, expected arithmetic")
        for guard in holder.get("guards_code") or ():
            if not isinstance(guard, str) or "__" in guard or ";" in guard or "import" in guard:
                raise ValueError(f"{name} has the guard {shown(guard)}, expected a comparison of sizes")


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            yield found
            left.extend(found.values())
        elif isinstance(found, list):
            left.extend(found)


def is_plain_expression(text: str) -> bool:
    """Whether an expression of sizes is arithmetic on symbols and numbers, with functions of `FUNCTIONS` only."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    functions = {id(call.func) for call in calls}
    names = {id(call.args[0]) for call in calls if call.args and _name_of(call.func) in ("Symbol", "Dummy")}
    for node in nodes:
        allowed: object = True
        if not isinstance(node, EXPRESSIONS):
            return False
        if isinstance(node, ast.Name):
            allowed = FUNCTIONS.fullmatch(node.id) if id(node) in functions else NAMES.fullmatch(node.id)
        elif isinstance(node, ast.Constant):
            is_symbol = id(node) in names and isinstance(node.value, str) and SYMBOL.fullmatch(node.value)
            allowed = is_symbol or isinstance(node.value, int | float)
        elif isinstance(node, ast.Call):
            allowed = FUNCTIONS.fullmatch(_name_of(node.func))
        else:
            allowed = not isinstance(node, ast.keyword) or isinstance(node.value, ast.Constant)
        if not allowed:
            return False
    return True


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
