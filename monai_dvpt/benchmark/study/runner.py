# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a study, each in its own process, and saves every result at once."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_dvpt.utils import InputError, fingerprint, naming, reason, write_csv

from .intervals import Run
from .job import Task, run_job
from .plan import Job, Split, final_jobs, trial_jobs

__all__ = ["COLUMNS", "Results", "best_trials", "run_study"]

MEASURED = ["metric", "score", "training_cases", "scored_cases", "encoder_parameters", "head_parameters"]
COLUMNS = [*(field.name for field in fields(Job)), *MEASURED, "seconds", "peak_memory_mib", "predictions"]


class Results:
    """
    The finished jobs of a study, in a CSV file that is replaced as a whole after each, and beside it a file with what
    the key metric kept of each case in each final run, in the folder "predictions". Jobs in the file ``path`` count as
    done; an InputError is raised if it has other columns.
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
            self.rows = {_job_of(row).key: row for row in rows}

    def add(self, row: dict[str, Any]) -> None:
        """Adds a result, and writes its predictions and the file."""
        job, cases = _job_of(row), row.pop("cases")
        row["predictions"] = "" if job.kind == "trial" else f"{fingerprint(job.key)[:16]}.csv"
        if row["predictions"]:
            write_csv(self.predictions / row["predictions"], list(cases[0]), cases)
        self.rows[job.key] = row
        write_csv(self.path, COLUMNS, self.rows.values())

    def has(self, job: Job) -> bool:
        """Whether a job is finished, and its predictions are there."""
        row = self.rows.get(job.key)
        return row is not None and (not row["predictions"] or (self.predictions / row["predictions"]).is_file())

    def run_of(self, row: Mapping[str, Any]) -> Run:
        """A final run with its predictions; raises an InputError if these are not as they were written."""
        path = self.predictions / row["predictions"]
        with naming(path), open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
            if len(rows) != row["scored_cases"]:
                raise InputError(f"must have {row['scored_cases']} cases, got {len(rows)}; remove it to run again.")
            columns = [name for name in rows[0] if name not in ("image", "patient")]
            parts = [list(part) for _, part in groupby(columns, lambda column: column.rpartition("_")[0])]
            try:
                buffers = [torch.tensor([[float(case[name]) for name in part] for case in rows]) for part in parts]
            except (TypeError, ValueError) as error:
                raise InputError(f"must have a number in every column, {error}; remove it to run again.") from error
        return Run((row["method"], float(row["fraction"])), row["fold"], row["seed"], row["score"], buffers)


def run_study(
    task: Task,
    splits: Sequence[Split],
    methods: Sequence[str],
    fractions: Sequence[float],
    seeds: Sequence[int],
    trials: int,
    workers: int,
    results: Results,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Runs ``trials`` trials per method and split, chooses each method's learning rates by them, and makes a final run for
    each fraction and seed; skips jobs in ``results``, and runs ``workers`` processes at a time.

    Returns:
        results of the trials, and of the final runs.

    Raises:
        InputError: after the last job, if any failed; names each with its reason.
    """
    jobs = trial_jobs(methods, len(splits), trials)
    _run_all(task, splits, jobs, workers, results, "trials")
    scored = [results.rows[job.key] for job in jobs]
    final = final_jobs(best_trials(scored), fractions, seeds)
    _run_all(task, splits, final, workers, results, "runs")
    return scored, [results.rows[job.key] for job in final]


def best_trials(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Job]:
    """The best trial of every method and fold; a score that is not a number is the worst."""
    best: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["method"], row["fold"])
        if key not in best or _score(row) > _score(best[key]):
            best[key] = row
    return {key: _job_of(row) for key, row in best.items()}


def _run_all(
    task: Task, splits: Sequence[Split], jobs: Sequence[Job], workers: int, results: Results, title: str
) -> None:
    left = [job for job in dict.fromkeys(jobs) if not results.has(job)]
    failed = []
    with (
        _pool(workers, results.path.with_name("log.txt")) as pool,
        tqdm(total=len(set(jobs)), initial=len(set(jobs)) - len(left), desc=title, unit="run") as bar,
    ):
        futures = {pool.submit(run_job, task, job, splits[job.fold]): job for job in left}
        try:
            for future in as_completed(futures):
                job = futures[future]
                bar.update()
                if (error := future.exception()) is not None:
                    failed.append(f"{job.method}, fold {job.fold}, seed {job.seed}: {reason(error)}")
                    bar.write(f"failed: {failed[-1]}")
                    continue
                result = future.result()
                results.add(result)
                bar.set_postfix_str(f"{job.method} {job.fraction:.0%}: {result['score']:.3f}")
        except BaseException:  # an interruption, or a result that cannot be saved
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} {title} failed; the others are kept: " + "; ".join(failed))


def _pool(workers: int, log: Path) -> ProcessPoolExecutor:
    """
    Processes with imported packages, a new one for each job, so that peak memory is the job's own; in Python 3.10 a
    process may run several jobs.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([run_job.__module__])
    one_job: dict[str, Any] = {"max_tasks_per_child": 1} if sys.version_info >= (3, 11) else {}
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(log,), **one_job)


def _start(log: Path) -> None:
    """Appends the output of this process to a file, and ends the process with its parent."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _job_of(row: Mapping[str, Any]) -> Job:
    return Job(**{field.name: row[field.name] for field in fields(Job)})


def _number(text: str) -> int | float | str:
    """A cell of the file as a number, if it is one."""
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return kind(text)
    return text


def _score(row: Mapping[str, Any]) -> float:
    return -math.inf if math.isnan(row["score"]) else row["score"]
