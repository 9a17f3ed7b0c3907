# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import unittest
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from matplotlib.image import imread
from monai.data import MetaTensor
from parameterized import parameterized
from utils_data import AFFINE_RAS, temporary_folder

from monai_dvpt.data import load_gradelist
from monai_dvpt.handlers import GradeTable, GradeWriter, plot_grades
from monai_dvpt.transforms import GradeLogitsd
from monai_dvpt.utils import InputError

OUTPUTS, GRADES = ["left", "right"], ["none", "mild", "severe"]
CHANCES = ["p_none", "p_mild", "p_severe"]
PROBABILITY = [[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]]


def output(probability=PROBABILITY, channels: int = 3, label=None) -> dict:
    """The output of an evaluator for one case."""
    logits = torch.tensor(probability).log().flatten()
    image = torch.linspace(-1, 1, channels * 20 * 30).view(channels, 20, 30)
    known = {} if label is None else {"label": torch.tensor(label)}
    return GradeLogitsd("pred", 3)({"pred": logits, "image": image, **known})


def engine(**outputs: dict) -> SimpleNamespace:
    batch = [{"name": name} for name in outputs]
    return SimpleNamespace(state=SimpleNamespace(batch=batch, output=list(outputs.values())))


class TestGradeWriter(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self) / "out"

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.root / name, newline="") as file:
            return list(csv.DictReader(file))

    def write(self, writer, **outputs) -> None:
        for handler in (writer, *([writer.table] if isinstance(writer, GradeWriter) else [])):
            handler.write(engine(**outputs))

    def test_files(self):
        writer = GradeWriter(self.root, OUTPUTS, GRADES)
        self.write(writer, one=output())
        self.write(writer, two=output(PROBABILITY[::-1], channels=1))
        names = ["grades.csv", *(f"{case}_grades.{kind}" for case in ("one", "two") for kind in ("json", "png"))]
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), names)
        written = json.loads((self.root / "one_grades.json").read_text())
        left = {"grade": "none", "probabilities": {"none": 0.7, "mild": 0.2, "severe": 0.1}, "confidence": 0.7}
        right = {"grade": "severe", "probabilities": {"none": 0.05, "mild": 0.15, "severe": 0.8}, "confidence": 0.8}
        self.assertEqual(written, {"name": "one", "outputs": {"left": left, "right": right}})
        rows = self.rows("grades.csv")
        self.assertEqual(
            [(row["name"], row["output"]) for row in rows], [(n, o) for n in ("one", "two") for o in OUTPUTS]
        )
        expected = {"name": "one", "output": "right", "grade": "severe", "confidence": "0.8"}
        self.assertEqual(rows[1], {**expected, "p_none": "0.05", "p_mild": "0.15", "p_severe": "0.8"})
        picture = imread(self.root / "one_grades.png")
        self.assertGreater(min(picture.shape[:2]), 300)

    def test_classes_without_an_order(self):
        self.write(GradeWriter(self.root, OUTPUTS, GRADES, ordered=False), one=output())
        names = ["classes.csv", "one_classes.json", "one_classes.png"]
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), names)
        left = json.loads((self.root / "one_classes.json").read_text())["outputs"]["left"]
        probabilities = {"none": 0.7, "mild": 0.2, "severe": 0.1}
        self.assertEqual(left, {"class": "none", "probabilities": probabilities, "confidence": 0.7})
        rows = self.rows("classes.csv")
        self.assertEqual([(row["class"], row["p_severe"]) for row in rows], [("none", "0.1"), ("severe", "0.8")])
        self.assertNotIn("grade", rows[0])

    def test_a_case_again_replaces_its_rows(self):
        table = GradeTable(self.root / "table.csv", OUTPUTS, GRADES)
        for probability in (PROBABILITY, PROBABILITY[::-1]):
            self.write(table, one=output(probability), two=output())
        rows = self.rows("table.csv")
        self.assertEqual([row["grade"] for row in rows], ["severe", "none", "none", "severe"])

    def test_rows_are_added(self):
        """A batch costs its own rows, an older file is replaced, and a line that was cut off is written anew."""
        path = self.root / "table.csv"
        self.write(GradeTable(path, OUTPUTS, GRADES), old=output())
        table = GradeTable(path, OUTPUTS, GRADES)
        self.write(table, one=output())
        with mock.patch("monai_dvpt.handlers.grade_writer.atomic_path", side_effect=AssertionError):
            self.write(table, two=output())
        self.assertEqual([row["name"] for row in self.rows("table.csv")], ["one", "one", "two", "two"])

        def full(*_):
            path.write_bytes(path.read_bytes() + b"three,left,no")
            raise OSError("No space left on device")

        with mock.patch("builtins.open", side_effect=full), self.assertRaisesRegex(InputError, "table.csv: cannot be"):
            self.write(table, three=output())
        self.write(table, four=output())
        names = [name for name in ("one", "two", "three", "four") for _ in OUTPUTS]
        self.assertEqual([row["name"] for row in self.rows("table.csv")], names)
        self.assertTrue(all(row["p_severe"] for row in self.rows("table.csv")))

    def test_labels(self):
        table = GradeTable(self.root / "table.csv", OUTPUTS, GRADES)
        self.write(table, one=output(label=[2, -1]))
        rows = self.rows("table.csv")
        self.assertEqual(list(rows[0])[:6], ["name", "output", "patient", "label", "grade", "confidence"])
        self.assertEqual([row["label"] for row in rows], ["severe", ""])

    def test_patients_of_a_list(self):
        """Of cases with labels; none where a list has no patients, whose images are groups by their paths."""
        root = temporary_folder(self)
        for name in ("a.png", "b.png"):
            (root / name).touch()
        (root / "list.csv").write_text("image,patient,split,left,right\na.png,17,test,none,mild\nb.png,,test,mild,\n")
        with self.assertLogs("monai_dvpt"):  # of a grade without an image
            cases = load_gradelist(root, root / "list.csv", OUTPUTS, GRADES)["test"]
        table = GradeTable(self.root / "table.csv", OUTPUTS, GRADES)
        outputs = [output(label=case["label"]) for case in cases]
        table.write(SimpleNamespace(state=SimpleNamespace(batch=cases, output=outputs)))
        found = [(row["name"], row["patient"]) for row in self.rows("table.csv")]
        self.assertEqual(found, [("a", "17")] * 2 + [("b", "")] * 2)

    def test_prediction_sets(self):
        """Ranges of grades: the lowest and the highest in the table, all in JSON."""
        writer = GradeWriter(self.root, OUTPUTS, GRADES)
        sets = {"grade_set": torch.tensor([[True, True, False], [False, False, True]]), "coverage": 0.9}
        self.write(writer, one={**output(label=[0, 1]), **sets})
        rows = self.rows("grades.csv")
        self.assertEqual(list(rows[0])[4:], ["grade", "confidence", "set_low", "set_high", "coverage", *CHANCES])
        found = [[row[name] for name in ("set_low", "set_high", "coverage")] for row in rows]
        self.assertEqual(found, [["none", "mild", "0.9"], ["severe", "severe", "0.9"]])
        outputs = json.loads((self.root / "one_grades.json").read_text())["outputs"]
        self.assertEqual([outputs[name]["set"] for name in OUTPUTS], [["none", "mild"], ["severe"]])
        self.assertEqual([outputs[name]["coverage"] for name in OUTPUTS], [0.9, 0.9])
        with self.assertRaises(ValueError):
            self.write(writer, one={**output(), **sets, "grade_set": sets["grade_set"][:1]})

    def test_names_that_are_numbers(self):
        table = GradeTable(self.root / "table.csv", [1, 2], [0, 1, 2])
        self.write(table, one=output())
        self.assertEqual(
            [(row["output"], row["grade"], row["p_1"]) for row in self.rows("table.csv")][1], ("2", "2", "0.15")
        )

    def test_another_number_of_outputs(self):
        with self.assertRaises(ValueError):
            self.write(GradeTable(self.root / "table.csv", ["left"], GRADES), one=output())


