"""Writes a proposed config: YAML with a comment that gives the reason for each value."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import Any

import yaml

from upsnet.doctor.proposal import Proposal
from upsnet.doctor.verdicts import printable
from upsnet.io.files import atomic_path

WIDTH = 120
"""Columns of a comment."""
INDENT = "  "
NO_BREAK = "\N{NO-BREAK SPACE}"


def require_no_file(path: Path) -> None:
    """Refuses to overwrite a config.

    Raises:
        FileExistsError: there is something at `path`.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path}: exists, expected a new file for --write-config; remove it or name another")


def write_config(path: Path, proposal: Proposal) -> None:
    """Writes the config atomically.

    Raises:
        FileExistsError: there is something at `path`.
    """
    require_no_file(path)
    with atomic_path(path) as temporary:
        temporary.write_text(render(proposal, path), encoding="utf-8")


def commands(path: Path) -> tuple[str, str]:
    """The commands that train with a config, and that measure what this takes."""
    config = shlex.quote(str(path))
    output = shlex.quote(str(Path("runs") / path.stem))
    return f"upsnet train --config {config} --output {output}", f"upsnet train --config {config} --dry-run"


def render(proposal: Proposal, path: Path) -> str:
    """The text of the file.

    Args:
        proposal: what to write.
        path: the file, for the commands in the heading.
    """
    train, measure = commands(path)
    lines = [
        *_comment(f"Proposed by `upsnet doctor` from {proposal.summary}."),
        *_comment("Starting values from sizes and counts of the data; no training was run to choose them."),
        "#",
        f"#   {printable(train)}",
        f"#   {printable(measure)}     # measures time and memory",
        "#",
        *_class_table(proposal),
    ]
    for verdict in proposal.advice:
        lines += ["#", *_comment(str(verdict))]
    return "\n".join([*lines, *_sections(proposal)]) + "\n"


def _class_table(proposal: Proposal) -> list[str]:
    names = [printable(row.name) for row in proposal.classes]
    width = max(len("class"), *map(len, names))
    lines = [f"# {'class':{width}}  kind     train       val   (objects; of stuff: images)"]
    for name, row in zip(names, proposal.classes, strict=True):
        in_val = "-" if row.in_val is None else row.in_val
        lines.append(f"# {name:{width}}  {row.kind}  {row.in_train:8d}  {in_val:>8}")
    return lines


def _sections(proposal: Proposal) -> list[str]:
    """Values in their order. The keys of a section follow each other, so that each section begins once."""
    lines: list[str] = []
    opened: list[str] = []
    for key, value, reason in proposal.values:
        *sections, name = key.split(".")
        common = 0
        while common < min(len(opened), len(sections)) and opened[common] == sections[common]:
            common += 1
        for depth in range(common, len(sections)):
            lines.append(f"{INDENT * depth}{sections[depth]}:")
        opened = sections
        indent = INDENT * len(sections)
        lines += [*_comment(reason, indent), f"{indent}{name}: {_flow(value)}"]
    return lines


def _comment(text: str, indent: str = "") -> list[str]:
    start = f"{indent}# "
    kept = printable(text).replace(" %", NO_BREAK + "%")
    lines = textwrap.wrap(
        kept, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(NO_BREAK, " ") for line in lines]


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]
