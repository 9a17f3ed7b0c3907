# SPDX-License-Identifier: Apache-2.0
"""The search for a method's settings: ranges, trials inside and then around the best, and what lies at an edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from scipy.stats import qmc

from .pixels import PIXELS
from .plan import Job, job_of, parse_method

__all__ = ["SEARCHED", "Range", "Search", "best_trials", "edges_of", "ranges_of"]

ROUND = 2
"""Trials of a round after the first."""
NARROWEST = 1 / 32
"""Width of a box below which its trials would be equal, as values have three digits."""


@dataclass(frozen=True)
class Range:
    """
    A search range. ``place`` counts along it, 0 at ``low`` and 1 at ``high``, in logarithms or not; other places extend
    it. ``limit`` is the largest value there can be.
    """

    low: float
    high: float
    logarithmic: bool = True
    limit: float = math.inf

    def value(self, place: float) -> float:
        low, high = self._ends()
        value = low + place * (high - low)
        return min(float(f"{math.exp(value) if self.logarithmic else value:.3g}"), self.limit)

    def place(self, value: float) -> float:
        low, high = self._ends()
        return ((math.log(value) if self.logarithmic else value) - low) / (high - low)

    def _ends(self) -> tuple[float, float]:
        return (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


SEARCHED = {
    "encoder_rate": Range(1e-4, 3e-2),
    "head_rate": Range(1e-4, 3e-2),
    "weight_decay": Range(1e-4, 3e-1),
    "layer_decay": Range(0.65, 1.0, logarithmic=False, limit=1.0),
}
"""Search ranges by setting of a job."""
FULL_RATES = Range(1e-6, 3e-3)
"""That of the encoder's learning rate in full fine-tuning."""
UNSEARCHED = {"encoder_rate": 0.0, "layer_decay": 1.0}
"""Values of the settings that a method may have no use for."""


def ranges_of(method: str) -> dict[str, Range]:
    """The search ranges of a method (text), by setting."""
    name = PIXELS if method == PIXELS else parse_method(method)["name"]
    if name == "full":
        return {**SEARCHED, "encoder_rate": FULL_RATES}
    unused = {"layer_decay"} | ({"encoder_rate"} if name in ("linear", PIXELS) else set())
    return {setting: found for setting, found in SEARCHED.items() if setting not in unused}


class Search:
    """
    The trials of a method (text) in a fold, with all labels and seed 0; as many for every method, at the same places of
    their ranges.

    The first round covers the ranges. Each further round has two trials, in every setting on both sides of the best one
    so far, in a box around it. The box is half as wide as the one before, but as wide where the best trial lies at the
    edge of what was tried, so that the search goes beyond its range. A trial that was tried before moves away from the
    best one, in steps of a quarter of its distance, until it is new.
    """

    def __init__(self, method: str, fold: int) -> None:
        self.method, self.fold = method, fold
        self.ranges = ranges_of(method)
        self.widths = dict.fromkeys(self.ranges, 1.0)
        self.rounds = 0

    def first(self, trials: int) -> list[Job]:
        """The trials that cover the ranges."""
        return [self._job(point) for point in _points(0, trials)]

    def further(self, rows: Sequence[Mapping[str, Any]]) -> list[Job]:
        """The trials of the next round, from the results of all before."""
        best = best_trials(rows)[self.method, self.fold]
        edges = edges_of(best, rows)
        self.widths = {s: max(width / (1 if s in edges else 2), NARROWEST) for s, width in self.widths.items()}
        centre = {setting: found.place(getattr(best, setting)) for setting, found in self.ranges.items()}
        tried = {job_of(row) for row in rows}
        points = _points(ROUND * self.rounds, ROUND)
        self.rounds += 1
        jobs: list[Job] = []
        for point in points:
            steps = {setting: (point[setting] - 0.5) * width for setting, width in self.widths.items()}
            further_out = (
                self._job({s: place + (1 + number / 4) * steps[s] for s, place in centre.items()}) for number in count()
            )
            jobs.append(next(job for job in further_out if job not in tried))
        return jobs

    def _job(self, places: Mapping[str, float]) -> Job:
        chosen = {setting: found.value(places[setting]) for setting, found in self.ranges.items()}
        return Job("trial", self.method, self.fold, 0, 1.0, **{**UNSEARCHED, **chosen})


def best_trials(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Job]:
    """
    The best trial of every method and fold, of equal ones that with the smallest rates; a score that is not a number is
    the worst.
    """
    best: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["method"], row["fold"])
        best[key] = max(best.get(key, row), row, key=_rank)
    return {key: job_of(row) for key, row in best.items()}


def edges_of(best: Job, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    The settings in which a method's best trial is the lowest or highest of all its trials in the fold (of ``rows``), so
    that a better value may lie beyond; not where there is no value beyond.
    """
    found = []
    for setting, searched in ranges_of(best.method).items():
        tried = [row[setting] for row in rows if (row["method"], row["fold"]) == (best.method, best.fold)]
        value = getattr(best, setting)
        if value == min(tried) or (value == max(tried) and math.isinf(searched.limit)):
            found.append(setting)
    return found


def _points(start: int, trials: int) -> list[dict[str, float]]:
    """
    Places from 0 to 1 of a number of trials, from a Sobol sequence: in every setting each in a cell of its own, in its
    middle, of as many equal cells as there are trials, or of the next power of 2.
    """
    total, cells = ((number - 1).bit_length() for number in (start + trials, trials))
    points = qmc.Sobol(len(SEARCHED), scramble=False).random_base2(total)[start : start + trials]
    return [
        dict(zip(SEARCHED, map(float, point), strict=True)) for point in (np.floor(points * 2**cells) + 0.5) / 2**cells
    ]


def _rank(row: Mapping[str, Any]) -> tuple[float, ...]:
    score = -math.inf if math.isnan(row["score"]) else row["score"]
    return score, *(-row[setting] for setting in SEARCHED)
