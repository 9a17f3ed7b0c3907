# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import unittest
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Lambda
from parameterized import parameterized
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score
from utils_data import temporary_folder

from monai_dvpt.handlers.confusion_matrix import ConfusionMatrixWriter, plot_confusion_matrices

CLASSES = ["none", "mild", "severe"]


def readings(outputs: int, cases: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Classes of the model and of the reader, of which some are missing."""
    generator = np.random.default_rng(outputs)
    y, other = generator.integers(0, len(CLASSES), (2, cases, outputs))
    y_pred = np.where(generator.random(y.shape) < 0.5, y, other)
    y[generator.random(y.shape) < 0.1] = -1
    return y_pred, y


def panels_of(figure: Figure) -> list:
    panels = [*figure.axes, *(panel for part in figure.subfigs for panel in part.axes)]
    return [panel for panel in dict.fromkeys(panels) if panel.axison]


class TestConfusionMatrixWriter(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self) / "out"

    def evaluate(self, y_pred: np.ndarray, y: np.ndarray, classes: Any = CLASSES, **arguments: Any) -> None:
        """Twice, so that the second run must start anew."""
        data = [{"image": torch.tensor(a).float(), "label": b} for a, b in zip(y_pred, y, strict=True)]
        grade, label = arguments.get("keys", ("grade", "label"))
        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(data), batch_size=4),
            network=torch.nn.Identity(),
            postprocessing=Lambda(lambda case: {grade: case["pred"], label: case["label"]}),
            val_handlers=[ConfusionMatrixWriter(self.folder, classes, **arguments)],
        )
        for _ in range(2):
            evaluator.run()

    def rows(self) -> list[list[str]]:
        with open(self.folder / "confusion_matrix.csv", newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    def check(self, y_pred: np.ndarray, y: np.ndarray, outputs: list[str]) -> None:
        """The table, against scikit-learn."""
        header, *rows = self.rows()
        self.assertEqual(header, ["output", "reader", "model: none", "model: mild", "model: severe"])
        columns = [slice(None), *range(y.shape[1])] if y.shape[1] > 1 else [0]
        self.assertEqual(len(rows), len(CLASSES) * len(columns))
        for index, (column, output) in enumerate(zip(columns, outputs, strict=True)):
            keep = y[:, column] != -1
            expected = confusion_matrix(y[:, column][keep], y_pred[:, column][keep], labels=range(len(CLASSES)))
            for name, counts, row in zip(CLASSES, expected, rows[len(CLASSES) * index :], strict=False):
                self.assertEqual(row, [output, name, *map(str, counts)])

    @parameterized.expand(
        [
            ("one", 1, None, ["output 0"]),
            ("one, named", 1, ["grade"], ["grade"]),
            ("several", 2, None, ["", "output 0", "output 1"]),
            ("several, named", 3, ["all", "über", "lower"], ["", "all", "über", "lower"]),
        ]
    )
    def test_files(self, _, number, names, outputs):
        y_pred, y = readings(number)
        self.evaluate(y_pred, y, outputs=names)
        self.check(y_pred, y, outputs)
        self.assertEqual(len(list(self.folder.iterdir())), 2)
        picture = imread(self.folder / "confusion_matrix.png")
        self.assertGreater(min(picture.shape[:2]), 250)
        self.assertGreater(len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)), 10)

    def test_a_number_for_each_case(self):
        y_pred, y = readings(1)
        self.evaluate(y_pred[:, 0], y[:, 0])
        self.check(y_pred, y, ["output 0"])

    def test_other_keys_and_missing_label(self):
        y_pred, y = readings(2)
        self.evaluate(y_pred, np.where(y == -1, 9, y), keys=("prediction", "reading"), ignore_label=9)
        self.check(y_pred, y, ["", "output 0", "output 1"])

    def test_one_rank_writes(self):
        with mock.patch("monai_dvpt.handlers.confusion_matrix.idist.get_rank", return_value=1):
            self.evaluate(*readings(2))
        self.assertFalse(self.folder.exists())

    def test_nothing_is_graded(self):
        y_pred, y = readings(2)
        self.evaluate(y_pred, np.full_like(y, -1))
        self.assertEqual({value for row in self.rows()[1:] for value in row[2:]}, {"0"})

    @parameterized.expand(
        [
            ("outputs", {"outputs": ["left"]}, r"outputs must have one name for each of the 2 outputs, got \['left'\]"),
            ("classes", {"classes": CLASSES[:2]}, r"must hold whole numbers in \[0, num_classes=2\).*, got 2\."),
            ("one class", {"classes": CLASSES[:1]}, r"num_classes must be a whole number of at least 2, got 1\."),
        ]
    )
    def test_refused(self, _, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            self.evaluate(*readings(2), **arguments)
        self.assertFalse(self.folder.exists())


class TestPlotConfusionMatrices(unittest.TestCase):
    @parameterized.expand([("one", 1, 1), ("two", 2, 3), ("five", 5, 6), ("six", 6, 7)])
    def test_panels(self, _, outputs, panels):
        y_pred, y = readings(outputs)
        counts = np.stack(
            [confusion_matrix(y[k, i], y_pred[k, i], labels=range(3)) for i, k in enumerate((y != -1).T)]
        ).astype(float)
        figure = plot_confusion_matrices(counts, CLASSES, [f"zone {index}" for index in range(outputs)])
        drawn = panels_of(figure)
        self.assertEqual(len(drawn), panels)
        keep = y != -1
        kappa = cohen_kappa_score(y[keep], y_pred[keep], weights="quadratic")
        title = drawn[0].get_title()
        self.assertTrue(title.endswith(f"quadratic kappa {kappa:.2f}, n = {keep.sum()}"), title)
        for index, panel in enumerate(drawn[1:]):
            self.assertTrue(panel.get_title().startswith(f"zone {index}\n"))
        total = counts.sum(axis=0)
        for text in drawn[0].texts:
            column, row = map(int, text.get_position())
            count, share = total[row, column], 100 * total[row, column] / total[row].sum()
            self.assertEqual(text.get_text(), f"{count:.0f}\n{share:.0f} %" if count else "0")
        for panel in drawn:
            self.assertEqual((panel.get_xlabel(), panel.get_ylabel()), ("model", "reader"))
            for ticks in (panel.get_xticklabels(), panel.get_yticklabels()):
                self.assertEqual([tick.get_text() for tick in ticks], CLASSES)

    @parameterized.expand(
        [
            (f"{classes} classes, {outputs} outputs, {long}", classes, outputs, long)
            for classes, outputs in ((2, 1), (2, 2), (4, 6), (19, 1))
            for long in (False, True)
        ]
    )
    def test_nothing_overlaps_or_is_cut(self, _, classes, outputs, long):
        """No text lies over another or leaves the picture, also with names of mathematics and thousands of cases."""
        names = [f"moderate $x^{index}" if long else str(index) for index in range(classes)]
        counts = np.full((outputs, classes, classes), 1234.0)
        figure = plot_confusion_matrices(counts, names, [f"left upper zone {index}" for index in range(outputs)])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = []
        for panel in panels_of(figure):
            ticks = [] if long else panel.get_xticklabels()  # turned names have large boxes
            texts = [*panel.texts, panel.title, panel.xaxis.label, panel.yaxis.label, *panel.get_yticklabels(), *ticks]
            boxes += [(text.get_text(), text.get_window_extent()) for text in texts]
        width, height = canvas.get_width_height()
        for index, (text, box) in enumerate(boxes):
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            self.assertTrue(inside, text)
            for other, other_box in boxes[index + 1 :]:
                self.assertFalse(box.padded(-1).overlaps(other_box), f"{text} / {other}")

    def test_classes_without_an_order(self):
        y_pred, y = readings(2)
        counts = np.stack(
            [confusion_matrix(y[k, i], y_pred[k, i], labels=range(3)) for i, k in enumerate((y != -1).T)]
        ).astype(float)
        panels = panels_of(plot_confusion_matrices(counts, CLASSES, ["left", "right"], ordered=False))
        keep = y != -1
        titles = [panel.get_title() for panel in panels]
        f1 = f1_score(y[keep], y_pred[keep], average="macro")
        self.assertEqual(titles[0], f"all outputs\nmacro-F1 {f1:.2f}, n = {keep.sum()}")
        f1 = f1_score(y[keep[:, 1], 1], y_pred[keep[:, 1], 1], average="macro")
        self.assertEqual(titles[2], f"right\nmacro-F1 {f1:.2f}, n = {keep[:, 1].sum()}")
        empty = panels_of(plot_confusion_matrices(np.zeros((1, 3, 3)), CLASSES, ["dx"], ordered=False))[0]
        self.assertEqual(empty.get_title(), "macro-F1 undefined, n = 0")

    def test_undefined(self):
        """An output in which both gave one class, and one without a label."""
        counts = np.zeros((2, 3, 3))
        counts[0, 1, 1] = 5
        figure = plot_confusion_matrices(counts, CLASSES, ["left", "right"])
        titles = [panel.get_title().partition("\n")[2] for panel in panels_of(figure)]
        self.assertEqual(titles, ["kappa undefined, n = 5", "kappa undefined, n = 5", "kappa undefined, n = 0"])
        self.assertEqual({text.get_text() for text in panels_of(figure)[0].texts}, {"0", "5\n100 %"})


if __name__ == "__main__":
    unittest.main()
