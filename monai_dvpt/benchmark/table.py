# SPDX-License-Identifier: Apache-2.0
"""Tables that read well as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown_table"]


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
