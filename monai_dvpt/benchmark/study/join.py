# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt.benchmark join``: one folder of results from those of a study that ran on several machines."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from monai_dvpt.utils import FolderLock, InputError

from .job import Task, key_metric
from .plan import job_of, method_text
from .results import MEASURED, Results, bundle_fingerprint, differing, keep_plan, read_plan
from .search import ROUND, best_trials
from .study_report import report_study

__all__ = ["add_parser"]

EXAMPLE = """\
example, of a study whose methods ran on two machines:
  python -m monai_dvpt.benchmark join --bundle bundles/xray_dvpt_vit_classification --output study first second"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "join",
        help="joins the results of one study from several folders",
        description="Writes runs.csv, predictions, study.md and plots of a study whose methods, seeds or folds ran in "
        "several folders, on several machines for instance. All must have the same plan; where two have the same run, "
        "its scores and predictions must agree.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="results of python -m monai_dvpt.benchmark study")
    add("--bundle", type=Path, required=True, metavar="DIR", help="the bundle of the study, for its metric")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the joined results")
    add("--reference", default="full", metavar="METHOD", help="method to compare with, full by default")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    plan, first = read_plan(arguments.folders[0]), arguments.folders[0]
    for folder in arguments.folders[1:]:
        other = read_plan(folder)
        if changed := differing(other, plan):
            raise InputError(f"{folder}: must have results of the same plan as {first}, but {changed} differ.")
        plan |= other  # with the methods of all folders
    if bundle_fingerprint(arguments.bundle) != plan.get("bundle"):
        raise InputError(f"--bundle must be the bundle of {first}, got another one, {arguments.bundle}.")
    settings = {key.removeprefix("--set "): value for key, value in plan.items() if key.startswith("--set ")}
    metric = key_metric(Task(str(arguments.bundle), settings))
    with FolderLock(arguments.output):
        keep_plan(arguments.output, plan)
        results = Results(arguments.output / "runs.csv")
        for folder in arguments.folders:
            _add(results, Results(folder / "runs.csv"))
        trials, finals = _complete(results, plan)
        reference = method_text(arguments.reference)
        if reference not in {row["method"] for row in finals}:
            raise InputError(f"--reference must be one of the methods of the folders, got {reference}.")
        words = ["python", "-m", "monai_dvpt.benchmark", "join", "--bundle", arguments.bundle]
        words += ["--output", arguments.output, "--reference", reference, *arguments.folders]
        notes = [f"`{shlex.join(map(str, words))}`", "", "Seconds may be of several machines."]
        print(report_study(results, trials, finals, metric, reference, notes).read_text(encoding="utf-8"))


def _add(results: Results, others: Results) -> None:
    """Adds the runs of another folder; a run that is there already must agree."""
    new = []
    for key, row in others.rows.items():
        if not results.has(job_of(row)):
            new.append({**row, "cases": others.cases_of(row) if row["predictions"] else []})
            continue
        if changed := _differing(results, others, key):
            raise InputError(
                f"{others.path}: must agree with {results.path} in every run of both, but {row['method']}, "
                f"{row['kind']}, fold {row['fold']}, seed {row['seed']}, {row['fraction']:.0%} of the labels, differs "
                f"in {changed}."
            )
    results.add(*new)


def _differing(results: Results, others: Results, key: str) -> str:
    """The names of what two results of one run differ in; seconds and memory may."""
    rows = results.rows[key], others.rows[key]
    changed = [name for name in MEASURED if str(rows[0][name]) != str(rows[1][name])]
    if not changed and rows[0]["predictions"]:
        mine, theirs = results.run_of(rows[0]), others.run_of(rows[1])
        pairs = zip((*mine.buffers,), (*theirs.buffers,), strict=True)
        if mine.patients != theirs.patients or not all(torch.equal(*pair) for pair in pairs):
            changed = ["predictions"]
    return ", ".join(changed)


def _complete(results: Results, plan: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    The trials, and the final runs with the settings of the best of them.

    Raises:
        InputError: if a method lacks a run that another one has; names the first of them.
    """
    trials = [row for row in results.rows.values() if row["kind"] == "trial"]
    best = best_trials(trials)
    finals = [row for row in results.rows.values() if row["kind"] == "final" and _is_of(row, best)]
    methods, folds, seeds, fractions = (
        sorted({row[name] for row in rows})
        for rows, name in ((trials, "method"), (trials, "fold"), (finals, "seed"), (finals, "fraction"))
    )
    found = {(row["method"], row["fold"], row["seed"], row["fraction"]) for row in finals}
    missing = [
        f"{method}, fold {fold}, seed {seed}, {fraction:.0%} of the labels"
        for method, fold, seed, fraction in product(methods, folds, seeds, fractions)
        if (method, fold, seed, fraction) not in found
    ]
    wanted = plan["trials"] + ROUND * plan["rounds"]
    for method, fold in product(methods, folds):
        count = sum((row["method"], row["fold"]) == (method, fold) for row in trials)
        if count != wanted:
            missing.insert(0, f"{method}, fold {fold}, with {count} of {wanted} trials")
    if missing or not finals:
        raise InputError(
            f"{results.path}: must have every method in every fold with every seed and share of the labels, but "
            f"{len(missing)} are missing: {'; '.join(missing[:3])}; the study can go on in {results.path.parent}."
        )
    return trials, finals


def _is_of(row: Mapping[str, Any], best: Mapping[tuple[str, int], Any]) -> bool:
    trial = best.get((row["method"], row["fold"]))
    names = ("encoder_rate", "head_rate", "weight_decay", "layer_decay")
    return trial is not None and all(row[name] == getattr(trial, name) for name in names)
