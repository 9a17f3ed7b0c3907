# SPDX-License-Identifier: Apache-2.0
"""Runs the jobs of a study, each in its own process, and saves every result at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_dvpt.utils import InputError, reason

from .job import Task, run_job
from .plan import Design, Job, Split, final_jobs
from .results import Results
from .search import Search, best_trials

__all__ = ["run_study"]


def run_study(
    task: Task, splits: Mapping[int, Split], design: Design, workers: int, results: Results
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Searches each method's settings in each fold of ``splits``, and makes a final run for each fraction and seed; skips
    jobs in ``results``, and runs ``workers`` processes at a time.

    Returns:
        results of the trials, and of the final runs.

    Raises:
        InputError: after the last job, if any failed; names each with its reason.
    """

    def run(jobs: Sequence[Job], title: str) -> list[dict[str, Any]]:
        _run_all(task, splits, jobs, workers, results, title)
        return results.rows_of(jobs)

    searches = [Search(method, fold) for fold in splits for method in design.methods]
    tried = run([job for search in searches for job in search.first(design.trials)], "trials")
    for index in range(design.rounds):
        title = f"trials around the best, {index + 1} of {design.rounds}"
        tried += run([job for search in searches for job in search.further(tried)], title)
    return tried, run(final_jobs(best_trials(tried), design.fractions, design.seeds), "runs")


def _run_all(
    task: Task, splits: Mapping[int, Split], jobs: Sequence[Job], workers: int, results: Results, title: str
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
