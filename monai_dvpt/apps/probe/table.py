# SPDX-License-Identifier: Apache-2.0
"""Several probes of several backbones on the same cases and folds: a table with intervals, and its files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_dvpt.benchmark.study.intervals import RESAMPLES, Difference, Interval, Run, compare_runs
from monai_dvpt.utils import InputError, atomic_path, to_json, write_csv

from .compare import METRICS, Candidate, Labels, deal_graded, graded_answers, score_answers, segment_answers
from .features import layer_features
from .logistic import PENALTIES, Fit, fit_logistic
from .neighbours import NEIGHBOURS, fit_neighbours

__all__ = ["LAYERS", "ProbedBackbone", "ProbeTable", "probe_backbones"]

LAYERS = 4
LINEAR, LINEAR_4, NEAREST = "linear probe", "linear probe of four layers", "nearest neighbours"
SEGMENTED = "linear decoder"
ABOUT = {
    LINEAR: "a logistic regression on the class token and the mean of the others, of the last layer",
    LINEAR_4: "a logistic regression on the class tokens of the last four layers and the mean of the others of the "
    "last one, as in DINOv2 (https://arxiv.org/abs/2304.07193)",
    NEAREST: f"weighted nearest neighbours, {NEIGHBOURS[0]} or {NEIGHBOURS[1]}, by the class token of the last layer, "
    "as in DINO (https://arxiv.org/abs/2104.14294)",
    SEGMENTED: "a linear decoder of the tokens of the last layer",
}
"""The probes; without a class token the mean of the others stands for it."""


@dataclass(frozen=True)
class ProbedBackbone:
    """
    Attributes:
        name: of the backbone.
        parameters: of its encoder.
        seconds: that its features took, with reading the images.
        scores: by probe, with the 95 % interval over patients.
        below_best: by probe, difference to the best backbone of this probe, paired over patients, with a p-value
            corrected by Holm's method for the differences of the probe; None for the best itself.
    """

    name: str
    parameters: int
    seconds: float
    scores: Mapping[str, Interval]
    below_best: Mapping[str, Difference | None]


@dataclass(frozen=True)
class ProbeTable:
    """
    Attributes:
        metric: "quadratic kappa", "balanced accuracy" or "mean Dice".
        backbones: in the order given.
        folds: of each case.
        patients: number of the patient of each case, from 0 on.
        answers: by backbone and probe what the metric keeps of each case: the predicted and the true grades or classes,
            each of shape (N, O), or the Dice of each label, of shape (N, K - 1).
    """

    metric: str
    backbones: Sequence[ProbedBackbone]
    folds: Sequence[int]
    patients: Sequence[int]
    answers: Mapping[tuple[str, str], Sequence[torch.Tensor]] = field(repr=False)

    @property
    def probes(self) -> list[str]:
        return list(self.backbones[0].scores)

    def best(self, probe: str) -> ProbedBackbone:
        """The backbone with the best score of a probe."""
        return next(each for each in self.backbones if each.below_best[probe] is None)

    def as_json(self) -> dict[str, Any]:
        """All but the predictions."""
        return {
            "metric": self.metric,
            "cases": len(self.folds),
            "patients": len(set(self.patients)),
            "folds": len(set(self.folds)),
            "resamples": RESAMPLES,
            "probes": {probe: ABOUT[probe] for probe in self.probes},
            "backbones": [
                {"name": each.name, "parameters": each.parameters, "seconds": round(each.seconds, 1)}
                | {probe: _numbers(each.scores[probe], each.below_best[probe]) for probe in self.probes}
                for each in self.backbones
            ],
        }

    def write(self, folder: str | os.PathLike, labels: Labels, outputs: Sequence[str]) -> list[Path]:
        """
        Writes ``comparison.json``, ``comparison.csv``, a row for each backbone and probe, and ``predictions.csv``, a
        row for each case and output, or label, too. Cases and patients have numbers, no names.

        Args:
            folder: where to; it is made.
            labels: of the cases.
            outputs: what was graded.

        Returns:
            the files.

        Raises:
            InputError: if a file cannot be written.
        """
        folder = Path(folder)
        with atomic_path(folder / "comparison.json") as path:
            path.write_text(to_json(self.as_json()) + "\n", encoding="utf-8")
        rows = [
            {"backbone": each.name, "parameters": each.parameters, "seconds": round(each.seconds, 1), "probe": probe}
            | _numbers(each.scores[probe], each.below_best[probe])
            for each in self.backbones
            for probe in self.probes
        ]
        write_csv(folder / "comparison.csv", list(rows[0]), rows)
        cases = list(self._predictions(labels, outputs))
        write_csv(folder / "predictions.csv", list(cases[0]), cases)
        return [folder / name for name in ("comparison.json", "comparison.csv", "predictions.csv")]

    def _predictions(self, labels: Labels, outputs: Sequence[str]) -> Iterator[dict[str, Any]]:
        for (backbone, probe), (first, *others) in self.answers.items():
            for case, values in enumerate(first):
                row = {"backbone": backbone, "probe": probe, "case": case, "patient": self.patients[case]}
                row["fold"] = self.folds[case]
                if not others:  # the Dice of each label
                    for label, value in zip(labels.names[1:], values.tolist(), strict=True):
                        yield {**row, "label": label, "dice": "" if math.isnan(value) else round(value, 4)}
                    continue
                for output, said, true in zip(outputs, values.tolist(), others[0][case].tolist(), strict=True):
                    truth = labels.names[true] if true >= 0 else ""
                    yield {**row, "output": output, "prediction": labels.names[said], "truth": truth}


def probe_backbones(
    candidates: Iterable[Candidate],
    labels: Labels,
    patients: Sequence[Hashable],
    now: Callable[[], float] = time.monotonic,
) -> ProbeTable:
    """
    Scores backbones by probes of their frozen features in cross-validation over patients, in the same folds for all,
    see ``ABOUT``; features are computed once for all probes. Of segmentation there is one probe, that of
    :func:`monai_dvpt.apps.probe.compare_backbones`.

    Args:
        candidates: one after the other, so that one network at a time is in memory; with the same cases.
        labels: of the cases.
        patients: of each case; all cases of a patient are in one fold.
        now: a clock, in seconds.

    Raises:
        InputError: if there are fewer than two patients, or the metric of a probe is defined for no backbone.
    """
    answers: dict[tuple[str, str], Sequence[torch.Tensor]] = {}
    sizes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    folds = torch.zeros(len(patients), dtype=torch.long)
    started = now()
    for candidate in candidates:
        sizes[candidate.name] = sum(tensor.numel() for _, tensor in candidate.network.tensors(["backbone"]))
        if labels.task == "segmentation":
            found, folds = segment_answers(candidate, labels, patients)
            answers[candidate.name, SEGMENTED] = found
            seconds[candidate.name] = now() - started
        else:
            states, truth = layer_features(candidate.network, candidate.dataset, candidate.name, LAYERS)
            seconds[candidate.name] = now() - started
            folds = deal_graded(truth, patients)
            for probe, features, settings, fit, decision in _graded_probes(states):
                found = graded_answers(features, truth, labels, folds, settings, fit, decision)
                answers[candidate.name, probe] = found
        started = now()
    scores: dict[str, dict[str, Interval]] = {name: {} for name in sizes}
    below: dict[str, dict[str, Difference | None]] = {name: {} for name in sizes}
    for probe in dict.fromkeys(probe for _, probe in answers):
        compared = _compare({name: answers[name, probe] for name in sizes}, labels, patients)
        for name, (score, difference) in compared.items():
            scores[name][probe], below[name][probe] = score, difference
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    probed = [ProbedBackbone(name, sizes[name], seconds[name], scores[name], below[name]) for name in sizes]
    order = [numbers[patient] for patient in patients]
    return ProbeTable(METRICS[labels.task], probed, folds.tolist(), order, answers)


def _graded_probes(states: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, Sequence[float], Fit, str]]:
    """Name, features, settings, model and decision of each probe, from features of layers, (N, layers, P, C)."""
    last, main = states[:, -1], states[:, :, -1]  # the class token, or the mean where there is none
    four = torch.cat([main.flatten(1), *([last[:, 0]] if states.shape[2] > 1 else [])], dim=1)
    yield LINEAR, last.flatten(1), PENALTIES, fit_logistic, ""
    yield LINEAR_4, four, PENALTIES, fit_logistic, ""
    yield NEAREST, main[:, -1], NEIGHBOURS, fit_neighbours, "mode"


def _compare(
    answers: Mapping[str, Sequence[torch.Tensor]], labels: Labels, patients: Sequence[Hashable]
) -> dict[str, tuple[Interval, Difference | None]]:
    """The score of each backbone by one probe, and its difference to the best, None for the best itself."""
    runs = [
        Run((name, 1.0), 0, 0, score_answers(labels.metric, buffers), buffers, patients)
        for name, buffers in answers.items()
    ]
    known = [run for run in runs if not math.isnan(run.score)]
    if not known:
        raise InputError(f"the metric is not defined on these cases: {METRICS[labels.task]} must be a number.")
    best = max(known, key=lambda run: run.score).group
    found = compare_runs(runs, labels.metric, best)
    return {run.group[0]: (found.intervals[run.group], found.differences.get(run.group)) for run in runs}


def _numbers(score: Interval, difference: Difference | None) -> dict[str, Any]:
    """What JSON and CSV say; no difference of the best."""
    numbers: dict[str, Any] = {"score": score.mean, "low": score.low, "high": score.high}
    keys = ("minus_best", "minus_best_low", "minus_best_high", "p_holm")
    values = [None] * len(keys) if difference is None else [*difference.interval, difference.p_value]
    numbers |= dict(zip(keys, values, strict=True))
    return {key: None if value is None or math.isnan(value) else round(value, 4) for key, value in numbers.items()}
