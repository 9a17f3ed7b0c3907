# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .model import DataUri

__all__ = ["curve", "dots"]

MAX_NAME = 24  # letters of a label
INK = "#1b4f72"
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10, "font.family": "sans-serif"}


def curve(points: Sequence[tuple[float, float]], name: str) -> DataUri:
    """A score against the epoch; ``points`` are pairs of both."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=INK, marker="o" if len(points) <= 40 else None, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def dots(values: Mapping[str, Sequence[float]], name: str) -> DataUri:
    """The score of every case as a dot, with a line at the median, in one row for each label."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(values)), layout="constrained")
        axes = figure.subplots()
        for row, scores in enumerate(values.values()):
            ordered = sorted(scores)
            heights = [row + 0.22 * ((index % 5) - 2) / 2 for index in range(len(ordered))]  # so that all are seen
            axes.plot(ordered, heights, "o", color=INK, alpha=0.55, markersize=5, markeredgewidth=0)
            if ordered:
                middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
                axes.plot([middle] * 2, [row - 0.4, row + 0.4], color="black", linewidth=2)
        names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in values]
        axes.set_yticks(range(len(values)), names, parse_math=False)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlabel(name, parse_math=False)
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def _svg(figure: Figure) -> DataUri:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return DataUri(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}")
