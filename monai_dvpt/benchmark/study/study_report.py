# SPDX-License-Identifier: Apache-2.0
"""The report of a study: tables with intervals and differences, and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monai_dvpt.utils import atomic_path

from .intervals import RESAMPLES, Group, Scores, compare_runs
from .pixels import PIXELS
from .plan import PROBES
from .results import Results
from .search import best_trials, edges_of, ranges_of

__all__ = ["report_study", "write_report"]

SETTINGS = {
    "encoder_rate": "rate of the encoder",
    "head_rate": "rate of head and decoder",
    "weight_decay": "weight decay",
    "layer_decay": "layer decay",
}
BASELINES = {
    **dict.fromkeys(PROBES, "the frozen linear probe"),
    PIXELS: "the pixel baseline, a linear model of the mean values of 8 parts of the image along each axis",
}
ABOUT = f"""\
Intervals: 95 %, from {RESAMPLES:,} resamples of the patients of each test part and of the seeds, with replacement and
alike for all methods. p: two-sided, of no difference, corrected by Holm's method for all differences in the table."""


def report_study(
    results: Results,
    trials: Sequence[Mapping[str, Any]],
    finals: Sequence[Mapping[str, Any]],
    metric: Any,
    reference: str,
    notes: Sequence[str],
) -> Path:
    """:func:`write_report` in the folder of ``results``, with the scores of the final runs by the key metric."""
    scores = compare_runs([results.run_of(row) for row in finals], metric, (reference, 1.0))
    return write_report(finals, trials, scores, reference, results.path.parent, notes)


def write_report(
    rows: Sequence[Mapping[str, Any]],
    trials: Sequence[Mapping[str, Any]],
    scores: Scores,
    reference: str,
    folder: Path,
    notes: Sequence[str] = (),
) -> Path:
    """
    Writes ``study.md``, which begins with ``notes``, and the plots ``score_by_labels.png``, ``score_by_parameters.png``
    and ``score_by_cost.png``, from the results of final runs (``rows``), their ``scores``, and the results of trials;
    returns the path of ``study.md``.
    """
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["method"] != reference, row["method"], -row["fraction"])):
        groups.setdefault((row["method"], float(row["fraction"])), []).append(row)
    metric = rows[0]["metric"]
    text = ["# Study", "", *notes, "", *_table(groups, scores, metric, reference), "", ABOUT, ""]
    text += [*_baselines(scores), "", "Chosen by the trials:", "", *_chosen_settings(trials, metric), ""]
    with atomic_path(folder / "study.md") as path:
        path.write_text("\n".join(text), encoding="utf-8")
    plots = {
        "labels": [("training_cases", "labelled training cases")],
        "parameters": [("encoder_parameters", "parameters tuned in the encoder")],
        "cost": [("seconds", "seconds of training"), ("peak_memory_mib", "peak memory, MiB")],
    }
    for name, axes in plots.items():
        with atomic_path(folder / f"score_by_{name}.png") as path:
            _plot(groups, scores, metric, axes, all_fractions=name == "labels").savefig(path, dpi=130)
    return folder / "study.md"


