# SPDX-License-Identifier: Apache-2.0
"""The plan of a study: methods, splits of the cases, and jobs."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from monai_dvpt.networks.methods import METHODS, as_method
from monai_dvpt.utils import InputError, setting_for_config

__all__ = [
    "PROBES",
    "Design",
    "Job",
    "Split",
    "default_folds",
    "final_jobs",
    "job_of",
    "make_splits",
    "method_text",
    "parse_method",
    "patient_of",
    "settings_of",
]

PROBES = ("linear", "linear+pooling=both")
"""The frozen linear probe, in bundles whose head is linear, and in those whose head reads prompts."""
FEW_PATIENTS = 1000
"""Below this number of patients one part of them is a poor test set, and folds are the default."""


@dataclass(frozen=True)
class Job:
    """
    One training run.

    Attributes:
        kind: "trial", scored on the tuning part, or "final", scored on the test part.
        method: the method with its options and settings, as text.
        fold: index of the split.
        seed: of initial values, augmentation, order and choice of the labels.
        fraction: share of the training cases with a label, in (0, 1].
        encoder_rate: learning rate in the encoder.
        head_rate: learning rate of head and decoder.
        weight_decay: of the optimiser.
        layer_decay: factor of the learning rate from each layer of the encoder to the one before it.
    """

    kind: str
    method: str
    fold: int
    seed: int
    fraction: float
    encoder_rate: float
    head_rate: float
    weight_decay: float
    layer_decay: float

    @property
    def key(self) -> str:
        """The job as text, by which a resumed study finds its results."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Design:
    """
    What a study compares.

    Attributes:
        methods: the methods with their options and settings, as text.
        fractions: shares of the training cases with a label, each in (0, 1].
        seeds: of the final runs.
        trials: number of trials over the ranges of each method, in each fold.
        rounds: number of further rounds of trials.
    """

    methods: Sequence[str]
    fractions: Sequence[float]
    seeds: Sequence[int]
    trials: int
    rounds: int


def job_of(row: Mapping[str, Any]) -> Job:
    """The job of a result."""
    return Job(**{field.name: row[field.name] for field in fields(Job)})


@dataclass(frozen=True)
class Split:
    """Cases to train on, to choose settings, and to report; a final run trains on the first two parts."""

    training: Sequence[dict[str, Any]]
    tuning: Sequence[dict[str, Any]]
    test: Sequence[dict[str, Any]]

    def cases(self, job: Job) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """
        Cases to train and to score a job. The seed draws the whole patients of a fraction, the same for every method;
        a larger fraction includes a smaller one.
        """
        if job.kind == "trial":
            return list(self.training), list(self.tuning)
        everything = [*self.training, *self.tuning]
        wanted = max(1, round(job.fraction * len(everything)))
        chosen: list[dict[str, Any]] = []
        for patient in _shuffled_patients(everything, job.seed):
            if len(chosen) < wanted:
                chosen += patient
        return chosen, list(self.test)


WORDS = ("True", "False", "None")  # not text
SETTING = re.compile(r"\s*\+\s*(?=[A-Za-z_][\w#]*=)")  # what begins a setting after a method


def method_text(text: str) -> str:
    """The one text of a method that may be typed with spaces; those inside of settings stay."""
    method, *settings = SETTING.split(text)
    return "+".join([method.replace(" ", ""), *(setting.strip() for setting in settings)])


def parse_method(text: str) -> dict[str, Any]:
    """
    Parses a method for :func:`monai_dvpt.networks.methods.as_method`: its "name" and the given options.

    Args:
        text: a name, or a name and options such as ``lora:rank=8,alpha=8``; settings that follow are left alone, see
            :func:`settings_of`.

    Raises:
        InputError: if the name or an option is unknown, or an option is repeated, not ``key=value``, or outside its
            range.
    """
    name, _, listed = SETTING.split(method_text(text))[0].partition(":")
    if name not in METHODS:
        raise InputError(f"--methods must be of {list(METHODS)}, got {name}.")
    known = [option.name for option in fields(METHODS[name])]
    options: dict[str, Any] = {}
    for part in filter(None, listed.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        try:
            number = value if value.isidentifier() and value not in WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"--methods must have options of the form key=value, got {text}.") from error
        if key not in known or key in options:
            raise InputError(f"--methods must have options of {known} for {name}, each once, got {text}.")
        options[key] = number
    try:
        as_method(name, **options)
    except ValueError as error:
        raise InputError(f"--methods must have options in their ranges, got {text}: {error}") from error
    return {"name": name, **options}


