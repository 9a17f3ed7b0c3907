# SPDX-License-Identifier: Apache-2.0
"""Chooses one of several backbones by linear probes on the training cases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai.data import Dataset
from monai.transforms import Compose

from monai_dvpt.apps.probe import Candidate, Comparison, Labels, compare_backbones
from monai_dvpt.benchmark.study.job import Task
from monai_dvpt.networks.pretrained import MRI_VIT_TINY
from monai_dvpt.utils import InputError, reason

from ..model import Collection, Measurement
from ..plan import Plan, make_plan
from ..write.labels import LabelValues
from .trial_bundle import inner_parts, patients_of, quiet, trial_bundle

__all__ = ["SHIPPED", "Probing", "choose_file", "count_drawn", "draw_cases", "backbone_names"]

SHIPPED = "shipped"
"""What a user calls the weights of the package."""
GRADED_PICTURES = 300
OTHERS = 100
"""Cases that are probed at most: pictures that are graded, and volumes or pictures that are segmented."""

File = str | os.PathLike | None


def choose_file(
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    backbones: Sequence[File],
) -> tuple[File, Comparison]:
    """
    The file of weights that fits the training cases best, see :func:`monai_dvpt.apps.probe.compare_backbones`.

    Args:
        collection: the cases.
        measured: one for each case; None for a case that is in no part.
        parts: indices of the cases by part; of "training" alone anything is read.
        backbones: files; None for the weights of the package, which are tried for volumes in any case.

    Raises:
        InputError: if a file cannot be used, there are fewer than two patients to train, or a probe fails.
    """
    if collection.spatial_dims == 3 and None not in backbones:
        backbones = [*backbones, None]
    count = count_drawn(collection, parts["training"])
    probing = Probing(collection, measured, parts["training"], backbones, backbone_names(backbones), count)
    with probing.naming_backbone():
        found = compare_backbones(probing.candidates(), probing.labels, probing.patients)
    return backbones[probing.names.index(found.chosen.name)], found


class Probing:
    """
    What probes of several backbones on the same cases need.

    Args:
        collection: the cases.
        measured: one for each case; None for a case that is in no part.
        indices: of the cases to probe.
        backbones: files; None for the weights of the package.
        names: of the backbones, unique.
        most: how many cases are taken at most, see :func:`draw_cases`.

    Attributes:
        names: of the backbones.
        labels: of the cases.
        patients: a number for the patient of each case.

    Raises:
        InputError: if there are fewer than two patients, or a file cannot be used.
    """

    def __init__(
        self,
        collection: Collection,
        measured: Sequence[Measurement | None],
        indices: Sequence[int],
        backbones: Sequence[File],
        names: Sequence[str],
        most: int,
    ) -> None:
        self.collection, self.measured, self.names = collection, measured, list(names)
        self.parts = inner_parts(collection, measured, draw_cases(collection, measured, indices, most))
        order = [index for part in self.parts.values() for index in part]
        numbers = patients_of(collection, measured, order)
        if not all(self.parts.values()):
            raise InputError(
                f"backbones must be compared on at least 2 patients to train, got {len(set(numbers.values()))}."
            )
        self.patients = [numbers[index] for index in order]
        self.labels = _labels(collection, measured, sorted(order))
        self.plans = [make_plan(collection, measured, self.parts, file, measure=None) for file in backbones]
        self.current = self.names[0]

    def candidates(self) -> Iterator[Candidate]:
        """The backbones, one after the other."""
        for name, plan in zip(self.names, self.plans, strict=True):
            self.current = name
            yield from _candidate(name, self.collection, self.measured, self.parts, plan)

    @contextmanager
    def naming_backbone(self) -> Iterator[None]:
        """Context that names the backbone of an error."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # such as too little memory; MONAI wraps every error
            raise InputError(f"{self.current}: {reason(error)}") from error


def count_drawn(collection: Collection, indices: Sequence[int]) -> int:
    """How many of some cases are probed."""
    graded = collection.spatial_dims == 2 and collection.task != "segmentation"
    return min(len(indices), GRADED_PICTURES if graded else OTHERS)


def draw_cases(
    collection: Collection, measured: Sequence[Measurement | None], indices: Sequence[int], most: int
) -> list[int]:
    """At most ``most`` of some cases, so that each label or grade keeps its share."""
    if len(indices) <= most:
        return sorted(indices)

    def marks(index: int) -> tuple[str, ...]:
        grades, each = collection.cases[index].grades, measured[index]
        labels = [name for name, count in each.voxels.items() if count] if each is not None else []
        return (*(f"{output} {grades[output]}" for output in sorted(grades)), *sorted(labels))

    order = sorted(indices, key=lambda index: (marks(index), index))
    return sorted(order[(2 * place + 1) * len(order) // (2 * most)] for place in range(most))


def _candidate(
    name: str,
    collection: Collection,
    measured: Sequence[Measurement | None],
    parts: Mapping[str, Sequence[int]],
    plan: Plan,
) -> Iterator[Candidate]:
    """The network and the images as a bundle for this backbone has them."""
    with trial_bundle(collection, measured, parts, plan) as bundle:
        with quiet():
            parser = Task(str(bundle)).workflow().parser
            network, lists = (parser.get_parsed_content(name) for name in ("network", "cases"))
            transform = Compose(parser.get_parsed_content("train#deterministic_transforms"))
        yield Candidate(name, network, Dataset([case for part in parts for case in lists[part]], transform))


def _labels(collection: Collection, measured: Sequence[Measurement | None], indices: Sequence[int]) -> Labels:
    """What the values of the labels are in a bundle of these cases."""
    if collection.task != "segmentation":
        return Labels(collection.task, collection.labels)
    values = LabelValues(collection.labels)
    for index in indices:
        values.prepare(collection.cases[index].labelled, measured[index])
    return Labels(collection.task, values.names, values.label_sets)


def backbone_names(backbones: Sequence[File]) -> list[str]:
    """
    The names of the files, with as much of their paths as tells them apart.

    Raises:
        InputError: if a file is there twice.
    """
    paths = [Path(os.path.abspath(MRI_VIT_TINY if file is None else file)) for file in backbones]
    if len(set(paths)) < len(paths):
        raise InputError(f"--backbone must name each file once, got {' '.join(path.name for path in paths)}.")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [os.path.join(*path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
