# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt.benchmark coverage``: whether prediction sets hold the true grade as often as they should."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from monai_dvpt.commands.command_line import columns, printable
from monai_dvpt.metrics import PredictionSets
from monai_dvpt.utils import InputError, naming_argument

__all__ = ["Predictions", "add_parser", "read_predictions", "split_patients"]

EXAMPLE = """\
of the sets that the adapter gave to a part of the list that nothing was chosen on:
  python -m monai_dvpt.benchmark coverage SCORES/predictions.csv
of sets calibrated anew, and of 200 divisions of the cases of both files, patients apart:
  python -m monai_dvpt.benchmark coverage TEST/predictions.csv --calibration CALIBRATION/predictions.csv
  python -m monai_dvpt.benchmark coverage TEST/predictions.csv --calibration CALIBRATION/predictions.csv --splits 200
evaluate.yaml writes these files; --part calibration and --part test choose the cases."""


@dataclass(frozen=True)
class Predictions:
    """
    Rows of one or several files ``predictions.csv`` that have a label.

    Attributes:
        names: of the cases, (N,).
        patients: of the cases, (N,), a case's own name where the list has none; None if the files do not tell.
        outputs: of the rows, (N,).
        grades: names of the ``K`` grades.
        label, grade: indices of the true and of the model's grades, (N,).
        probability: of the grades, (N, K).
        sets: lowest and highest index of the prediction sets, (N, 2); None if the rows have none.
    """

    names: np.ndarray
    patients: np.ndarray | None
    outputs: np.ndarray
    grades: tuple[str, ...]
    label: np.ndarray
    grade: np.ndarray
    probability: np.ndarray
    sets: np.ndarray | None

    def of(self, rows: np.ndarray) -> Predictions:
        """Some rows."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Predictions(**{k: v[rows] if isinstance(v, np.ndarray) else v for k, v in found.items()})

    def own_sets(self) -> np.ndarray:
        """Whether each grade is in the set of each row, (N, K); raises an InputError if the rows have no sets."""
        if self.sets is None:
            raise InputError("must have the columns set_low and set_high; the adapter has no prediction sets.")
        indices = np.arange(len(self.grades))
        return (indices >= self.sets[:, :1]) & (indices <= self.sets[:, 1:])

    def sets_by(self, calibration: Predictions, coverage: float) -> np.ndarray:
        """Such sets, calibrated on other predictions, each output on its own."""
        inside = np.zeros(self.probability.shape, dtype=bool)
        for output in dict.fromkeys(self.outputs):
            others, rows = calibration.of(calibration.outputs == output), self.outputs == output
            sets = PredictionSets.fit(_logits(others.probability), others.label[:, None], coverage)
            inside[rows] = sets(_logits(self.probability[rows]), self.grade[rows, None])[:, 0]
        return inside


@naming_argument("path")
def read_predictions(path: Path) -> Predictions:
    """
    The graded rows of a ``predictions.csv`` that ``evaluate.yaml`` of a grading bundle wrote.

    Raises:
        InputError: if the file cannot be read, a column is missing, or a value is no grade or no probability.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV: {error}.") from error
    grades = tuple(name.removeprefix("p_") for name in header if name.startswith("p_"))
    if not grades or not {"name", "output", "label", "grade"} <= set(header):
        raise InputError(f"must have the columns name, output, label, grade and p_GRADE, got {header}.")
    rows = [row for row in rows if row["label"]]
    if not rows:
        raise InputError("must have at least one row with a label, got none.")
    bounds, index = ("set_low", "set_high"), {name: value for value, name in enumerate(grades)}
    try:
        label, grade = ([index[row[name]] for row in rows] for name in ("label", "grade"))
        probability = np.array([[float(row[f"p_{name}"]) for name in grades] for row in rows])
        sets = np.array([[index[row[b]] for b in bounds] for row in rows]) if bounds[0] in header else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"every row must have grades of {list(grades)} and their probabilities, got {error}."
        ) from error
    names, outputs = (np.array([row[name] for row in rows]) for name in ("name", "output"))
    patients = np.array([row["patient"] or row["name"] for row in rows]) if "patient" in header else None
    return Predictions(names, patients, outputs, grades, np.array(label), np.array(grade), probability, sets)


