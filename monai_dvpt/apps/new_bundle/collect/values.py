# SPDX-License-Identifier: Apache-2.0
"""Grades and classes from the cells of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from monai_dvpt.data.gradelist import as_number

from ..model import Finding, Options
from .columns import is_empty
from .images import some

__all__ = ["Values", "plain_value", "read_values"]

MOST_SLIPS = 0.02
"""Share of the cells up to which a value beside others may be a slip of the pen."""
FEW_CASES = 5
CLOSE = 0.8
"""Likeness of two texts, of 1, from which one may be a slip for the other."""


@dataclass
class Values:
    """
    What the cells of outputs say.

    Attributes:
        task: "grading" or "classification".
        labels: names of the grades in their order, or of the classes.
        slips: why a value is not one of them, by value.
        findings: what is odd.
    """

    task: str
    labels: list[str]
    slips: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def name(self, cell: str) -> str | None:
        """The grade or class of a cell, "" of an empty one, None of another text."""
        if is_empty(cell) and cell not in self.labels:
            return ""
        value = plain_value(cell)
        for label in self.labels:
            if plain_value(label).casefold() == value.casefold():
                return label
        by_index = value.isdecimal() and all(as_number(label) is None for label in self.labels)
        return self.labels[int(value)] if by_index and int(value) < len(self.labels) else None

    def why(self, cell: str) -> str:
        """Why a cell is none of the grades or classes."""
        return self.slips.get(plain_value(cell), f"must be one of {', '.join(self.labels)}")


MAX_DIGITS = 18
"""Of a number that may be a grade."""
MAX_GRADES = 30


def plain_value(cell: str) -> str:
    """A cell without spaces around it; a whole number without its fraction, so that 2.0 is 2."""
    number = as_number(cell)
    if number is None or not math.isfinite(number):
        return " ".join(cell.split())
    return str(int(number)) if number == int(number) else f"{number:g}"


def read_values(outputs: Mapping[str, Sequence[str]], options: Options, where: str) -> Values:
    """
    Args:
        outputs: cells of each output; all outputs share their grades.
        options: with the task and the grades, if the user names them.
        where: the table, for findings.
    """
    counts = Counter(plain_value(cell) for cells in outputs.values() for cell in cells if not is_empty(cell))
    if options.grades:
        return _named(counts, options, where)
    counts, findings = _joined(counts, where)
    short = (value for value in counts if len(value) <= MAX_DIGITS)
    numbers = {value: int(value) for value in short if value.removeprefix("-").isdecimal()}
    slips = _slips(counts, numbers)
    kept = [value for value in counts if value not in slips]
    whole = all(value in numbers for value in kept)
    labels = sorted(kept, key=lambda value: (as_number(value) is None, as_number(value) or 0, value))
    in_order = whole and len(labels) > 1 and _is_run([numbers[value] for value in labels])
    task = options.task or ("grading" if in_order else "classification")
    if task == "grading" and whole and labels and not in_order:
        first, last = min(numbers[labels[0]], 1), numbers[labels[-1]]
        if last - first >= MAX_GRADES:
            message = f"grades must be at most {MAX_GRADES} numbers, got {first} to {last}; name them with --grades."
            findings.append(Finding("too many grades", where, message, error=True))
        else:
            labels = [str(value) for value in range(first, last + 1)]
            findings.append(Finding("grades filled in", where, f"all numbers from {first} to {last} are grades."))
    elif task == "grading" and any(as_number(value) is None for value in kept):
        message = f"grades must be numbers, or be named in their order with --grades; got {some(labels)}."
        findings.append(Finding("order of grades not known", where, message, error=True))
    elif not options.task and whole:
        findings.append(_told(labels, in_order, where))
    return Values(task, labels, slips, [*findings, *_spread(outputs, labels, slips, where)])


def _is_run(numbers: Sequence[int]) -> bool:
    """Whether numbers are consecutive from 0 or 1."""
    return numbers[0] in (0, 1) and list(numbers) == list(range(numbers[0], numbers[-1] + 1))


def _told(labels: Sequence[str], in_order: bool, where: str) -> Finding:
    """What numbers are taken for."""
    if in_order:
        message = f"the values {labels[0]} to {labels[-1]} are taken as grades, in their order; pass --task "
        return Finding("taken as grades", where, message + "classification if they have no order.")
    message = f"the values {some(labels)} are not consecutive, and are taken as classes without an order; pass --task "
    return Finding("taken as classes", where, message + "grading if they are grades.")


def _named(counts: Counter[str], options: Options, where: str) -> Values:
    """The values where the user names them."""
    values = Values(options.task or "grading", list(options.grades))
    if not options.task:
        numbers = [as_number(grade) for grade in options.grades]
        if None in numbers:
            values.task = "classification"
            message = "the names of --grades are taken as classes without an order; pass --task grading for grades."
        else:
            message = "the numbers of --grades are taken as grades, in their order; pass --task classification for "
            message += "classes without an order."
        values.findings.append(Finding(f"taken as {'classes' if None in numbers else 'grades'}", where, message))
    for value in counts:
        if values.name(value) is None:
            values.slips[value] = f"must be one of {', '.join(options.grades)}"
    return values


def _joined(counts: Counter[str], where: str) -> tuple[Counter[str], list[Finding]]:
    """Values that differ in case alone become the most frequent of them."""
    spellings: dict[str, list[str]] = {}
    for value, _ in counts.most_common():
        spellings.setdefault(value.casefold(), []).append(value)
    findings = []
    for first, *others in spellings.values():
        if others:
            message = f"{some(others)} in {sum(counts[each] for each in others)} cells is taken as {first}."
            findings.append(Finding("spelled differently", where, message))
    joined = {same[0]: sum(counts[each] for each in same) for same in spellings.values()}
    return Counter(joined), findings


def _slips(counts: Counter[str], numbers: Mapping[str, int]) -> dict[str, str]:
    """Rare values that are no grades beside those that are, and texts that are almost another."""
    total = counts.total()
    most = max(1, MOST_SLIPS * total)
    rare = [value for value in counts if counts[value] <= most]
    rest = sorted(numbers[value] for value in numbers if value not in rare)
    if len(rest) > 1 and sum(counts[value] for value in numbers) > total / 2:
        fits = {value for value in rare if value in numbers and _is_run(sorted({*rest, numbers[value]}))}
        fits |= set(numbers) if _is_run(sorted(numbers.values())) or not _is_run(rest) else set()
        why = f"must be a whole number like the others, {rest[0]} to {rest[-1]}"
        odd = {value for value in counts if as_number(value) is None} | ({*rare} - fits)
        return {value: why for value in counts if value in odd}
    slips = {}
    frequent = {value.casefold(): value for value in counts if value not in rare and value not in numbers}
    for value in rare:
        if value not in numbers and (near := get_close_matches(value.casefold(), frequent, 1, CLOSE)):
            other = frequent[near[0]]
            if counts[other] >= FEW_CASES * counts[value]:
                slips[value] = f"is almost {other}, which {counts[other]} cells have"
    return slips


def _spread(
    outputs: Mapping[str, Sequence[str]], labels: Sequence[str], slips: Mapping[str, str], where: str
) -> list[Finding]:
    """Outputs whose values differ, although they share their grades."""
    if len(outputs) < 2:
        return []
    ends = {}
    for output, cells in outputs.items():
        values = {plain_value(cell) for cell in cells if not is_empty(cell)} - set(slips)
        indices = [index for index, label in enumerate(labels) if label in values]
        ends[output] = (labels[indices[0]], labels[indices[-1]]) if indices else ("", "")
    if len({high for _, high in ends.values()}) < 2:
        return []
    listed = some(f"{output} {low} to {high}" for output, (low, high) in ends.items())
    message = f"all outputs of a bundle share their grades, {labels[0]} to {labels[-1]}; got {listed}."
    return [Finding("outputs differ", where, message)]
