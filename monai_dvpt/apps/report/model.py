# SPDX-License-Identifier: Apache-2.0
"""What a page is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DataUri",
    "Gallery",
    "Picture",
    "Section",
    "Table",
    "Text",
    "entries",
    "in_words",
    "megabytes",
    "number",
    "seconds",
    "with_interval",
]


class DataUri(str):
    """A picture as ``data:`` URI, made by this package; the only text that a page shows as it is."""


@dataclass(frozen=True)
class Text:
    """A paragraph; a ``warning`` is marked as such."""

    text: str
    warning: bool = False
    kind = "text"


@dataclass(frozen=True)
class Table:
    """
    Rows of text or numbers; the first cell of a row is its heading.

    Attributes:
        caption: what the table shows.
        header: one heading for each column.
        rows: cells.
        folded: whether the reader opens it.
        shades: of each cell but the first, from 0 to 9, or none.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    folded: bool = False
    shades: Sequence[Sequence[int]] = ()
    kind = "table"


@dataclass(frozen=True)
class Picture:
    """A picture, what it shows in words, and the line below it."""

    source: DataUri
    alt: str
    caption: str = ""
    kind = "picture"


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, few if they are ``wide``; with contours there is a legend of labels and their colours."""

    title: str
    pictures: Sequence[Picture]
    labels: Sequence[tuple[str, str]] = ()
    wide: bool = False
    kind = "gallery"


@dataclass
class Section:
    """A part of the page; ``key_facts`` are a name, a value and a remark each, for the top of the page."""

    title: str
    blocks: list[Any] = field(default_factory=list)
    key_facts: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def in_words(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def entries(value: Any) -> list[Any]:
    """The entries of a list of a file; none of what is no list."""
    return list(value) if isinstance(value, list) else []


def number(value: Any, decimals: int = 3) -> str:
    """A number in words: whole ones with separators of thousands, others with ``decimals``; "–" for none."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{decimals}f}" if math.isfinite(value) else "infinite"


def with_interval(value: float, low: float, high: float, decimals: int = 3) -> str:
    """A score with the ends of its interval, if there is one."""
    if math.isnan(low):
        return number(value, decimals)
    return f"{number(value, decimals)} ({number(low, decimals)} to {number(high, decimals)})"


def megabytes(count: Any) -> str:
    """A size in MB of a million bytes, or in kB where that is small."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def seconds(count: float) -> str:
    """A time in the largest fitting unit."""
    if count >= 3600:
        return f"{count / 3600:.1f} h"
    return f"{count / 60:.1f} min" if count >= 60 else f"{count:.1f} s"
