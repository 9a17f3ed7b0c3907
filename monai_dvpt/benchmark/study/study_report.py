# SPDX-License-Identifier: Apache-2.0
"""The report of a study: tables with intervals, paired differences, and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from monai_dvpt.utils import atomic_path

__all__ = ["Interval", "mean_interval", "paired_differences", "scores_of", "write_report"]


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval, whose limits are NaN for a single value."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if math.isnan(self.low) else f" ({self.low:.3f} to {self.high:.3f})")


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and its 95 % interval by Student's t distribution."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def scores_of(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """
    Independent scores for an interval: one per seed; with several folds one per fold, the mean of its seeds, which
    share the test cases.
    """
    folds: dict[int, list[float]] = {}
    for row in rows:
        folds.setdefault(row["fold"], []).append(row["score"])
    return [float(np.mean(scores)) for scores in folds.values()] if len(folds) > 1 else next(iter(folds.values()))


def paired_differences(rows: Sequence[Mapping[str, Any]], reference: str) -> dict[tuple[str, float], Interval]:
    """
    Mean differences of final runs to the reference method with all labels, at the same fold and seed, for each other
    method and fraction.
    """
    top = {(row["fold"], row["seed"]): row["score"] for row in rows if _group(row) == (reference, 1.0)}
    differences: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if _group(row) != (reference, 1.0) and (pair := (row["fold"], row["seed"])) in top:
            differences.setdefault(_group(row), []).append({**row, "score": row["score"] - top[pair]})
    return {group: mean_interval(scores_of(pairs)) for group, pairs in differences.items()}


def write_report(
    rows: Sequence[Mapping[str, Any]],
    trials: Sequence[Mapping[str, Any]],
    reference: str,
    folder: Path,
    notes: Sequence[str] = (),
) -> Path:
    """
    Writes ``study.md``, which begins with ``notes``, and the plots ``score_by_labels.png``, ``score_by_parameters.png``
    and ``score_by_cost.png``, from the results of final runs (``rows``) and trials; returns the path of ``study.md``.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["method"] != reference, row["method"], -row["fraction"])):
        groups.setdefault(_group(row), []).append(row)
    metric = rows[0]["metric"]
    text = ["# Study", "", *notes, "", *_table(groups, paired_differences(rows, reference), metric, reference), ""]
    text += ["Chosen by the trials:", "", *_chosen_rates(rows, trials, metric), ""]
    with atomic_path(folder / "study.md") as path:
        path.write_text("\n".join(text), encoding="utf-8")
    for name, figure in (
        ("labels", _plot(groups, metric, [("training_cases", "labelled training cases")], all_fractions=True)),
        ("parameters", _plot(groups, metric, [("encoder_parameters", "parameters tuned in the encoder")])),
        ("cost", _plot(groups, metric, [("seconds", "seconds of training"), ("peak_memory_mib", "peak memory, MiB")])),
    ):
        with atomic_path(folder / f"score_by_{name}.png") as path:
            figure.savefig(path, dpi=130)
    return folder / "study.md"


def _group(row: Mapping[str, Any]) -> tuple[str, float]:
    return row["method"], float(row["fraction"])


def _table(
    groups: Mapping[tuple[str, float], Sequence[Mapping[str, Any]]],
    differences: Mapping[tuple[str, float], Interval],
    metric: str,
    reference: str,
) -> list[str]:
    head = ["method", "labels", "cases", "runs", f"{metric}, mean (95 % interval)", f"minus {reference}, 100 %"]
    head += ["tuned in encoder", "head and decoder", "seconds", "peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * 2 + "|---:" * (len(head) - 2) + "|"]
    for (method, fraction), rows in groups.items():
        difference = differences.get((method, fraction))
        cells = [method, f"{fraction:.0%}", f"{np.mean([row['training_cases'] for row in rows]):.0f}", str(len(rows))]
        cells += [str(mean_interval(scores_of(rows))), "" if difference is None else str(difference)]
        cells += [f"{rows[0][key]:,}" for key in ("encoder_parameters", "head_parameters")]
        cells += [f"{np.median([row[key] for row in rows]):,.0f}" for key in ("seconds", "peak_memory_mib")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _chosen_rates(rows: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """A table of the final runs' learning rates, with the scores of all trials of the method."""
    lines = [f"| method | fold | encoder | head and decoder | {metric} of the trials |", "|---|---|---:|---:|---|"]
    chosen = {(row["method"], row["fold"]): (row["encoder_rate"], row["head_rate"]) for row in rows}
    for (method, fold), rates in sorted(chosen.items()):
        scores = sorted((t["score"] for t in trials if (t["method"], t["fold"]) == (method, fold)), reverse=True)
        cells = [method, str(fold), *(f"{rate:g}" for rate in rates), ", ".join(f"{score:.3f}" for score in scores)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _plot(
    groups: Mapping[tuple[str, float], Sequence[Mapping[str, Any]]],
    metric: str,
    axes: Sequence[tuple[str, str]],
    all_fractions: bool = False,
) -> Figure:
    """Scores with 95 % intervals against one or more columns, a colour for each method."""
    figure = Figure(figsize=(1.5 + 5 * len(axes), 4.2), layout="constrained")
    methods = list(dict.fromkeys(method for method, _ in groups))
    for panel, (column, title) in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        most = max(float(row[column]) for rows in groups.values() for row in rows)
        for index, method in enumerate(methods):
            chosen = [
                rows for (m, fraction), rows in groups.items() if m == method and (all_fractions or fraction == 1)
            ]
            points = sorted((float(np.median([row[column] for row in rows])), rows) for rows in chosen)
            scores = [mean_interval(scores_of(rows)) for _, rows in points]
            halves = [0.0 if math.isnan(score.low) else score.mean - score.low for score in scores]
            style = {"color": f"C{index % 10}", "marker": "osv^D"[index % 5], "capsize": 2, "label": method}
            beside = (
                most * (index - (len(methods) - 1) / 2) / 150 if all_fractions else 0
            )  # so that intervals stay visible
            panel.errorbar([x + beside for x, _ in points], [score.mean for score in scores], halves, **style)
        if column == "encoder_parameters":
            panel.set_xscale("symlog", linthresh=1000, linscale=0.5)
            panel.set_xticks([0, *(10**power for power in range(3, math.ceil(math.log10(max(most, 1000))) + 1))])
        panel.set_xlabel(title)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure
