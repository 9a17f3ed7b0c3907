# SPDX-License-Identifier: Apache-2.0
"""Scores backbones by linear probes in cross-validation over patients, and chooses one."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from monai.metrics import CumulativeIterationMetric
from monai.networks.utils import one_hot
from torch.utils.data import Dataset

from monai_dvpt.benchmark.study.intervals import Interval, Run, compare_runs
from monai_dvpt.metrics import ClasswiseMetric, CohenKappaMetric, DiceOfLabels
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.transforms import GradeLogits, LabelSetsd
from monai_dvpt.utils import InputError, labels_of_values

from .features import image_features, share_of_labels, token_features
from .logistic import PENALTIES, Fit, cross_predict, fit_logistic

__all__ = [
    "FOLDS",
    "RULE",
    "Candidate",
    "Comparison",
    "Labels",
    "ProbeScore",
    "background_offset",
    "compare_backbones",
    "deal_folds",
    "deal_graded",
    "graded_answers",
    "score_answers",
    "segment_answers",
]

FOLDS = 5
MOST_TOKENS = 16384
"""Tokens that a linear decoder is fitted to."""
TOKEN_PENALTY = 1e-3
CELLS = {2: 4, 3: 2}
"""Cells along each axis of a token, of pictures and of volumes, whose labels a linear decoder says."""
OFFSETS = tuple(step / 4 for step in range(17))
"""Of the logits of the background, see :func:`background_offset`."""
RULE = (
    "of the backbones that are not clearly below the best (the 95 % interval of the difference over patients holds 0), "
    "the smallest is taken"
)
METRICS = {"grading": "quadratic kappa", "classification": "balanced accuracy", "segmentation": "mean Dice"}


@dataclass(frozen=True)
class Labels:
    """
    What the labels of the images are.

    Attributes:
        task: "grading" (ordered grades), "classification" (without an order) or "segmentation".
        names: of the grades or classes; for segmentation of the label values, background first.
        label_sets: for segmentation, see :func:`monai_dvpt.utils.labels_of_values`.
    """

    task: str
    names: Sequence[str]
    label_sets: Sequence[Sequence[str]] = ()

    @property
    def metric(self) -> CumulativeIterationMetric:
        if self.task == "grading":
            return CohenKappaMetric(len(self.names), weights="quadratic", reduction="pooled")
        if self.task == "classification":
            return ClasswiseMetric(len(self.names), metric_name="recall")
        return DiceOfLabels(include_background=False)


@dataclass(frozen=True)
class Candidate:
    """
    A backbone that may be taken.

    Attributes:
        name: unique.
        network: with the pretrained weights.
        dataset: the images as this network takes them, with "image" and "label": of grades or classes, of shape (O,),
            -1 where one is missing; of segmentation the label map, of shape ``(1, *spatial)``. An image that is larger
            than the network's window is cut to it.
    """

    name: str
    network: TunableNetwork
    dataset: Dataset = field(repr=False)


@dataclass(frozen=True)
class ProbeScore:
    """
    Attributes:
        name: of the backbone.
        parameters: of its encoder.
        score: with its 95 % interval over patients.
        below_best: difference to the best, which has (0, 0, 0).
    """

    name: str
    parameters: int
    score: Interval
    below_best: Interval

    @property
    def clearly_below(self) -> bool:
        """Whether the score is not defined, or the interval of the difference to the best lies below 0."""
        return math.isnan(self.score.mean) or self.below_best.high < 0

    def __str__(self) -> str:
        return f"{self.name} {self.score}, {self.parameters / 1e6:.1f} M parameters"


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        metric: "quadratic kappa", "balanced accuracy" or "mean Dice".
        scores: of each backbone, in the order given.
        images, patients, folds: how many there were.
    """

    metric: str
    scores: Sequence[ProbeScore]
    images: int
    patients: int
    folds: int

    @property
    def best(self) -> ProbeScore:
        return max(self.scores, key=lambda each: -math.inf if math.isnan(each.score.mean) else each.score.mean)

    @property
    def chosen(self) -> ProbeScore:
        """Of the backbones that are not clearly below the best, the smallest; of equally large ones the best."""
        close = [each for each in self.scores if not each.clearly_below]
        return min(close, key=lambda each: (each.parameters, -each.score.mean))

    def reason(self) -> str:
        """The scores and the choice in one sentence."""
        table = "; ".join(map(str, self.scores))
        how = (
            f"{self.metric} of linear probes on the frozen features of {self.images} training cases of {self.patients} "
            f"patients, in {self.folds} folds by patient, with 95 % intervals over patients: {table}"
        )
        best, chosen = self.best, self.chosen
        if chosen is not best:
            return f"{how}; {chosen.name} is {chosen.below_best} beside the best, and {RULE}."
        others = [each for each in self.scores if not each.clearly_below and each is not best]
        why = "the best, and the smallest that is not clearly below it" if others else "the best, clearly"
        return f"{how}; {chosen.name} is {why}."

    def as_json(self) -> dict[str, Any]:
        """By the name of the backbone its score, the interval and its parameters."""
        return {
            each.name: {
                self.metric: _rounded(each.score.mean),
                "low": _rounded(each.score.low),
                "high": _rounded(each.score.high),
                "parameters": each.parameters,
            }
            for each in self.scores
        }


