# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from parameterized import parameterized
from PIL import Image
from scipy.stats import beta
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from utils_data import ROOT, temporary_folder

from monai_dvpt.benchmark.__main__ import main
from monai_dvpt.benchmark.coverage import split_patients

KNEES = Path(os.environ.get("MONAI_DVPT_TEST_DATA", ROOT.parent / "shared" / "data")) / "knee_kl"
GRADES = ["none", "mild", "severe"]


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def predictions(count: int, seed: int, grades=GRADES) -> list[dict]:
    """Rows of two outputs, one of which is not graded everywhere, of two images for each patient."""
    generator = np.random.default_rng(seed)
    rows = []
    for case, output in np.ndindex(count, 2):
        probability = generator.dirichlet(np.full(len(grades), 0.7)).round(6)
        label = generator.choice(len(grades), p=probability / probability.sum())
        row = {"name": f"{seed}{case // 2:03}_{case % 2}", "output": ["left", "right"][output]}
        row |= {"label": "" if output and case % 4 == 0 else grades[label], "grade": grades[probability.argmax()]}
        rows.append({**row, **{f"p_{name}": p for name, p in zip(grades, probability, strict=True)}})
    return rows


def sets_of(tested: list[dict], calibration: list[dict], percent: int) -> list[range]:
    """By the definition, for each row."""

    def score(row: dict, k: int) -> float:
        p = np.array([float(row[f"p_{name}"]) for name in GRADES])
        p /= p.sum()
        mean = sum(p * [0, 1, 2])
        return abs(k - mean) / math.sqrt(sum(p * [0, 1, 4]) - mean**2 + 1 / 12)

    limits = {}
    for output, k in ((o, k) for o in ("left", "right") for k in range(3)):
        rows = [row for row in calibration if (row["output"], row["label"]) == (output, GRADES[k])]
        ordered, rank = sorted(score(row, k) for row in rows), -(-(len(rows) + 1) * percent // 100)
        limits[output, k] = ordered[rank - 1] if rank <= len(rows) else math.inf
    found = []
    for row in tested:
        inside = [k for k in range(3) if score(row, k) <= limits[row["output"], k] or GRADES[k] == row["grade"]]
        found.append(range(min(inside), max(inside) + 1))
    return found


class TestCoverage(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def run_on(self, *arguments) -> list[list[str]]:
        """Cells of the printed table, without its heading."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(main(["coverage", *map(str, arguments)]), 0)
        return [[cell for cell in line.split("  ") if cell] for line in out.getvalue().splitlines()[1:]]

    def check(self, printed: list[list[str]], rows: list[dict], sets: list[range]) -> None:
        pairs = [(row, inside) for row, inside in zip(rows, sets, strict=True) if row["label"]]
        cells = iter(printed)
        for output in ("left", "right"):
            for grade in (*GRADES, "all"):
                group = [
                    (GRADES.index(row["label"]), inside)
                    for row, inside in pairs
                    if row["output"] == output and grade in (row["label"], "all")
                ]
                n, held = len(group), sum(label in inside for label, inside in group)
                low, high = beta.ppf([0.025, 0.975], [held, held + 1], [n - held + 1, n - held])  # Clopper and Pearson
                interval = f"{0 if held == 0 else low:.3f} to {1 if held == n else high:.3f}"
                size = f"{np.mean([len(inside) for _, inside in group]):.2f}"
                found = [cell.strip() for cell in next(cells)]
                self.assertEqual(found, [output, grade, str(n), f"{held / n:.3f}", interval, size])

    def test_sets_that_are_in_the_file(self):
        rows = predictions(60, 1)
        sets = sets_of(rows, predictions(60, 2), 80)
        for row, inside in zip(rows, sets, strict=True):
            row |= {"set_low": GRADES[inside[0]], "set_high": GRADES[inside[-1]], "coverage": 0.8}
        self.check(self.run_on(write(self.root / "a.csv", rows)), rows, sets)

    def test_sets_calibrated_on_other_predictions(self):
        rows, others = predictions(80, 1), predictions(70, 2)
        files = [write(self.root / f"{seed}.csv", each) for seed, each in ((1, rows), (2, others))]
        printed = self.run_on(files[0], "--calibration", files[1], "--coverage", 0.8)
        self.check(printed, rows, sets_of(rows, others, 80))

    def test_divisions_keep_patients_apart(self):
        patients = [str(patient) for patient in range(50) for _ in "LR"]
        for seed in range(5):
            first = split_patients(patients, 0.4, seed)
            self.assertEqual((first.sum(), (first[::2] == first[1::2]).all()), (40, True))
        self.assertNotEqual(first.tolist(), split_patients(patients, 0.4, 0).tolist())

    def test_divisions_are_of_the_patients_in_the_files(self):
        """Of 30 patients with one case and 10 with nine, a quarter calibrates: of the patients, not of the cases."""
        sizes = [1] * 30 + [9] * 10
        rows = [
            {**row, "name": f"{patient}_{case}", "patient": f"p{patient}"}
            for patient, size in enumerate(sizes)
            for case in range(size)
            for row in predictions(1, 100 * patient + case)[:1]
        ]
        files = [
            write(self.root / f"{name}.csv", [row for row in rows if (row["name"].split("_")[0] in chosen) == inside])
            for chosen in [{str(patient) for patient in range(10)}]
            for name, inside in (("calibration", True), ("test", False))
        ]
        given, divisions = [], []

        def keep(patients, share, seed):
            given.append((list(patients), share))
            divisions.append(split_patients(patients, share, seed))
            return divisions[-1]

        with mock.patch("monai_dvpt.benchmark.coverage.split_patients", side_effect=keep):
            printed = self.run_on(files[1], "--calibration", files[0], "--splits", 6)
        self.assertEqual(given[0][1], 10 / 40)
        tested = []
        for (patients, _), first in zip(given, divisions, strict=True):
            sides = [{p for p, side in zip(patients, first, strict=True) if side == chosen} for chosen in (True, False)]
            self.assertEqual([len(side) for side in sides], [10, 30])
            self.assertFalse(sides[0] & sides[1])
            tested.append(sum(sizes[int(patient[1:])] for patient in sides[1]))
        self.assertEqual(printed[-1][2].strip(), f"{np.mean(tested):.0f}")

    def test_divisions_of_real_knees(self):
        """Grades of arthrosis from 8 x 8 pixels and scikit-learn: the model is poor, but its sets hold."""
        if not KNEES.is_dir():
            self.skipTest(f"the knees are not at {KNEES}")
        with open(KNEES / "labels.csv", newline="") as file:
            knees = list(csv.DictReader(file))
        patients = np.random.default_rng(0).permutation(sorted({knee["patient"] for knee in knees}))[:600]
        parts = [[knee for knee in knees if knee["patient"] in group] for group in np.split(patients, 3)]
        pixels, label = [], []
        for part in parts:
            images = [Image.open(KNEES / knee["image"]).convert("L").resize((8, 8)) for knee in part]
            pixels.append(np.stack([np.asarray(image).ravel() for image in images]))
            label.append([int(knee["kl_grade"]) for knee in part])
        model = make_pipeline(StandardScaler(), PCA(20, random_state=0), LogisticRegression(max_iter=500))
        model.fit(pixels[0], label[0])
        files = []
        for name, part, values in (("test", parts[1], pixels[1]), ("calibration", parts[2], pixels[2])):
            chances = model.predict_proba(values)
            rows = [
                {
                    "name": knee["image"],
                    "output": "KL",
                    "patient": knee["patient"],
                    "label": knee["kl_grade"],
                    "grade": p.argmax(),
                }
                | {f"p_{k}": round(float(chance), 6) for k, chance in enumerate(p)}
                for knee, p in zip(part, chances, strict=True)
            ]
            files.append(write(self.root / f"{name}.csv", rows))
        printed = self.run_on(files[0], "--calibration", files[1], "--splits", 40)
        self.assertEqual([cells[1].strip() for cells in printed], ["0", "1", "2", "3", "4", "all"])
        for cells in printed:
            self.assertGreater(float(cells[3]), 0.88)
        self.assertLess(float(printed[0][3]), 0.96)

    @parameterized.expand(
        [
            ("no sets", [], "must have the columns set_low and set_high"),
            ("coverage", ["--calibration", "1.csv", "--coverage", "1"], r"--coverage must be in \(0, 1\), got 1"),
            ("splits alone", ["--splits", "5"], "--splits must be at least 0, and needs --calibration, got 5"),
            ("no patients", ["--calibration", "2.csv", "--splits", "5"], "2.csv: must have a column patient for --spl"),
            ("the same cases", ["--calibration", "1.csv"], "1.csv: no case may be in both files, got 1000_0"),
            ("other grades", ["--calibration", "other.csv"], "other.csv: grades must be .*none.*, got .*a.*"),
            ("no file", ["--calibration", "nothing.csv"], "nothing.csv: cannot be read as CSV"),
            ("no predictions", ["--calibration", "wrong.csv"], "wrong.csv: must have the columns name, output, label"),
            ("no labels", ["--calibration", "unknown.csv"], "unknown.csv: must have at least one row with a label"),
            ("no grade", ["--calibration", "bad.csv"], "bad.csv: every row must have grades of .*, got 'grave'"),
        ]
    )
    def test_refusals(self, _, arguments, why):
        rows = predictions(8, 1)
        write(self.root / "1.csv", rows)
        write(self.root / "2.csv", predictions(8, 2))
        write(self.root / "other.csv", predictions(8, 2, ["a", "b", "c"]))
        write(self.root / "wrong.csv", [{"name": 1}])
        write(self.root / "unknown.csv", [{**row, "name": "x", "label": ""} for row in rows])
        write(self.root / "bad.csv", [{**row, "name": "x", "label": "grave"} for row in rows])
        given = [str(self.root / text) if text.endswith(".csv") else text for text in arguments]
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(main(["coverage", str(self.root / "1.csv"), *given]), 1)
        self.assertRegex(err.getvalue(), f"^error: .*{why}")
        self.assertEqual(err.getvalue().count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
