# SPDX-License-Identifier: Apache-2.0
"""Parts of the cases, patient by patient."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .model import Case, Collection, Measurement

__all__ = ["ENOUGH_TO_CALIBRATE", "groups_of", "split_cases"]

VALIDATION = 0.2
CALIBRATION = 0.15
ENOUGH_TO_CALIBRATE = 300
"""Graded cases from which some are kept for prediction sets."""


def split_cases(
    collection: Collection, measured: Sequence[Measurement | None], before: Mapping[str, str] | None = None
) -> dict[str, list[int]]:
    """
    Puts every labelled and measured case in a part: the one it had before, or that the data state, or one that is
    drawn. Patients, and copies of an image, stay in one part. The parts that are drawn have about the same share of
    every label or grade.

    Args:
        collection: the cases.
        measured: one entry for each case.
        before: part by :attr:`Measurement.content` or :attr:`Case.patient`, of an earlier split.

    Returns:
        indices of the cases by part, "training" and "validation" among them.
    """
    before = before or {}
    usable = [
        index
        for index, (case, each) in enumerate(zip(collection.cases, measured, strict=True))
        if each is not None and (case.read_label is not None or case.grades)
    ]
    groups = groups_of([(index, collection.cases[index], measured[index]) for index in usable])  # type: ignore[misc]
    part_of: dict[int, str] = {}
    left = []
    stated = any(collection.cases[index].part == "validation" for index in usable)
    for members in groups:
        was = next(filter(None, map(before.get, _keys(collection, measured, members))), "")
        says = next(filter(None, (collection.cases[index].part for index in members)), "")
        part = was or (
            "" if says == "training" and not stated else says
        )  # a list of training cases alone is drawn from
        if part:
            part_of |= dict.fromkeys(members, part)
        else:
            left.append(members)
    wanted = {} if stated else {"validation": VALIDATION}
    if collection.task == "grading" and len(usable) >= ENOUGH_TO_CALIBRATE and "calibration" not in part_of.values():
        wanted["calibration"] = CALIBRATION
    part_of |= _draw(collection, measured, left, wanted)
    parts: dict[str, list[int]] = {"training": [], "validation": []}
    for index in usable:
        parts.setdefault(part_of[index], []).append(index)
    return parts


def _keys(collection: Collection, measured: Sequence[Measurement | None], members: Sequence[int]) -> Iterator[str]:
    """What an earlier split may know cases by: their images and patients."""
    for index in members:
        if (each := measured[index]) is not None:
            yield each.content
        yield collection.cases[index].patient


def groups_of(cases: Sequence[tuple[int, Case, Measurement]]) -> list[list[int]]:
    """Indices that must stay together, by patient or by content, in the order of their first."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    for index, case, each in cases:
        patient = f"patient {case.patient}" if case.patient else f"case {index}"
        root[find(patient)] = find(f"content {each.content}")
    groups: dict[str, list[int]] = {}
    for index, _, each in cases:
        groups.setdefault(find(f"content {each.content}"), []).append(index)
    return list(groups.values())


def _draw(
    collection: Collection,
    measured: Sequence[Measurement | None],
    groups: Sequence[Sequence[int]],
    wanted: Mapping[str, float],
) -> dict[int, str]:
    """A part for every group: that in which its rarest label is scarcest against the share that is wanted."""
    shares = {"training": 1 - sum(wanted.values()), **wanted}
    marks = {index: _marks(collection.cases[index], measured[index]) for group in groups for index in group}
    total = Counter(mark for group in groups for index in group for mark in marks[index])
    have: dict[str, Counter[str]] = {part: Counter() for part in shares}
    drawn: dict[int, str] = {}
    order = random.Random(0).sample(list(groups), len(groups))

    def rarest(group: Sequence[int]) -> str:
        return min((mark for index in group for mark in marks[index]), key=lambda mark: (total[mark], mark))

    for group in sorted(order, key=lambda group: total[rarest(group)]):
        mark = rarest(group)
        size = sum(mark in marks[index] for index in group)
        # training first, so that the last parts stay small when there are few
        part = max(shares, key=lambda part: shares[part] * total[mark] - have[part][mark] - size / 2)
        drawn |= dict.fromkeys(group, part)
        have[part].update(each for index in group for each in marks[index])
    for part in shares:
        if part not in drawn.values() and len(groups) >= len(shares):
            biggest = max(shares, key=lambda name: have[name].total())
            moved = next(group for group in reversed(order) if drawn[group[0]] == biggest)
            drawn |= dict.fromkeys(moved, part)
    return drawn


def _marks(case: Case, each: Measurement | None) -> list[str]:
    """What the parts must share evenly: the labels or grades of a case, and its being a case."""
    grades = [f"{output} {grade}" for output, grade in case.grades.items()]
    labels = [name for name, count in each.voxels.items() if count] if each is not None else []
    return [*grades, *labels, "case"]