def settings_of(text: str) -> dict[str, Any]:
    """
    The values by key of ``train.yaml`` that belong to a method in a study, such as ``pooling`` in
    ``linear+pooling=prompts``.

    Raises:
        InputError: if a key is repeated.
    """
    pairs = [part.partition("=")[::2] for part in SETTING.split(text)[1:]]
    settings = {key: setting_for_config(key, value) for key, value in pairs}
    if len(settings) < len(pairs):
        raise InputError(f"--methods must have each setting once, got {text}.")
    return settings


def make_splits(lists: Mapping[str, Sequence[dict[str, Any]]], folds: int, tuning_fraction: float) -> list[Split]:
    """
    Splits the cases of a bundle; all cases of a patient (key "group", by default one case each) stay together.

    Args:
        lists: cases by part. "test" is reported; without it "validation" is, and the tuning part comes from "training".
        folds: 0 for the listed parts; at least 2 for that many folds of all cases, each once the test part.
        tuning_fraction: share of the training cases that chooses the settings, in (0, 1).

    Raises:
        InputError: if there are fewer patients than folds or parts.
    """
    if folds == 0:
        if lists.get("test"):
            return [Split(lists["training"], lists["validation"], lists["test"])]
        training, tuning = _part(lists["training"], tuning_fraction)
        return [Split(training, tuning, lists["validation"])]
    everything = [case for part in lists.values() for case in part]
    patients = _shuffled_patients(everything, 0)
    if len(patients) < folds:
        raise InputError(f"--folds must be at most the number of patients, {len(patients)}, got {folds}.")
    parts: list[list[dict[str, Any]]] = [[] for _ in range(folds)]
    for patient in sorted(patients, key=len, reverse=True):
        min(parts, key=len).extend(patient)
    splits = []
    for part in parts:
        training, tuning = _part([case for other in parts if other is not part for case in other], tuning_fraction)
        splits.append(Split(training, tuning, part))
    return splits


def default_folds(lists: Mapping[str, Sequence[dict[str, Any]]]) -> int:
    """Five folds of under 1,000 patients, otherwise the listed parts, which is 0 folds."""
    return 5 if len({patient_of(case) for part in lists.values() for case in part}) < FEW_PATIENTS else 0


def final_jobs(best: Mapping[tuple[str, int], Job], fractions: Sequence[float], seeds: Sequence[int]) -> list[Job]:
    """A run per fraction and seed, in this order, for each method and fold, with the settings of its best trial."""
    return [
        replace(trial, kind="final", seed=seed, fraction=fraction)
        for fraction in fractions
        for seed in seeds
        for trial in best.values()
    ]


def _part(cases: Sequence[dict[str, Any]], fraction: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The cases of all other patients, and those of a share of the patients."""
    patients = _shuffled_patients(cases, 0)
    if len(patients) < 2:
        raise InputError(f"a study must have at least 2 patients to train and tune with, got {len(patients)}.")
    part: list[dict[str, Any]] = []
    while len(patients) > 1 and len(part) < max(1, round(fraction * len(cases))):
        part += patients.pop()
    return [case for patient in patients for case in patient], part


def patient_of(case: Mapping[str, Any]) -> str:
    """The patient of a case; without one each case is its own."""
    return str(case.get("group") or case["image"])


def _shuffled_patients(cases: Sequence[dict[str, Any]], seed: int) -> list[list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for case in sorted(cases, key=lambda case: str(case["image"])):
        groups.setdefault(patient_of(case), []).append(case)
    return random.Random(seed).sample(list(groups.values()), len(groups))