class TestPlotGrades(unittest.TestCase):
    @parameterized.expand([(1, 1), (6, 3), (40, 3)])
    def test_bars(self, outputs, channels):
        probability = np.random.default_rng(0).dirichlet(np.ones(3), outputs)
        chances = [dict(zip(GRADES, row.tolist(), strict=True)) for row in probability]
        found = {
            f"zone {index}": {
                "grade": max(each, key=lambda grade: each[grade]),
                "probabilities": each,
                "confidence": 0.5,
            }
            for index, each in enumerate(chances)
        }
        image = torch.linspace(0, 9, channels * 20 * 30).view(channels, 20, 30)
        picture, bars = plot_grades(image, found, "case").axes
        self.assertEqual(picture.images[0].get_array().shape[:2], (20, 30))
        self.assertEqual(len(bars.patches), 3 * outputs)
        widths = np.array([bar.get_width() for bar in bars.patches]).reshape(3, outputs).T
        np.testing.assert_allclose(widths, probability)
        texts = [tick.get_text() for tick in bars.get_yticklabels()]
        self.assertEqual(texts[0], f"zone 0: {found['zone 0']['grade']} (50%)")
        self.assertGreater(bars.get_ylim()[0], bars.get_ylim()[1])  # the first output on top

    def test_colours_of_classes_without_an_order_differ(self):
        names = [f"class {index}" for index in range(12)]
        found = {"dx": {"grade": names[0], "probabilities": dict.fromkeys(names, 1 / 12), "confidence": 1 / 12}}
        bars = plot_grades(torch.rand(3, 4, 5), found, "case", ordered=False).axes[-1]
        self.assertEqual(bars.get_xlabel(), "probability of the classes")
        self.assertEqual(len({bar.get_facecolor() for bar in bars.patches}), 12)

    def test_volume(self):
        found = {"volume": {"grade": "Q1", "probabilities": {"Q1": 0.75, "Q2": 0.25}, "confidence": 0.75}}
        image = MetaTensor(torch.rand(1, 7, 9, 11), affine=AFFINE_RAS)
        *panels, bars = plot_grades(image, found, "case").axes
        self.assertEqual([panel.get_title() for panel in panels], ["axial", "coronal", "sagittal"])
        self.assertEqual([panel.images[0].get_array().shape for panel in panels], [(9, 7), (11, 7), (11, 9)])
        self.assertEqual([bar.get_width() for bar in bars.patches], [0.75, 0.25])

    def test_names_may_look_like_mathematics(self):
        found = {"$x^$": {"grade": "$y$", "probabilities": {"$y$": 1.0, "z": 0.0}, "confidence": 1.0}}
        with open(temporary_folder(self) / "a.png", "wb") as file:
            plot_grades(torch.zeros(1, 4, 5), found, "scan_$x^$").savefig(file)


if __name__ == "__main__":
    unittest.main()
