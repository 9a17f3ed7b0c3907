# SPDX-License-Identifier: Apache-2.0
"""Tables that read well as text and as Markdown, and their CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.utils import atomic_path

__all__ = ["cell_text", "machine_line", "markdown_table", "write_csv"]


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """
    Lines of a Markdown table whose columns are aligned.

    Args:
        rows: cells, the head first.
        right: for every column, whether it is aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(right))]
    lines = [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (width + 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True))
    return [lines[0], f"|{rule}|", *lines[1:]]


def cell_text(value: Any, form: str) -> str:
    """A value of a result in a table; ``form`` is that of a number or a text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else format(value, form)


def machine_line(machine: Mapping[str, Any]) -> str:
    """What the times depend on, in one line."""
    return "Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items())


def write_csv(path: Path, results: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """Writes results, all with the same keys, each followed by what its times depend on."""
    rows = [{**result, **machine} for result in results]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: "+".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
