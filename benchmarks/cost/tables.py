# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.results import Column, table_lines

from .variants import REFERENCE

__all__ = ["cost_figure", "cost_tables", "tokens_figure", "tokens_table"]

COLUMNS = [
    Column("method", "method"),
    Column("step, ms", "step_seconds", ".1f", 1e3),
    Column(f"/ {REFERENCE}", "step_seconds_ratio", ".2f"),
    Column("fastest", "step_seconds_fastest_ratio", ".2f"),
    Column("saved, MB", "saved_bytes", ".1f", 1e-6),
    Column("ratio", "saved_bytes_ratio", ".3f"),
    Column("cached, MB", "cached_bytes", ".1f", 1e-6),
    Column("peak, MB", "peak_bytes", ".0f", 1e-6),
    Column("step, GFLOP", "step_flops", ".1f", 1e-9),
    Column("ratio", "step_flops_ratio", ".3f"),
    Column("inference, ms", "inference_seconds", ".1f", 1e3),
    Column(f"/ {REFERENCE}", "inference_seconds_ratio", ".2f"),
    Column("fastest", "inference_seconds_fastest_ratio", ".2f"),
    Column("FLOP ratio", "inference_flops_ratio", ".3f"),
    Column("kept, MB", "kept_bytes", ".2f", 1e-6),
    Column("trained in encoder", "encoder_parameters", ",.0f"),
    Column("head, decoder", "head_parameters", ",.0f"),
]
TOKEN_COLUMNS = [
    Column("tokens", "tokens", ",.0f"),
    Column("forward and backward, ms", "seconds", ".1f", 1e3),
    Column("GFLOP", "flops", ".3f", 1e-9),
    Column("saved, MB", "saved_bytes", ".2f", 1e-6),
    Column("saved per token, bytes", "saved_bytes_per_token", ".0f"),
]


def cost_tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table for each network, one row for each variant."""
    lines = []
    for network, rows in _by_network(results).items():
        lines += [f"## {network}, batch {rows[0]['batch']}", "", *table_lines(COLUMNS, rows), ""]
    return lines


def tokens_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table, one row for each number of tokens."""
    return table_lines(TOKEN_COLUMNS, results)


def cost_figure(results: Sequence[Mapping[str, Any]]) -> Figure:
    """For each network the ratios of step time, with its spread, and of saved activations."""
    networks = {name: [row for row in rows if row["step_seconds"]] for name, rows in _by_network(results).items()}
    heights = [0.6 + 0.36 * len(rows) for rows in networks.values()]
    figure = Figure(figsize=(8, 0.9 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(networks), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for panel, (name, rows) in zip(panels, networks.items(), strict=True):
        places = np.arange(len(rows))
        time, low, high = (
            np.array([row[f"step_seconds_ratio{end}"] for row in rows], float) for end in ("", "_min", "_max")
        )
        saved = np.array([row["saved_bytes_ratio"] for row in rows], float)
        panel.barh(places - 0.2, time, 0.38, color="C0", label="time of a step")
        panel.errorbar(time, places - 0.2, xerr=[time - low, high - time], fmt="none", ecolor="0.3", capsize=2)
        panel.barh(places + 0.2, saved, 0.38, color="C1", label="saved activations")
        for shift, values, ends in ((-0.2, time, high), (0.2, saved, saved)):
            for place, value, end in zip(places, values, ends, strict=True):
                panel.text(end + 0.01, place + shift, f"{value:.2f}", va="center", fontsize=6.5)
        panel.set_yticks(places, [row["method"] for row in rows], fontsize="small")
        panel.invert_yaxis()
        panel.axvline(1, color="0.5", linewidth=0.8)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(name, fontsize="medium", loc="left")
    panels[-1].set_xlabel(f"ratio to {REFERENCE}; whiskers: least and most of all rounds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def tokens_figure(results: Sequence[Mapping[str, Any]], exponents: Mapping[str, float]) -> Figure:
    """Time, FLOPs and saved memory against tokens, logarithmic, with the line of exponent 1 through the last point."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    tokens = np.array([row["tokens"] for row in results], float)
    titles = [("seconds", "forward and backward, s"), ("flops", "forward and backward, FLOP")]
    titles += [("saved_bytes", "saved for the backward pass, bytes")]
    for panel, (key, title) in zip(figure.subplots(1, 3), titles, strict=True):
        values = np.array([row[key] for row in results], float)
        panel.loglog(tokens, values[-1] * tokens / tokens[-1], color="0.6", linestyle="--", label="exponent 1")
        panel.loglog(tokens, values, "o-", label=f"measured, exponent {exponents[key]:.2f}")
        panel.set_xlabel("tokens")
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return figure


def _by_network(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    return {name: list(rows) for name, rows in groupby(results, lambda row: row["network"])}
