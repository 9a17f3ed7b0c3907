# SPDX-License-Identifier: Apache-2.0
"""How good the answers of an evaluation are, and what they look like."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.data.cases import names_of_files
from monai_dvpt.handlers.case_pictures import INDEX, PICTURES
from monai_dvpt.utils import is_number
from monai_dvpt.visualize import label_colour

from .charts import dots
from .files import Reader
from .model import Gallery, Picture, Section, Table, Text, entries, number, with_interval
from .scores import RESAMPLES, agreement, mean_score
from .training_section import metric_in_words

__all__ = ["evaluation_section"]

MAX_PICTURES = 12
MAX_CASES = 300  # in a table
PICTURE_WIDTH = 420
WIDE = 900
FEW = 20
"""Cases or patients below which an interval by the bootstrap is too narrow."""
PENALTY = "*"
HD95 = "hd95"
MEAN = "mean of labels"
INTERVAL = f"In brackets: 95 % intervals by the percentile bootstrap with {RESAMPLES:,} resamples of the"
Scores = list[tuple[str, list[float]]]


def evaluation_section(folder: Path, reader: Reader) -> Section:
    """From the files of an evaluation; without blocks where there are none."""
    section = Section("Evaluation")
    index = reader.json(folder / PICTURES / INDEX)
    _add_segmentation(section, folder, reader, index)
    _add_grades(section, folder, reader)
    section.blocks += _pictures(folder / PICTURES, reader, index)
    _add_calibration(section, folder, reader)
    return section


def _add_segmentation(section: Section, folder: Path, reader: Reader, index: Mapping[str, Any]) -> None:
    tables = {path.name.removesuffix("_raw.csv"): reader.raw_scores(path) for path in sorted(folder.glob("*_raw.csv"))}
    tables = {name: scores for name, scores in tables.items() if scores}
    if not tables:
        return
    width = len(next(iter(tables.values()))[0][1])
    labels = [str(label) for label in entries(index.get("labels"))]
    if len(labels) != width:
        labels = [f"label {value}" for value in range(1, width + 1)]
    missing = _missing(index)
    header, rows = ["label", "cases"], [[label] for label in [*labels, MEAN]]
    for name, scores in tables.items():
        columns = [*(_column(scores, place) for place in range(len(labels))), [_mean(row) for _, row in scores]]
        columns = [[value for value in column if not math.isnan(value)] for column in columns]
        decimals = 3 if "dice" in name else 2
        if len(rows[0]) == 1:
            for row, column in zip(rows, columns, strict=True):
                row.append(str(len(column)))
        header += [metric_in_words(name), f"median {metric_in_words(name)}"]
        for row, column in zip(rows, columns, strict=True):
            score = with_interval(*mean_score(column), decimals)
            row += [
                score + PENALTY * (HD95 in name and _is_penalised(row[0], missing)),
                number(statistics.median(column), decimals) if column else "–",
            ]
        if name == "val_dice":
            section.key_facts.append(mean_score(columns[-1]).key_fact("Dice, mean of labels"))
            section.key_facts.append(("cases scored", number(len(columns[-1])), ""))
    section.blocks.append(Table("Scores by label", header, rows))
    section.blocks.append(Text(f"{INTERVAL} cases, as if no two were of one patient."))
    if missing and any(HD95 in name for name in tables):
        section.blocks.append(Text(_penalty_in_words(missing)))
    section.blocks += _few({str(row[0]): int(row[1]) for row in rows}, "cases")
    if dice := tables.get("val_dice"):
        found = {label: [v for v in _column(dice, place) if v == v] for place, label in enumerate(labels)}
        alt = "Dice of every case, a dot each, with a line at the median: " + "; ".join(
            f"{label} from {min(values):.2f} to {max(values):.2f}" for label, values in found.items() if values
        )
        section.blocks.append(Picture(dots(found, "Dice"), f"{alt}.", "Dice of every case; the line is the median"))
    section.blocks += _table_of_cases(tables, labels, missing)


def _missing(index: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Case and label, where only the truth or only the answer has the label."""
    listed = [each for each in entries(index.get("missing")) if isinstance(each, Mapping)]
    return {(str(each.get("name")), str(each.get("label"))) for each in listed}