def split_patients(patients: Sequence[str] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """
    Whether each row is on the first side of a random division of the patients.

    Args:
        patients: of the rows.
        share: of the patients on the first side.
        seed: of the division.
    """
    _, index = np.unique(patients, return_inverse=True)
    count = index.max() + 1
    first = np.random.default_rng(seed).permutation(count) < round(share * count)
    return first[index]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "coverage",
        help="how often prediction sets hold the true grade",
        description="Prints how often the prediction sets hold the true grade, in each grade, and their mean size.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="FILE", help="predictions.csv of the cases to test on")
    add("--calibration", type=Path, metavar="FILE", help="predictions.csv of the cases to calibrate on")
    add("--coverage", type=float, default=0.9, metavar="C", help="of sets calibrated here, in (0, 1), 0.9 by default")
    add("--splits", type=int, default=0, metavar="N", help="divide the patients of both files anew N times")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    tested = read_predictions(arguments.predictions)
    if arguments.calibration is None:
        inside = naming_argument("path")(lambda path: tested.own_sets())(arguments.predictions)
        print("\n".join(columns(_table(tested, inside))))
        return
    calibration = read_predictions(arguments.calibration)
    if calibration.grades != tested.grades:
        raise InputError(
            f"{arguments.calibration}: grades must be {list(tested.grades)}, got {list(calibration.grades)}."
        )
    if both := set(calibration.names) & set(tested.names):
        raise InputError(f"{arguments.calibration}: no case may be in both files, got {min(both)}.")
    if not arguments.splits:
        print("\n".join(columns(_table(tested, tested.sets_by(calibration, arguments.coverage)))))
        return
    print("\n".join(columns(_table_of_splits(calibration, tested, arguments))))


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.coverage < 1:
        raise InputError(f"--coverage must be in (0, 1), got {arguments.coverage:g}.")
    if arguments.splits < 0 or arguments.splits and arguments.calibration is None:
        raise InputError(f"--splits must be at least 0, and needs --calibration, got {arguments.splits}.")


def _logits(probability: np.ndarray) -> np.ndarray:
    """Of shape (N, 1, K); -inf for a probability that was rounded to 0."""
    with np.errstate(divide="ignore"):
        return np.log(probability)[:, None]


def _groups(predictions: Predictions) -> list[tuple[str, str, np.ndarray]]:
    """Output, grade and rows of each line of a table; the grade "all" are all grades of an output."""
    groups = []
    for output in dict.fromkeys(predictions.outputs):
        rows = predictions.outputs == output
        graded = [(str(output), name, rows & (predictions.label == k)) for k, name in enumerate(predictions.grades)]
        groups += [*graded, (str(output), "all", rows)]
    return groups


def _table(tested: Predictions, inside: np.ndarray) -> list[list[str]]:
    held, sizes = inside[np.arange(len(inside)), tested.label], inside.sum(axis=1)
    lines = [["output", "grade", "cases", "coverage", "95 % interval", "mean size"]]
    for output, grade, rows in _groups(tested):
        head, count = [printable(output), printable(grade), str(rows.sum())], int(rows.sum())
        if not count:
            lines.append([*head, "-", "-", "-"])
            continue
        interval = binomtest(int(held[rows].sum()), count).proportion_ci(method="exact")
        between = f"{interval.low:.3f} to {interval.high:.3f}"
        lines.append([*head, f"{held[rows].mean():.3f}", between, f"{sizes[rows].mean():.2f}"])
    return lines


def _table_of_splits(calibration: Predictions, tested: Predictions, arguments: argparse.Namespace) -> list[list[str]]:
    """Means over divisions of all patients, in the proportion of the two files."""
    both, first_patients = _joined(calibration, tested), _patients_of(calibration, arguments.calibration)
    patients = np.concatenate([first_patients, _patients_of(tested, arguments.predictions)])
    share = len(set(first_patients)) / len(set(patients))
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for seed in range(arguments.splits):
        first = split_patients(patients, share, seed)
        test = both.of(~first)
        inside = test.sets_by(both.of(first), arguments.coverage)
        held, sizes = inside[np.arange(len(inside)), test.label], inside.sum(axis=1)
        for output, grade, rows in _groups(test):
            if rows.any():
                values = (float(rows.sum()), float(held[rows].mean()), float(sizes[rows].mean()))
                found.setdefault((output, grade), []).append(values)
    lines = [["output", "grade", "cases", "coverage", "SD", "mean size"]]
    for (output, grade), of_splits in found.items():
        (cases, coverage, size), spread = np.mean(of_splits, axis=0), np.std(of_splits, axis=0)[1]
        head = [printable(output), printable(grade), f"{cases:.0f}"]
        lines.append([*head, f"{coverage:.3f}", f"{spread:.3f}", f"{size:.2f}"])
    return lines


def _patients_of(predictions: Predictions, path: Path) -> np.ndarray:
    if predictions.patients is None:
        raise InputError(f"{path}: must have a column patient for --splits, which evaluate.yaml writes, got none.")
    return predictions.patients


def _joined(one: Predictions, other: Predictions) -> Predictions:
    """All rows, without sets and patients."""
    names = ("names", "outputs", "label", "grade", "probability")
    pairs = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    return Predictions(**pairs, grades=one.grades, sets=None, patients=None)
