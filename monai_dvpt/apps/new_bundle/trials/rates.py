# SPDX-License-Identifier: Apache-2.0
"""Searches learning rates and weight decay by short trainings of the bundle on its training cases."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from monai_dvpt.benchmark.study.job import Task, read_cases, train_and_score
from monai_dvpt.benchmark.study.plan import Job, Split
from monai_dvpt.benchmark.study.search import Search, best_trials, edges_of, ranges_of
from monai_dvpt.networks.methods import as_method
from monai_dvpt.utils import InputError, path_for_config, progress, reason, root_cause

from ..model import Collection, Measurement
from ..plan import Plan
from .trial_bundle import inner_parts, quiet, trial_bundle

__all__ = ["Trials", "search_rates"]

AROUND = 5
"""Rounds around the best, of two trials each, after which the box is too small to tell its trials apart."""
DESIGNS = {8: 13, 4: 9, 2: 5}
"""Trials of the first round, and of a whole search with it, the planned one among them; in the order of preference."""
SHARE = 0.25
"""Of the planned epochs that a trial should have; else the search has fewer trials."""
WORDS = {"encoder_rate": "method", "head_rate": "head", "weight_decay": "weight decay"}

RunJob = Callable[[Task, Job, Split], Mapping[str, Any]]


def search_rates(
    plan: Plan,
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    minutes: float,
    run_job: RunJob = train_and_score,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """
    Chooses ``learning_rates`` and ``weight_decay`` anew: the best of short trainings of the bundle that the plan gives,
    on its training cases alone, of which a part, by patient, scores. The trials are those of
    :class:`monai_dvpt.benchmark.study.search.Search`, after one with the planned values, which are kept unless another
    trial scores better.

    Args:
        plan: to train by and to change.
        collection: the cases.
        measured: one for each case; None for a case that is in no part.
        parts: indices of the cases by part; of "training" alone anything is read.
        minutes: for the whole search; a trial that would take longer is not begun.
        run_job, clock: see :class:`Trials`.

    Raises:
        InputError: if a trial cannot read its input; after any other failure the search goes on.
    """
    deadline = clock() + 60 * minutes
    inner = inner_parts(collection, measured, parts["training"])
    if not all(inner.values()):
        counts = {part: len(indices) for part, indices in inner.items()}
        _keep(plan, f"there must be training cases to train and to score trials, got {counts}")
        return
    with trial_bundle(collection, measured, inner, plan) as bundle:
        cached = plan.values.get("prefix_cache") is not None
        settings = {"prefix_cache": path_for_config(str(bundle / "prefixes"))} if cached else {}
        task = Task(str(bundle), settings, torch.get_num_threads())
        with quiet():
            lists = read_cases(task)
        split = Split(lists["training"], lists["validation"], ())
        trials = Trials(task, split, _planned(plan), plan["max_epochs"], run_job, clock)
        trials.run(deadline)
    if trials.failure:
        _keep(plan, f"the first trial failed ({trials.failure.removesuffix('.')})")
        return
    if len(trials.rows) < 2:
        _keep(plan, f"{minutes:g} minutes were too short for two trials")
        return
    if trials.are_alike():
        _keep(plan, f"all {len(trials.rows)} trials scored alike, {trials.rows[0]['score']:.3f}")
        return
    spent = minutes - (deadline - clock()) / 60
    how = f"{spent:.1f} of {minutes:g} minutes, {len(inner['training'])} training cases, {len(inner['validation'])}"
    _take_best(plan, trials, f"{how} others of the training part to score")


@dataclass
class Trials:
    """
    The trials of a search.

    Attributes:
        task, split: to train.
        planned: the job with the planned values, which is tried first.
        max_epochs: as planned; trials may have fewer.
        run_job: trains and scores a job.
        clock: in seconds.
        epochs: of a trial, once it is known.
        rows: results so far, of equally long trials; one that failed scores NaN, and "failed" says with which error.
        longest: seconds of a trial, as far as is known.
        metric: by which trials are scored.
        failure: why the training that is to tell how long trials take failed, after which there are none.
    """

    task: Task
    split: Split
    planned: Job
    max_epochs: int
    run_job: RunJob = train_and_score
    clock: Callable[[], float] = time.monotonic
    epochs: int = 0
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    longest: float = 0.0
    metric: str = ""
    failure: str = ""

    def run(self, deadline: float) -> None:
        """Runs trials until none would end before ``deadline``, on the clock, or the search is over."""
        first = self._measure(deadline)
        if not first:
            return
        fitting = int((deadline - self.clock()) / self.longest)
        for job in progress(self._jobs(first), "search of rates", unit="trial", total=min(fitting, self._most(first))):
            if self.clock() + self.longest > deadline:
                return
            self.rows.append(self._score(job))

    def are_alike(self) -> bool:
        """Whether all scores so far are equal, or none is finite."""
        return len(set(map(_finite, self.rows))) < 2

    def _measure(self, deadline: float) -> int:
        """Trains an epoch, and chooses how many trials there are in the first round and how long each is; 0: none."""
        try:
            if "prefix_cache" in self.task.settings:
                self._time(self.planned, 1)  # computes the outputs of the frozen layers, which later trials find
            started = self.clock()
            if started >= deadline:
                return 0
            row = self._time(self.planned, 1)
        except Exception as error:  # such as too little memory
            self.failure = _failure(error)
            return 0
        self.metric = row["metric"]
        training = max(float(row["seconds"]), 1e-3)
        beside = max(self.clock() - started - training, 0.0)
        left = deadline - self.clock()
        epochs = {
            first: min(self.max_epochs, math.floor((left / trials - beside) / training))
            for first, trials in DESIGNS.items()
        }
        first = next((each for each in epochs if epochs[each] >= SHARE * self.max_epochs), min(epochs))
        self.epochs = epochs[first]
        self.longest = beside + self.epochs * training
        return first if self.epochs >= 1 else 0

    def _jobs(self, first: int) -> Iterator[Job]:
        """Each job is asked for after the results of the ones before."""
        search = Search(self.planned.method, self.planned.fold)
        yield self.planned
        yield from search.first(first)
        for _ in range(AROUND):
            if self.are_alike():
                return
            yield from search.further(self.rows)

    def _most(self, first: int) -> int:
        return 1 + first + 2 * AROUND

    def _score(self, job: Job) -> Mapping[str, Any]:
        try:
            return self._time(job, self.epochs)
        except Exception as error:  # such as too little memory; the other trials count
            _failure(error)
            failed = type(root_cause(error)).__name__
            return {**asdict(job), "metric": self.metric, "score": math.nan, "failed": failed}

    def _time(self, job: Job, epochs: int) -> Mapping[str, Any]:
        started = self.clock()
        task = replace(self.task, settings={**self.task.settings, "max_epochs": epochs})
        with quiet():
            row = self.run_job(task, job, self.split)
        if epochs == self.epochs:
            self.longest = max(self.longest, self.clock() - started)
        return row


def _failure(error: Exception) -> str:
    """Why a trial failed; bad input ends the search."""
    if isinstance(root_cause(error), InputError):
        raise InputError(reason(error)) from error
    return reason(error)


def _finite(row: Mapping[str, Any]) -> float:
    """The score of a trial; one that is not finite is the worst."""
    return row["score"] if math.isfinite(row["score"]) else -math.inf


def _planned(plan: Plan) -> Job:
    rates, method = plan["learning_rates"], as_method(plan["method"]).name
    encoder = rates["method"] if "encoder_rate" in ranges_of(method) else 0.0
    return Job("trial", method, 0, 0, 1.0, encoder, rates["head"], plan["weight_decay"], 1.0)


def _take_best(plan: Plan, trials: Trials, how: str) -> None:
    rows, planned = trials.rows, trials.planned
    searched = ranges_of(planned.method)
    better = [row for row in rows if _finite(row) > _finite(rows[0])]  # the first is the planned one
    best = best_trials(better)[planned.method, planned.fold] if better else planned
    edges = [WORDS[setting] for setting in edges_of(best, rows) if setting in WORDS] if better else []

    def words(job: Any) -> str:
        return ", ".join(f"{WORDS[setting]} {job[setting]:.3g}" for setting in searched)

    def score(row: Mapping[str, Any]) -> str:
        return f"failed with {row['failed']}" if "failed" in row else f"{row['score']:.3f}"

    tried = [{**{WORDS[setting]: row[setting] for setting in searched}, rows[0]["metric"]: score(row)} for row in rows]
    edge = f"; {' and '.join(edges)} at the edge of what was tried, so a better value may lie beyond" if edges else ""
    if better:
        taken = max(rows, key=_finite)
        result = f"the best is taken, {score(taken)}; the planned one ({words(rows[0])}) has {score(rows[0])}"
    else:
        result = f"no trial was better than the planned one, {score(rows[0])}, which is kept"
    failed = "".join(
        f"; {count} {how}" for how, count in Counter(score(row) for row in rows if "failed" in row).items()
    )
    reason = (
        f"searched: {len(rows)} trials of {trials.epochs} of {trials.max_epochs} epochs ({how}), scored by "
        f"{rows[0]['metric']}: {result}{edge}{failed}."
    )
    rates = {
        part: (best.encoder_rate or rate) if part == "method" else best.head_rate
        for part, rate in plan["learning_rates"].items()
    }
    plan.choose("learning_rates", rates, reason, tried)
    plan.choose("weight_decay", best.weight_decay, "searched with the learning rates, see there.")


def _keep(plan: Plan, why: str) -> None:
    choice = plan.choices["learning_rates"]
    plan.choose("learning_rates", choice.value, f"{choice.reason.removesuffix('.')}; not searched: {why}.")
