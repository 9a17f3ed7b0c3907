# SPDX-License-Identifier: Apache-2.0
"""Results as tables that read well as text and as Markdown, and as CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_dvpt.benchmark.machine import machine_facts
from monai_dvpt.utils import write_csv

__all__ = ["Column", "show_results", "table_lines"]


class Column(NamedTuple):
    """
    A column of a table. A number is multiplied by ``factor`` and formatted by ``form``; where the result has its least
    and most value too (``key_min``, ``key_max``), they follow in brackets. Columns without ``form`` are text.
    """

    title: str
    key: str
    form: str = ""
    factor: float = 1

    def cell(self, result: Mapping[str, Any]) -> str:
        value = result[self.key]
        if value is None:
            return "-"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, list):
            return ", ".join(value)
        if not self.form:
            return value
        keys = [key for key in (self.key, f"{self.key}_min", f"{self.key}_max") if key in result]
        middle, *ends = (format(result[key] * self.factor, self.form) for key in keys)
        return f"{middle} ({' to '.join(ends)})" if ends else middle


def table_lines(columns: Sequence[Column], results: Sequence[Mapping[str, Any]], transposed: bool = False) -> list[str]:
    """Lines of an aligned Markdown table: a row for each result or, ``transposed``, a column for each."""
    rows: list[Sequence[str]] = [[column.title, *map(column.cell, results)] for column in columns]
    right = [False, *[True] * len(results)] if transposed else [bool(column.form) for column in columns]
    if not transposed:
        rows = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in rows
    ]
    rule = "|".join("-" * (width + 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True))
    return [lines[0], f"|{rule}|", *lines[1:]]


def show_results(
    lines: Sequence[str], notes: str, results: Sequence[Mapping[str, Any]], path: Path | None, **facts: str
) -> None:
    """Prints lines, notes and the facts on which the times depend; writes results with these facts to a CSV file."""
    machine = {**machine_facts(), **facts}
    print("\n".join([*lines, textwrap.fill(notes, 120, break_on_hyphens=False)]))
    print("Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if path is not None:
        rows = [{**result, **machine} for result in results]
        texts = [{k: "+".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        write_csv(path, list(rows[0]), texts)