def _is_penalised(label: str, missing: set[tuple[str, str]]) -> bool:
    """Whether a case lacks a label; the mean of labels, which has all of them, whether one lacks any."""
    return any(label in (name, MEAN) for _, name in missing)


def _penalty_in_words(missing: set[tuple[str, str]]) -> str:
    counts = Counter(label for _, label in missing)
    listed = ", ".join(f"{label} in {count}" for label, count in counts.items())
    cases = len({name for name, _ in missing})
    return (
        f"{PENALTY} Not measured alone: where only the truth or only the answer has a label, the diagonal of the image "
        f"stands for its HD95, so that a missed label never scores well. So in {cases} cases: {listed}."
    )


def _few(counts: Mapping[str, int], unit: str) -> Iterator[Text]:
    """A warning where intervals rest on few cases or patients."""
    few = [f"{name}: {count}" for name, count in counts.items() if 1 < count < FEW]
    if few:
        why = f"an interval from fewer than {FEW} is not reliable, as a rule too narrow"
        yield Text(f"Few {unit} ({', '.join(few)}): {why}.", warning=True)


def _table_of_cases(
    tables: Mapping[str, Scores], labels: Sequence[str], missing: set[tuple[str, str]]
) -> Iterator[Table]:
    """Every case, the worst first."""
    first = next(iter(tables.values()))
    names = names_of_files([path for path, _ in first])
    header = ["case", *(f"{metric_in_words(name)}: {label}" for name in tables for label in labels)]
    rows = []
    for place, name in enumerate(names):
        each = {metric: scores[place][1] for metric, scores in tables.items() if len(scores) == len(names)}
        mean = _mean(next(iter(each.values())))
        rank = (math.isnan(mean), mean if "dice" in next(iter(tables)) else -mean)
        cells = [
            number(value) + PENALTY * (HD95 in metric and (name, label) in missing)
            for metric, row in each.items()
            for label, value in zip(labels, row, strict=True)
        ]
        rows.append((rank, [name, *cells]))
    rows.sort(key=lambda row: row[0])
    left = "" if len(rows) <= MAX_CASES else f" (the first {MAX_CASES} of {len(rows)})"
    yield Table(f"Every case, the worst first{left}", header, [row for _, row in rows[:MAX_CASES]], folded=True)


def _add_grades(section: Section, folder: Path, reader: Reader) -> None:
    rows = reader.table(folder / "predictions.csv", "name", "output")
    if not rows:
        return
    word = "grade" if "grade" in rows[0] else "class"
    grades = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")]
    graded = [row for row in rows if row.get("label") in grades and row.get(word) in grades]
    outputs = list(dict.fromkeys(row["output"] for row in graded))
    if not graded:
        section.blocks.append(Text("No case has a grade of a reader.", warning=True))
        return
    groups = {output: [row for row in graded if row["output"] == output] for output in outputs}
    if len(outputs) > 1:
        groups = {"all outputs": graded, **groups}
    lines, header = [], ["output", "cases"]
    drawn: dict[str, int] = {}
    for output, group in groups.items():
        answers, labels = ([grades.index(row[key]) for row in group] for key in (word, "label"))
        patients = [row.get("patient") or f"case {row['name']}" for row in group]
        scores = agreement(answers, labels, len(grades), patients, ordered=word == "grade")
        header = ["output", "cases", *scores]
        drawn[output] = len(set(patients))
        lines.append([output, len(group), *(with_interval(*score) for score in scores.values())])
        if output == next(iter(groups)):
            section.key_facts += [score.key_fact(name) for name, score in list(scores.items())[:2]]
            section.key_facts.append(("cases scored", number(len({row["name"] for row in group})), ""))
    section.blocks.append(Table("Agreement with the reader", header, lines))
    known = sum(bool(row.get("patient")) for row in graded)
    unit = "patients" if known == len(graded) else "patients; a case without one counts as a patient of its own"
    section.blocks.append(Text(f"{INTERVAL} {unit}."))
    section.blocks += _few(drawn, "patients" if known else "cases")
    if missing := len(rows) - len(graded):
        section.blocks.append(Text(f"{missing} answers have no grade of a reader to compare with."))
    section.blocks += _confusion(folder, reader)


