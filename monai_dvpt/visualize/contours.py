# SPDX-License-Identifier: Apache-2.0
"""Contours of labels on a slice."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

__all__ = ["label_colour", "plot_contours"]

WIDTH, DPI = 3.2, 110  # of a picture, in inches


def plot_contours(picture: np.ndarray, truth: np.ndarray, answer: np.ndarray, aspect: float = 1.0) -> Figure:
    """
    A picture with the contour of every label: a solid line in the truth, a dashed one with a white core in the answer,
    each label in its colour of :func:`label_colour`.

    Args:
        picture: bytes of shape (rows, columns) or (rows, columns, 3).
        truth, answer: label values of shape (rows, columns).
        aspect: height of a pixel over its width.

    Returns:
        the figure, drawn without a display.
    """
    rows, columns = truth.shape
    height = min(max(WIDTH * rows * aspect / columns, WIDTH / 3), WIDTH * 2)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect)
    y, x = (np.arange(-1, side + 1) for side in truth.shape)
    for value in np.union1d(np.unique(truth), np.unique(answer)):
        if value == 0:
            continue
        colour = label_colour(int(value))
        for label_map, style, edge in ((truth, "solid", colour), (answer, "dashed", "white")):
            inside = np.pad(label_map == value, 1).astype(float)  # so that a contour closes at the border
            if inside.any():
                lines = axes.contour(x, y, inside, levels=[0.5], colors=[edge], linewidths=1.5, linestyles=[style])
                lines.set_path_effects([withStroke(linewidth=3, foreground="black" if style == "solid" else colour)])
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.axis("off")
    return figure


def label_colour(value: int) -> str:
    """The colour of a label by its value, 1 or more, as "#rrggbb"; there are ten."""
    return to_hex(colormaps["tab10"]((value - 1) % 10))
