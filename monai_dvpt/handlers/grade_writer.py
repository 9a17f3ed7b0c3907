# SPDX-License-Identifier: Apache-2.0
"""Results of a graded or classified case: a row in a table, the numbers as JSON, and a picture."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.engines import Evaluator

from monai_dvpt.data.dicom_writers import Placed
from monai_dvpt.utils import InputError, atomic_path, to_json
from monai_dvpt.visualize import PLANES, frame_plane, plane_of, to_ras

from .output_format import OutputFormats

__all__ = ["GradeTable", "GradeWriter", "plot_grades"]

DECIMALS = 6  # of probabilities
WORDS = {True: ("grade", "grades"), False: ("class", "classes")}  # by whether there is an order


class GradeTable:
    """
    Writes a CSV file with a row for every case and output: name, output, patient and label (if the cases have a label;
    empty where there is no patient, or no grade), grade, confidence, the lowest and the highest grade of the prediction
    set (``set_low``, ``set_high``) and its ``coverage``, if there is a set, and the probability ``p_<grade>`` of every
    grade. The first batch replaces the file, except for cases that :func:`monai_dvpt.engines.run_cases` skips as done;
    later batches add rows; a repeated case replaces its rows.

    Args:
        path: the CSV file.
        outputs: names of the graded outputs.
        grades: names of the grades, in their order, or of the classes.
        ordered: whether they have an order; if not, the column "grade" is called "class".
    """

    def __init__(
        self, path: str | os.PathLike, outputs: Sequence[str], grades: Sequence[str], ordered: bool = True
    ) -> None:
        self.path = Path(path)
        self.outputs = [str(output) for output in outputs]
        self.grades = [str(grade) for grade in grades]
        self.word = WORDS[ordered][0]
        self.rows: dict[str, str] = {}  # lines of CSV by case
        self.file_is_whole = False  # it has the header and exactly these rows

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose cases have a "name" and, if they are of a list, the "group" of
                :func:`monai_dvpt.data.load_gradelist`, and whose output per case has the "grade", "probability" and
                "confidence" of :class:`monai_dvpt.transforms.GradeLogitsd` and, optionally, the "grade_set" and
                "coverage" of :class:`monai_dvpt.transforms.PredictionSetsd`, and the "label".
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        header, lines = "", {}
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            rows = self._rows(case, output)
            header, lines[case["name"]] = _csv([list(rows[0])]), _csv([list(row.values()) for row in rows])
        if not self.rows:
            self.rows = self._rows_before(header, getattr(engine.state, "done_before", ()))
        add = self.file_is_whole and not self.rows.keys() & lines.keys()
        self.rows.update(lines)
        self.file_is_whole = False  # until this batch is in it too
        if not add:
            with atomic_path(self.path) as path:
                path.write_bytes("".join([header, *self.rows.values()]).encode())
        else:
            try:
                with open(self.path, "ab") as file:
                    file.write("".join(lines.values()).encode())
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written: {error}") from error
        self.file_is_whole = True

    def _rows_before(self, header: str, names: Container[str]) -> dict[str, str]:
        """Lines of these cases in a file with the same header."""
        if not names or not self.path.is_file():
            return {}
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        kept: dict[str, str] = {}
        for row in rows[1:] if _csv(rows[:1]) == header else []:
            if row[0] in names:
                kept[row[0]] = kept.get(row[0], "") + _csv([row])
        return kept

    def _rows(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> list[dict[str, Any]]:
        names = [*self.grades, ""]  # of -1, not graded
        group = str(case.get("group", ""))
        patient = "" if os.path.isabs(group) else group  # an image without a patient is a group by its path
        rows = []
        for index, (graded, found) in enumerate(grades_of(output, self.outputs, self.grades).items()):
            label = output.get("label")
            known = {} if label is None else {"patient": patient, "label": names[int(label[index])]}
            chances = {f"p_{grade}": chance for grade, chance in found["probabilities"].items()}
            row = {"name": case["name"], "output": graded, **known, self.word: found["grade"]}
            row |= {"confidence": found["confidence"]}
            if "set" in found:
                row |= {"set_low": found["set"][0], "set_high": found["set"][-1], "coverage": found["coverage"]}
            rows.append({**row, **chances})
        return rows


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


class GradeWriter:
    """
    Writes, for every case, ``<name>_grades.json`` (grade, probabilities, confidence and, if there is one,
    the prediction set of every output) and
    ``<name>_grades.png`` (the image beside them), for all cases ``grades.csv`` (see :class:`GradeTable`), and the
    chosen formats for grades of ``monai_dvpt.data.formats.FORMATS``.

    Args:
        output_dir: folder for the files.
        outputs: names of the graded outputs.
        grades: names of the grades, in their order, or of the classes.
        output_format: one or several formats; "json" is always written, DICOM formats need DICOM input.
        metadata: ``metadata.json`` of the bundle, for DICOM: name and version of the model.
        ordered: whether the grades have an order; if not, the files and what they say are of "classes" and a "class",
            and the bars of the picture have colours without an order.

    Raises:
        InputError: if a format is unknown, or metadata is missing for DICOM.
        OptionalImportError: if highdicom is not installed for DICOM.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        outputs: Sequence[str],
        grades: Sequence[str],
        output_format: str | Sequence[str] = "json",
        metadata: str | os.PathLike | None = None,
        ordered: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.ordered = ordered
        self.words = WORDS[ordered][1]
        self.table = GradeTable(self.output_dir / f"{self.words}.csv", outputs, grades, ordered)
        self.formats = OutputFormats(output_format, "grading", metadata)

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: as for :class:`GradeTable`; its output has also the "image", of shape (1 or 3, rows, columns) or
                (1, x, y, z).
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)
        self.table.attach(engine)

    def write(self, engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            name = case["name"]
            source = self.formats.source(output["image"]) if self.formats.dicom else None
            found = grades_of(output, self.table.outputs, self.table.grades)
            figure = plot_grades(output["image"], found, name, self.ordered)
            with atomic_path(self.output_dir / f"{name}_{self.words}.png") as path:
                figure.savefig(path, dpi=110)
            if source is not None:
                placed = Placed(grades=found)
                if "secondary_capture" in self.formats:
                    canvas = FigureCanvasAgg(figure)
                    canvas.draw()
                    placed = replace(placed, picture=np.asarray(canvas.buffer_rgba())[..., :3])
                self.formats.write(str(self.output_dir / name), placed, source)
            with atomic_path(self.output_dir / f"{name}_{self.words}.json") as path:
                path.write_text(to_json({"name": name, "outputs": in_words(found, self.ordered)}), encoding="utf-8")


def grades_of(output: Mapping[str, Any], outputs: Sequence[str], grades: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    For each of a case's ``outputs`` its "grade", the "probabilities" by grade, and the "confidence", from an ``output``
    of :class:`monai_dvpt.transforms.GradeLogitsd`; from one of :class:`monai_dvpt.transforms.PredictionSetsd` also the
    grades of its "set", and the "coverage".
    """
    found = zip(outputs, output["grade"].tolist(), output["probability"].tolist(), output["confidence"], strict=True)
    graded: dict[str, dict[str, Any]] = {
        name: {
            "grade": grades[grade],
            "probabilities": {g: round(p, DECIMALS) for g, p in zip(grades, probability, strict=True)},
            "confidence": round(float(confidence), DECIMALS),
        }
        for name, grade, probability, confidence in found
    }
    for one, inside in zip(graded.values(), output.get("grade_set", ()), strict="grade_set" in output):
        one["set"] = [grade for grade, there in zip(grades, inside.tolist(), strict=True) if there]
        one["coverage"] = output["coverage"]
    return graded


def in_words(found: Mapping[str, Mapping[str, Any]], ordered: bool) -> dict[str, dict[str, Any]]:
    """What :func:`grades_of` found, with "class" for "grade" where the classes have no order."""
    word = WORDS[ordered][0]
    return {output: {word if key == "grade" else key: each[key] for key in each} for output, each in found.items()}


def plot_grades(
    image: torch.Tensor, found: Mapping[str, Mapping[str, Any]], title: str, ordered: bool = True
) -> Figure:
    """
    The image, and beside it for every output the probabilities of all grades as bars and the chosen grade. A volume is
    shown in the three planes through its middle.

    Args:
        image: of shape (1 or 3, rows, columns), or (1, x, y, z) with its affine.
        found: for each output its "grade", "probabilities" and "confidence".
        title: heading.
        ordered: whether the grades have an order, which their colours then show.

    Returns:
        the figure, drawn without a display.
    """
    planes = list(PLANES) if image.ndim == 4 else []
    views = max(1, len(planes))
    figure = Figure(figsize=(4.5 + 3 * views, max(4.0, 0.5 * len(found) + 1.2)), layout="constrained")
    *panels, bars = figure.subplots(1, views + 1, width_ratios=(*[1.0] * views, 1.2))
    if planes:
        volume, spacing_mm = to_ras(image)
        for panel, plane in zip(panels, planes, strict=True):
            cut = plane_of(volume[0], plane, np.array(volume.shape[1:]) // 2)
            panel.imshow(cut, cmap="gray", vmin=volume.min(), vmax=volume.max(), origin="lower")
            frame_plane(panel, plane, spacing_mm)
            panel.set_title(plane)
    else:
        pixels = np.moveaxis(image.detach().cpu().numpy(), 0, -1).astype(np.float64)  # (rows, columns, 1 or 3)
        low, high = pixels.min(), pixels.max()
        panels[0].imshow((pixels - low) / max(high - low, 1e-12), cmap="gray")
        panels[0].axis("off")
    _draw_bars(bars, found, ordered)
    figure.legend(*bars.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.suptitle(_plain(title))
    return figure


def _draw_bars(panel: Axes, found: Mapping[str, Mapping[str, Any]], ordered: bool) -> None:
    grades = list(next(iter(found.values()))["probabilities"])
    shades = np.linspace(0.15, 0.85, len(grades))
    colours = colormaps["YlOrRd"](shades) if ordered else colormaps["tab20"](np.arange(len(grades)) % 20)
    left = np.zeros(len(found))
    for grade, colour in zip(grades, colours, strict=True):
        width = np.array([each["probabilities"][grade] for each in found.values()])
        panel.barh(range(len(found)), width, left=left, color=colour, label=_plain(grade))
        left += width
    texts = [f"{_plain(name)}: {_plain(each['grade'])} ({each['confidence']:.0%})" for name, each in found.items()]
    panel.set_yticks(range(len(found)), texts)
    panel.set(xlim=(0, 1), xlabel=f"probability of the {WORDS[ordered][1]}")
    panel.invert_yaxis()


def _plain(text: str) -> str:
    """Text without mathematics for Matplotlib."""
    return text.replace("$", r"\$")