def compare_backbones(candidates: Iterable[Candidate], labels: Labels, patients: Sequence[Hashable]) -> Comparison:
    """
    Fits a linear model to the frozen features of each backbone and scores it in cross-validation over patients. Of
    whole images the features are class token and mean token, and the model is a logistic regression. Of segmentation
    they are the tokens, and the model is a linear decoder that says the labels of cells inside of each token, see
    :func:`background_offset`; its logits are interpolated to the image, based on: "Oquab et al., DINOv2 <https://arxiv.org/abs/2304.07193>".

    Args:
        candidates: one after the other, so that one network at a time is in memory; with the same images.
        labels: of the images.
        patients: of each image; all images of a patient are in one fold.

    Raises:
        InputError: if there are fewer than two patients, or the metric of no backbone is defined.
    """
    runs: list[Run] = []
    sizes: dict[str, int] = {}
    for candidate in candidates:
        buffers = _answers(candidate, labels, patients)
        score = score_answers(labels.metric, buffers)
        runs.append(Run((candidate.name, 1.0), 0, 0, score, buffers, patients))
        sizes[candidate.name] = sum(tensor.numel() for _, tensor in candidate.network.tensors(["backbone"]))
    if all(math.isnan(run.score) for run in runs):
        raise InputError(f"the metric is not defined on these training cases: {METRICS[labels.task]} must be a number.")
    best = max(runs, key=lambda run: -math.inf if math.isnan(run.score) else run.score).group
    found = compare_runs(runs, labels.metric, best)
    scores = [
        ProbeScore(
            run.group[0],
            sizes[run.group[0]],
            found.intervals[run.group],
            Interval(0.0, 0.0, 0.0) if run.group == best else found.differences[run.group].interval,
        )
        for run in runs
    ]
    count = len(set(patients))
    return Comparison(METRICS[labels.task], scores, len(patients), count, min(FOLDS, count))


def deal_folds(patients: Sequence[Hashable], marks: Sequence[Hashable]) -> torch.Tensor:
    """
    The fold of each case, with all cases of a patient in one, and about the same share of each mark in all.

    Args:
        patients: of each case, at least two.
        marks: of each case, such as its grade.

    Raises:
        InputError: if there are fewer than two patients.
    """
    of_patient: dict[Hashable, list[Hashable]] = {}
    for patient, mark in zip(patients, marks, strict=True):
        of_patient.setdefault(patient, []).append(mark)
    if len(of_patient) < 2:
        raise InputError(f"backbones must be compared on at least 2 patients, got {len(of_patient)}.")
    order = random.Random(0).sample(list(of_patient), len(of_patient))
    order.sort(key=lambda patient: str(Counter(of_patient[patient]).most_common(1)[0][0]))
    fold_of = {patient: index % FOLDS for index, patient in enumerate(order)}
    return torch.tensor([fold_of[patient] for patient in patients])


def _answers(candidate: Candidate, labels: Labels, patients: Sequence[Hashable]) -> list[torch.Tensor]:
    """What the metric keeps of each image."""
    if labels.task == "segmentation":
        return segment_answers(candidate, labels, patients)[0]
    features, truth = image_features(candidate.network, candidate.dataset, candidate.name)
    return graded_answers(features, truth, labels, deal_graded(truth, patients))


def deal_graded(truth: torch.Tensor, patients: Sequence[Hashable]) -> torch.Tensor:
    """:func:`deal_folds` by the grades or classes of images, of shape (N, O)."""
    return deal_folds(patients, list(map(tuple, truth.tolist())))


