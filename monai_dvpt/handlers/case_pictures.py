# SPDX-License-Identifier: Apache-2.0
"""Pictures of the cases of an evaluation that tell most: the best and the worst, the most and the least certain."""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.metrics import compute_dice
from PIL import Image

from monai_dvpt.data.cases import names_of_files
from monai_dvpt.transforms import LoadImage2D
from monai_dvpt.utils import atomic_path, check_counts, to_json
from monai_dvpt.utils.label_sets import UNKNOWN
from monai_dvpt.visualize import PLANES, as_on_screen, plot_contours, scanned_plane, to_ras

from .grade_writer import grades_of

__all__ = ["INDEX", "PICTURES", "GradePictures", "SegmentationPictures"]

logger = logging.getLogger(__name__)

PICTURES = "pictures"
"""Folder of the pictures, in that of an evaluation."""
INDEX = "index.json"
"""File in that folder that says what the pictures show."""
MAX_SIDE = 384  # pixels of a kept picture
VOLUME_SIDE = 256  # pixels of the longer side of a slice that is drawn in its proportions
MARGIN = 0.25  # around the labels, of the side of the slice


class SegmentationPictures:
    """
    Writes, at the end of an evaluation, pictures of the cases with the best, the median and the worst mean Dice to
    ``pictures/`` in a folder: the slice with the largest cross-section of truth and answer, in the plane of the scan,
    around the labels, with the contours of :func:`monai_dvpt.visualize.plot_contours`. ``pictures/index.json`` names
    for each file its "group", the case, its Dice for each label (null without the label in the truth) and their mean,
    and, of a volume, the plane and the slice. A case without any label in the truth has no Dice, so no picture. Under
    "missing" it lists each label of all cases that only the "truth" or only the "answer" lacks, where
    :class:`monai_dvpt.metrics.HausdorffDistanceMm` measures nothing, and the log counts them. Each evaluation replaces
    the files. Only the process of rank 0 writes, of the cases that it saw.

    Args:
        output_dir: folder of the evaluation.
        labels: names of the classes in the order of their values, background first.
        count: the most pictures of each group; with fewer than ``3 * count`` cases a third of the cases.

    Raises:
        ValueError: if ``count`` is no whole number of at least 1.
    """

    GROUPS = ("best", "median", "worst")

    def __init__(self, output_dir: str | os.PathLike, labels: Sequence[str], count: int = 3) -> None:
        check_counts(count=count)
        self.folder = Path(output_dir) / PICTURES
        self.labels = [str(label) for label in labels[1:]]
        self.count = count
        self.paths: list[str] = []  # of all cases
        self.seen: list[_Segmented] = []
        self.missing: list[tuple[int, str, str]] = []  # index of the case, label, and what lacks it
        self.slices: BinaryIO

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose output per case has one-hot maps "pred" and "label" of shape (classes, \\*spatial),
                on the grid of the file, and the "image": of a volume on the same grid, with its affine, of which the
                first channel is shown; of a picture only the path in its metadata is used.
        """
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def reset(self, engine: Engine) -> None:
        """Forgets the cases; the file of their slices has no name and ends with the handler."""
        self.paths, self.seen, self.missing = [], [], []
        self.slices = tempfile.TemporaryFile()
        weakref.finalize(self, self.slices.close)

    def add(self, engine: Engine) -> None:
        for output in engine.state.output:
            pred, label, image = output["pred"], output["label"], output["image"]
            self.paths.append(str(image.meta["filename_or_obj"]))
            dice = compute_dice(_plain(pred)[None], _plain(label)[None], include_background=False)[0].tolist()
            self._add_missing(pred, label)
            found = [value for value in dice if value == value]  # NaN where the truth has no such label
            if not found:
                continue
            truth, answer = (_plain(each).argmax(0, keepdim=True) for each in (label, pred))
            if label.ndim == 4:
                shown = _slice_of(image, *(MetaTensor(each, affine=label.affine) for each in (truth, answer)))
            else:
                shown = _shown([_whole(image), truth.numpy()[0], answer.numpy()[0]], 1.0, {})
            place = self.slices.seek(0, os.SEEK_END)
            for array in shown.arrays:
                np.save(self.slices, array, allow_pickle=False)
            scores, mean = dict(zip(self.labels, dice, strict=True)), sum(found) / len(found)
            self.seen.append(_Segmented(len(self.paths) - 1, scores, mean, shown.aspect, shown.where, place))

    def _add_missing(self, pred: MetaTensor, label: MetaTensor) -> None:
        """Labels that only the truth or only the answer has, without those that were not drawn."""
        in_answer, in_truth = (each.flatten(1).any(dim=1).tolist() for each in (pred, label))
        for value, name in enumerate(self.labels, 1):
            if in_answer[value] != in_truth[value] and value not in label.meta.get(UNKNOWN, ()):
                self.missing.append((len(self.paths) - 1, name, "answer" if in_truth[value] else "truth"))

    def write(self, engine: Engine) -> None:
        names = names_of_files(self.paths)
        ranked = sorted(self.seen, key=lambda case: -case.mean)
        entries: list[dict[str, Any]] = []
        pictures: list[Figure] = []
        for group, rank in _ranks(len(ranked), self.count):
            case = ranked[rank]
            facts = {
                "name": names[case.index],
                "rank": rank + 1,
                "mean_dice": case.mean,
                "dice": case.dice,
                **case.where,
            }
            entries.append({"group": group, **facts})
            picture, truth, answer = self._load(case)
            pictures.append(plot_contours(picture, truth, answer, case.aspect))
        missing = [{"name": names[place], "label": label, "missing_in": side} for place, label, side in self.missing]
        index = {"kind": "segmentation", "labels": self.labels, "scored": len(ranked), "missing": missing}
        if missing:
            counts = Counter(f"{label} in the {side}" for _, label, side in self.missing)
            listed = ", ".join(f"{words}: {count}" for words, count in counts.items())
            logger.warning(
                f"Cases without a label, whose HD95 is the diagonal of the image and not measured: {listed}."
            )
        _write(self.folder, index, entries, pictures)
        self.slices.close()

    def _load(self, case: _Segmented) -> list[np.ndarray]:
        self.slices.seek(case.place)
        return [np.load(self.slices, allow_pickle=False) for _ in range(3)]


class GradePictures:
    """
    Writes, at the end of an evaluation, pictures of the graded cases that the model got most wrong (of equal errors
    those of which it was most certain), of which it was least certain, and which it got right and was most certain, to
    ``pictures/`` in a folder. ``pictures/index.json`` names for each file its "group", the case, the output, the
    reader's "label", the model's "answer", its "confidence" and the "probabilities" by grade. A case counts with the
    output that is most wrong. Pictures are as in their files; of a volume there is the middle slice.
    Each evaluation replaces the files. Only the
    process of rank 0 writes, of the cases that it saw.

    Args:
        output_dir: folder of the evaluation.
        outputs: names of the graded outputs.
        grades: names of the grades, in their order, or of the classes.
        ordered: whether they have an order, so that some errors are larger than others.
        count: the most pictures of each group.

    Raises:
        ValueError: if ``count`` is no whole number of at least 1.
    """

    GROUPS = ("most wrong", "least certain", "most certain")

    def __init__(
        self,
        output_dir: str | os.PathLike,
        outputs: Sequence[str],
        grades: Sequence[str],
        ordered: bool = True,
        count: int = 3,
    ) -> None:
        check_counts(count=count)
        self.folder = Path(output_dir) / PICTURES
        self.outputs = [str(output) for output in outputs]
        self.grades = [str(grade) for grade in grades]
        self.ordered, self.count = ordered, count
        self.kept = count * len(self.GROUPS)  # of a group, enough for those that an earlier group takes away
        self.reset()

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: as for :class:`monai_dvpt.handlers.GradeTable`, with a "label"; the output per case has also the
                "image": of shape (1, x, y, z) with its affine, or a picture, of which only the path in its metadata
                is used.
        """
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def reset(self, *_: Any) -> None:
        self.groups: dict[str, list[_Graded]] = {group: [] for group in self.GROUPS}
        self.scored = 0

    def add(self, engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            graded = self._graded(case, output)
            if not graded:
                continue
            self.scored += 1
            error, facts = max(graded, key=lambda each: (each[0], each[1]["confidence"]))
            confidence = facts["confidence"]
            keys: dict[str, tuple[float, ...]] = {"least certain": (-confidence,)}
            keys |= {"most wrong": (error, confidence)} if error else {"most certain": (confidence,)}
            picture = None
            for group, key in keys.items():
                kept = self.groups[group]
                if len(kept) == self.kept and key <= kept[-1].key:
                    continue
                picture = _thumbnail(output["image"]) if picture is None else picture
                kept.append(_Graded(key, facts, picture))
                kept.sort(key=lambda each: each.key, reverse=True)
                del kept[self.kept :]

    def write(self, engine: Engine) -> None:
        entries: list[dict[str, Any]] = []
        pictures: list[Image.Image] = []
        for group, cases in self.groups.items():
            taken = {entry["name"] for entry in entries}
            for case in [case for case in cases if case.facts["name"] not in taken][: self.count]:
                entries.append({"group": group, **case.facts})
                pictures.append(Image.fromarray(case.picture))
        index = {"kind": "grades", "grades": self.grades, "ordered": self.ordered, "scored": self.scored}
        _write(self.folder, index, entries, pictures)
        self.reset()

    def _graded(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """How wrong the model is in each output that the reader graded, and what the index says of it."""
        graded = []
        for index, (name, found) in enumerate(grades_of(output, self.outputs, self.grades).items()):
            label = int(output["label"][index])
            if label < 0:
                continue
            away = abs(self.grades.index(found["grade"]) - label)
            facts = {"name": case["name"], "output": name, "label": self.grades[label], "answer": found["grade"]}
            facts |= {"confidence": found["confidence"], "probabilities": found["probabilities"]}
            graded.append((away if self.ordered else int(away > 0), facts))
        return graded


@dataclass(frozen=True)
class _Segmented:
    """What is known of a segmented case, by its place among all; its slices lie at a ``place`` of a file."""

    index: int
    dice: Mapping[str, float]
    mean: float
    aspect: float
    where: Mapping[str, Any]
    place: int


@dataclass(frozen=True)
class _Graded:
    """How much a case belongs to a group, what the index says of it, and bytes of its picture."""

    key: tuple[float, ...]
    facts: dict[str, Any]
    picture: np.ndarray


@dataclass(frozen=True)
class _Shown:
    """A picture, truth and answer of shape (rows, columns), and the height of a pixel over its width."""

    arrays: Sequence[np.ndarray]
    aspect: float
    where: Mapping[str, Any]


def _plain(tensor: Any) -> torch.Tensor:
    return torch.as_tensor(tensor).as_subclass(torch.Tensor).detach().cpu()


def _ranks(cases: int, count: int) -> list[tuple[str, int]]:
    """Groups with ranks from 0, the best; no rank is in two groups."""
    count = min(count, max(1, cases // 3))
    middle = (cases - count) // 2
    ranks = {"best": range(count), "median": range(middle, middle + count), "worst": range(cases - count, cases)}
    taken: dict[int, str] = {}
    for group in ("best", "worst", "median"):
        for rank in ranks[group]:
            if 0 <= rank < cases:
                taken.setdefault(rank, group)
    return [(group, rank) for rank, group in sorted(taken.items())]


def _slice_of(image: MetaTensor, truth: MetaTensor, answer: MetaTensor) -> _Shown:
    if image.shape[1:] != truth.shape[1:]:
        sizes = f"{tuple(truth.shape[1:])}, got {tuple(image.shape[1:])}"
        raise ValueError(f"image must be on the grid of the label, so inverted like pred, {sizes}.")
    (volume, spacing), (y, _), (y_pred, _) = (to_ras(each) for each in (image, truth, answer))
    plane = scanned_plane(spacing)
    cut, across, up = PLANES[plane]
    areas = ((y[0] > 0) | (y_pred[0] > 0)).sum(axis=(across, up))
    centre = np.array(volume.shape[1:]) // 2
    centre[cut] = areas.argmax() if areas.any() else centre[cut]
    arrays = [as_on_screen(each[0], plane, centre) for each in (_bytes(volume[:1], (1, 99)), y, y_pred)]
    where = {"plane": plane, "slice": int(centre[cut]) + 1, "slices": len(areas)}
    return _shown(arrays, spacing[up] / spacing[across], where)


def _shown(arrays: Sequence[np.ndarray], aspect: float, where: Mapping[str, Any]) -> _Shown:
    """Of picture, truth and answer what surrounds the labels, or everything without any; at most ``MAX_SIDE`` wide."""
    _, truth, answer = arrays
    box = [slice(None), slice(None)]
    inside = np.argwhere((truth > 0) | (answer > 0))
    if len(inside):
        for axis, side in enumerate(truth.shape):
            pad = int(MARGIN * side) + 1
            box[axis] = slice(max(0, inside[:, axis].min() - pad), inside[:, axis].max() + pad + 1)
    step = max(1, -(-max(truth[tuple(box)].shape) // MAX_SIDE))
    kinds = (np.uint8, np.uint16, np.uint16)
    kept = [each[tuple(box)][::step, ::step].astype(kind) for each, kind in zip(arrays, kinds, strict=True)]
    return _Shown(kept, aspect, where)


def _bytes(values: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Values from black to white, between two percentiles."""
    low, high = np.percentile(values, percentiles)
    return (255 * np.clip((values - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)


def _thumbnail(image: Any) -> np.ndarray:
    """Bytes, grey or in three colours: the middle slice of a volume, or a picture as in its file."""
    if image.ndim == 4:
        volume, spacing = to_ras(image)
        plane = scanned_plane(spacing)
        centre = np.array(volume.shape[1:]) // 2
        grey = as_on_screen(_bytes(volume, (1, 99))[0], plane, centre)
        _, across, up = PLANES[plane]
        sides_mm = np.array(grey.shape) * (spacing[up], spacing[across])
        rows, columns = np.maximum(1, np.round(VOLUME_SIDE * sides_mm / sides_mm.max())).astype(int)
        return np.asarray(Image.fromarray(grey).resize((columns, rows), Image.Resampling.BILINEAR))
    picture = Image.fromarray(_whole(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(picture)


def _whole(image: Any) -> np.ndarray:
    """Bytes of a picture, of shape (rows, columns, 3), as in its file: neither resized nor normalised."""
    return np.moveaxis(_bytes(LoadImage2D(3)(image.meta["filename_or_obj"]).numpy(), (0, 100)), 0, -1)


def _write(folder: Path, index: dict[str, Any], entries: Sequence[dict[str, Any]], pictures: Sequence[Any]) -> None:
    """Replaces what an earlier evaluation left; names of files say nothing of a case."""
    for group in (*SegmentationPictures.GROUPS, *GradePictures.GROUPS):
        for path in folder.glob(f"{_stem(group)}_[0-9]*.png"):
            path.unlink()
    counts: dict[str, int] = {}
    listed = []
    for entry, picture in zip(entries, pictures, strict=True):
        group = entry["group"]
        counts[group] = counts.get(group, 0) + 1
        file = f"{_stem(group)}_{counts[group]}.png"
        with atomic_path(folder / file) as path:
            picture.savefig(path) if isinstance(picture, Figure) else picture.save(path, format="PNG")
        listed.append({"file": file, **entry})
    with atomic_path(folder / INDEX) as path:
        path.write_text(to_json({**index, "cases": listed}), encoding="utf-8")


def _stem(group: str) -> str:
    return group.replace(" ", "_")