def _confusion(folder: Path, reader: Reader) -> Iterator[Table]:
    matrices: dict[str, list[dict[str, str]]] = {}
    for row in reader.table(folder / "confusion_matrix.csv", "output", "reader"):
        matrices.setdefault(row["output"], []).append(row)
    for output, rows in matrices.items():
        models = [key for key in rows[0] if key.startswith("model: ")]
        counts = [[int(row[key]) if row[key].isdecimal() else 0 for key in models] for row in rows]
        shades = [[min(9, int(10 * count / max(1, sum(line)))) for count in line] for line in counts]
        body = [[f"reader: {row['reader']}", *line] for row, line in zip(rows, counts, strict=True)]
        name = output or "all outputs together"
        caption = (
            f"Confusion matrix of {name}: how often the model gave each answer; darker is a larger share of the row"
        )
        yield Table(caption, ["", *models], body, folded=len(matrices) > 1 and bool(output), shades=shades)


def _pictures(folder: Path, reader: Reader, index: Mapping[str, Any]) -> Iterable[Gallery]:
    listed = [entry for entry in entries(index.get("cases")) if isinstance(entry, Mapping)][:MAX_PICTURES]
    segments = index.get("kind") == "segmentation"
    groups: dict[str, list[Picture]] = {}
    for entry in listed:
        file = str(entry.get("file"))
        source = reader.picture(folder / file, PICTURE_WIDTH) if file == Path(file).name else None
        if source is not None:
            group = str(entry.get("group"))
            words = _segmented(entry, index) if segments else _graded(entry)
            groups.setdefault(group, []).append(Picture(source, *words))
    legend = [(str(label), label_colour(value)) for value, label in enumerate(entries(index.get("labels")), 1)]
    for place, (group, pictures) in enumerate(groups.items()):
        yield Gallery(f"{group[:1].upper()}{group[1:]} cases", pictures, legend if segments and place == 0 else ())


def _segmented(entry: Mapping[str, Any], index: Mapping[str, Any]) -> tuple[str, str]:
    scores = _listed(entry.get("dice"), 3)
    where = f"{entry['plane']} slice {entry.get('slice')} of {entry.get('slices')}" if entry.get("plane") else "picture"
    name, mean = entry.get("name"), number(entry.get("mean_dice"))
    alt = f"Case {name}, {where}, with the contours of truth and answer; mean Dice {mean}."
    rank = f"rank {entry.get('rank')} of {index.get('scored')}"
    return alt, f"{name}: mean Dice {mean} ({rank}); {scores}; {where}"


def _graded(entry: Mapping[str, Any]) -> tuple[str, str]:
    name, label, answer = (entry.get(key) for key in ("name", "label", "answer"))
    chance = entry.get("confidence")
    sure = f"{100 * chance:.0f} %" if is_number(chance) else "–"
    said = f"reader {label}, model {answer} (probability {sure})"
    return (
        f"Case {name}: {said}.",
        f"{name}, {entry.get('output')}: {said}; probabilities {_listed(entry.get('probabilities'), 2)}",
    )


def _listed(values: Any, decimals: int) -> str:
    found = values if isinstance(values, Mapping) else {}
    return ", ".join(f"{name}: {number(value, decimals)}" for name, value in found.items())


def _add_calibration(section: Section, folder: Path, reader: Reader) -> None:
    source = reader.picture(folder / "reliability.png", WIDE)
    metrics = dict(line.split(",", 1) for line in reader.lines(folder / "metrics.csv") if "," in line)
    errors = {
        name: value for name, value in metrics.items() if name.startswith(("val_ece", "val_adaptive", "val_brier"))
    }
    rows = [
        [metric_in_words(name), number(_decimal(value)), number(_decimal(errors.get(f"{name}_uncalibrated", "")))]
        for name, value in errors.items()
        if not name.endswith("_uncalibrated")
    ]
    if rows:
        header = ["error of the probabilities", "with the temperature", "without"]
        section.blocks.append(Table("Calibration: 0 is best", header, rows))
    if source is not None:
        alt = "Reliability diagrams: the share of right answers against the confidence, on the diagonal at best."
        section.blocks.append(Picture(source, alt, alt))
    if metrics:
        listed = [[metric_in_words(name), name, value] for name, value in metrics.items()]
        section.blocks.append(Table("All scores as written", ["score", "key", "value"], listed, folded=True))


def _column(scores: Scores, place: int) -> list[float]:
    return [row[place] for _, row in scores]


def _mean(row: Sequence[float]) -> float:
    found = [value for value in row if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