def graded_answers(
    features: torch.Tensor,
    truth: torch.Tensor,
    labels: Labels,
    folds: torch.Tensor,
    settings: Sequence[float] = PENALTIES,
    fit: Fit = fit_logistic,
    decision: str = "",
) -> list[torch.Tensor]:
    """
    Grades or classes that models say of the images that they did not see.

    Args:
        features: of shape (N, C).
        truth: of shape (N, O), -1 where there is none.
        labels: what they are.
        folds, settings, fit: see :func:`cross_predict`.
        decision: see :class:`monai_dvpt.transforms.GradeLogits`; by default "mean" of grades and "mode" of classes.

    Returns:
        the predicted and the true ones, each of shape (N, O).
    """
    targets = (truth[..., None] == torch.arange(len(labels.names))).double()  # (N, O, K), without a label 0
    decide = GradeLogits(len(labels.names), decision or ("mean" if labels.task == "grading" else "mode"))
    metric = labels.metric

    def answers(logits: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([decide(each.flatten())[0] for each in logits]), truth[rows].long()]

    def score(logits: torch.Tensor, rows: torch.Tensor) -> float:
        metric.reset()
        return score_answers(metric, answers(logits, rows))

    return answers(cross_predict(features, targets, folds, score, settings, fit), torch.arange(len(truth)))


def segment_answers(
    candidate: Candidate, labels: Labels, patients: Sequence[Hashable]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    What linear decoders say of the images that they did not see.

    Returns:
        in a list, the Dice of each label but the background in each image, of shape (N, K - 1), NaN where it has none;
        the fold of each image.
    """
    features, maps = token_features(candidate.network, candidate.dataset, candidate.name)
    grid, possible = candidate.network.encoder().grid, labels_of_values(labels.names, labels.label_sets)
    cells = [CELLS[len(grid)] * side for side in grid]
    metric, masks = labels.metric, LabelSetsd("pred", labels.names, labels.label_sets)
    folds = deal_folds(patients, [""] * len(patients))
    targets = torch.stack([_to_tokens(share_of_labels(label, cells, possible), grid) for label in maps])
    values = torch.full((len(maps), len(labels.names) - 1), math.nan)
    for fold in folds.unique():
        inside = folds != fold
        rows, shares = features[inside].flatten(0, 1), targets[inside].flatten(0, 1)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_TOKENS]
        model = fit_logistic(rows[chosen].float(), shares[chosen], TOKEN_PENALTY)
        offset = background_offset(model(rows[chosen].float()), shares[chosen])
        for index in (~inside).nonzero()[:, 0].tolist():
            logits = _to_cells(model(features[index].float()), grid)[None]  # (1, K, *cells)
            logits[:, 0] -= offset
            mode = "trilinear" if len(grid) == 3 else "bilinear"
            pred = F.interpolate(logits, maps[index].shape[1:], mode=mode).argmax(dim=1, keepdim=True)
            item = masks({"pred": one_hot(pred, len(labels.names))[0], "label": maps[index]})
            metric.reset()
            values[index] = torch.as_tensor(metric(item["pred"][None], item["label"][None]))[0]
    return [values], folds


def background_offset(logits: torch.Tensor, shares: torch.Tensor) -> float:
    """
    What to take from the logits of the background so that the labels of the cells have the best mean Dice: the most
    probable label is the background too often where labels are rare, based on: "Lipton et al., Optimal Thresholding of
    Classifiers to Maximize F1 Measure <https://arxiv.org/abs/1402.1892>".

    Args:
        logits: of the cells of training cases, of shape (N, O, K), the background first.
        shares: of each class, in the same shape.
    """

    def dice(offset: float) -> float:
        moved = logits.clone()
        moved[..., 0] -= offset
        pred = F.one_hot(moved.argmax(dim=2), logits.shape[2])[..., 1:].flatten(0, 1)  # (N * O, K - 1)
        truth = shares[..., 1:].flatten(0, 1)
        return float((2 * (pred * truth).sum(0) / (pred.sum(0) + truth.sum(0)).clamp(min=1e-6)).mean())

    return max(OFFSETS, key=dice)


def _to_tokens(shares: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """From shape ``(K, *cells)`` to (T, O, K), with the cells of a token as outputs."""
    classes, dims = len(shares), len(grid)
    sides = [size for tokens in grid for size in (tokens, CELLS[dims])]
    split = shares.reshape(classes, *sides)  # (K, tokens, cells, tokens, cells, ...)
    order = [*range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 0]
    return split.permute(order).reshape(math.prod(grid), CELLS[dims] ** dims, classes)


def _to_cells(logits: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """The way back of :func:`_to_tokens`."""
    dims = len(grid)
    split = logits.reshape(*grid, *[CELLS[dims]] * dims, logits.shape[2])  # (tokens, ..., cells, ..., K)
    order = [2 * dims, *(axis for pair in zip(range(dims), range(dims, 2 * dims), strict=True) for axis in pair)]
    return split.permute(order).reshape(logits.shape[2], *(CELLS[dims] * side for side in grid))


def score_answers(metric: CumulativeIterationMetric, buffers: Sequence[torch.Tensor]) -> float:
    """The metric of what it keeps of each image; NaN where there is nothing to compare."""
    metric.extend(*buffers)
    try:
        return float(metric.aggregate())
    except ValueError:
        return math.nan


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
