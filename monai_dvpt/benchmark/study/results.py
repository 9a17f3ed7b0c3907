# SPDX-License-Identifier: Apache-2.0
"""The folder of a study: its plan, the results of its runs, and their predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from monai_dvpt.utils import InputError, atomic_path, fingerprint, to_json, write_csv

from .intervals import Run
from .plan import Job, job_of

__all__ = ["COLUMNS", "MEASURED", "OF_METHOD", "Results", "bundle_fingerprint", "differing", "keep_plan", "read_plan"]

MEASURED = ["metric", "score", "training_cases", "scored_cases", "encoder_parameters", "head_parameters"]
OF_METHOD = "--methods "
"""How a key of a plan begins that is of one method; other folders may have other methods."""
COLUMNS = [*(field.name for field in fields(Job)), *MEASURED, "seconds", "peak_memory_mib", "predictions"]


class Results:
    """
    The finished jobs of a study, in a CSV file that is replaced as a whole when any are added, and beside it a file
    with what the key metric kept of each case in each final run, in the folder "predictions". Jobs in the file ``path``
    count as done; an InputError is raised if it has other columns.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.predictions = path, path.with_name("predictions")
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != COLUMNS:
                    raise InputError(f"{path}: must have the columns {COLUMNS}, got {reader.fieldnames}.")
                rows = [{name: _number(text) for name, text in row.items()} for row in reader]
            self.rows = {job_of(row).key: row for row in rows}

    def add(self, *rows: dict[str, Any]) -> None:
        """Adds results, each with its cases as "cases", and writes their predictions and the file."""
        for row in rows:
            job, cases = job_of(row), row.pop("cases")
            row["predictions"] = "" if job.kind == "trial" else f"{fingerprint(job.key)[:16]}.csv"
            if row["predictions"]:
                write_csv(self.predictions / row["predictions"], list(cases[0]), cases)
            self.rows[job.key] = row
        write_csv(self.path, COLUMNS, self.rows.values())

    def has(self, job: Job) -> bool:
        """Whether a job is finished, and its predictions are there."""
        row = self.rows.get(job.key)
        return row is not None and (not row["predictions"] or (self.predictions / row["predictions"]).is_file())

    def rows_of(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        """The results of jobs that are finished."""
        return [self.rows[job.key] for job in jobs]

    def cases_of(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """
        What the key metric kept of each case of a final run, and its image and patient, as text.

        Raises:
            InputError: if the file is not there, or has another number of cases.
        """
        path = self.predictions / row["predictions"]
        if not path.is_file():
            raise InputError(f"{path}: must be there, as {self.path.name} names it, but is missing.")
        with open(path, newline="", encoding="utf-8") as file:
            cases = list(csv.DictReader(file))
        if len(cases) != row["scored_cases"]:
            raise InputError(
                f"{path}: must have {row['scored_cases']} cases, got {len(cases)}; remove it to run again."
            )
        return cases

    def run_of(self, row: Mapping[str, Any]) -> Run:
        """A final run with its predictions; raises an InputError if these are not as they were written."""
        cases = self.cases_of(row)
        columns = [name for name in cases[0] if name not in ("image", "patient")]
        parts = [list(part) for _, part in groupby(columns, lambda column: column.rpartition("_")[0])]
        try:
            buffers = [torch.tensor([[float(case[name]) for name in part] for case in cases]) for part in parts]
            patients = [case["patient"] for case in cases]
        except (KeyError, TypeError, ValueError) as error:
            path = self.predictions / row["predictions"]
            raise InputError(f"{path}: must have a number in every column, {error}; remove it to run again.") from error
        group = (row["method"], float(row["fraction"]))
        return Run(group, row["fold"], row["seed"], row["score"], buffers, patients)


def bundle_fingerprint(bundle: Path) -> str:
    """Tells whether a bundle trains as another one does."""
    return fingerprint([(bundle / "configs" / name).read_text() for name in ("train.yaml", "metadata.json")])


def read_plan(folder: Path) -> dict[str, Any]:
    """
    What all results in a folder depend on.

    Raises:
        InputError: if the plan is missing or cannot be read.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise InputError(f"{path}: must say what runs.csv depends on, but is missing.")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def keep_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """
    Writes what the results of a folder depend on, and keeps what those of its other methods do.

    Raises:
        InputError: if the folder has results of another plan, or of none.
    """
    path = folder / "plan.json"
    if path.is_file() or (folder / "runs.csv").is_file():
        before = read_plan(folder)
        if changed := differing(before, plan):
            raise InputError(f"{path}: must be of the same plan, {changed} changed; pass another --output.")
        plan = {**before, **plan}
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(plan), encoding="utf-8")


def differing(plan: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The names of what differs in two plans; a method may be in one alone."""
    alone = {key for key in plan.keys() ^ other.keys() if key.startswith(OF_METHOD)}
    return ", ".join(sorted(key for key in {*plan, *other} - alone if plan.get(key) != other.get(key)))


def _number(text: str) -> int | float | str:
    """A cell of the file as a number, if it is one."""
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(text)
    return text