def _table(
    groups: Mapping[Group, Sequence[Mapping[str, Any]]],
    scores: Scores,
    metric: str,
    reference: str,
) -> list[str]:
    head = ["method", "labels", "cases", "runs", f"{metric}, mean (95 % interval)", f"minus {reference}, 100 %"]
    head += ["tuned in encoder", "head and decoder", "seconds", "peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|---" * 2 + "|---:" * (len(head) - 2) + "|"]
    for (method, fraction), rows in groups.items():
        group = method, fraction
        cells = [method, f"{fraction:.0%}", f"{np.mean([row['training_cases'] for row in rows]):.0f}", str(len(rows))]
        cells += [str(scores.intervals[group]), str(scores.differences.get(group, ""))]
        cells += [f"{rows[0][key]:,}" for key in ("encoder_parameters", "head_parameters")]
        cells += [f"{np.median([row[key] for row in rows]):,.0f}" for key in ("seconds", "peak_memory_mib")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _baselines(scores: Scores) -> list[str]:
    """What the baselines are, and whether the best method is better than they are, with all labels."""
    found = {method: interval for (method, fraction), interval in scores.intervals.items() if fraction == 1}
    beside = [name for name in (PROBES[1] if PROBES[1] in found else PROBES[0], PIXELS) if name in found]
    lines = ["Baselines:", "", *(f"- {name}: {BASELINES[name]}" for name in beside)]
    if PIXELS not in found:
        lines += ["", "A pixel baseline is only for networks that grade or classify whole images."]
    methods = [method for method in found if method not in beside]
    if methods:
        best = max(methods, key=lambda method: found[method].mean)
        for name in beside:
            difference = scores.minus((best, 1.0), (name, 1.0))
            if not difference.low > 0:  # nor where it is NaN
                lines += [
                    "",
                    f"**This task says nothing about tuning**: {best}, the best method with all labels, minus {name} "
                    f"is {difference}, which does not lie above 0.",
                ]
    return lines


def _chosen_settings(trials: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """A table of each method's best trial, with the scores of all its trials, and a line for all that is at an edge."""
    head = ["method", "fold", *SETTINGS.values(), "trials", "best at an edge of", f"{metric} of the trials"]
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(SETTINGS) + 1) + "|---|---|"]
    at_edge: dict[tuple[str, str], list[str]] = {}
    for (method, fold), best in sorted(best_trials(trials).items()):
        scores = sorted((t["score"] for t in trials if (t["method"], t["fold"]) == (method, fold)), reverse=True)
        edges = edges_of(best, trials)
        searched = ranges_of(method)
        cells = [f"{getattr(best, setting):g}" if setting in searched else "" for setting in SETTINGS]
        cells = [method, str(fold), *cells, str(len(scores)), ", ".join(SETTINGS[setting] for setting in edges)]
        lines.append("| " + " | ".join([*cells, ", ".join(f"{score:.3f}" for score in scores)]) + " |")
        for setting in edges:
            at_edge.setdefault((method, setting), []).append(str(fold))
    lines.append("")
    if not at_edge:
        return [*lines, "No best trial lies at an edge of what was tried."]
    lines += ["**Best trials at an edge of what was tried**, beyond which better values may lie:", ""]
    return [*lines, *(f"- {m}: {SETTINGS[s]}, in fold {', '.join(folds)}" for (m, s), folds in at_edge.items())]


def _plot(
    groups: Mapping[Group, Sequence[Mapping[str, Any]]],
    scores: Scores,
    metric: str,
    axes: Sequence[tuple[str, str]],
    all_fractions: bool,
) -> Figure:
    """Scores with 95 % intervals against one or more columns, a colour for each method."""
    figure = Figure(figsize=(1.5 + 5 * len(axes), 4.2), layout="constrained")
    methods = list(dict.fromkeys(method for method, _ in groups))
    for panel, (column, title) in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        most = max(float(row[column]) for rows in groups.values() for row in rows)
        for index, method in enumerate(methods):
            chosen = [group for group in groups if group[0] == method and (all_fractions or group[1] == 1)]
            points = sorted((float(np.median([row[column] for row in groups[group]])), group) for group in chosen)
            found = [scores.intervals[group] for _, group in points]
            # a bar cannot end on the wrong side of its point, as the limit of a resampled score can
            ends = np.maximum(np.nan_to_num([(s.mean - s.low, s.high - s.mean) for s in found]).T, 0)
            style = {"color": f"C{index % 10}", "marker": "osv^D"[index % 5], "capsize": 2, "label": method}
            beside = (
                most * (index - (len(methods) - 1) / 2) / 150 if all_fractions else 0
            )  # so that intervals stay visible
            panel.errorbar([x + beside for x, _ in points], [score.mean for score in found], ends, **style)
        if column == "encoder_parameters":
            panel.set_xscale("symlog", linthresh=1000, linscale=0.5)
            panel.set_xticks([0, *(10**power for power in range(3, math.ceil(math.log10(max(most, 1000))) + 1))])
        panel.set_xlabel(title)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure
