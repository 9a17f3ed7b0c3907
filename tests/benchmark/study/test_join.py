# SPDX-License-Identifier: Apache-2.0
"""A study that ran in several folders, in part on a copy of its data elsewhere, becomes one."""

from __future__ import annotations

import csv
import json
import shutil
import unittest
from collections import Counter
from pathlib import Path

from sklearn.metrics import cohen_kappa_score
from test_study import BUNDLE, DVPT, settings, write_data
from utils_commands import call
from utils_data import temporary_folder

from monai_dvpt.benchmark.__main__ import main


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    with open(folder / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table(folder: Path) -> list[str]:
    """The lines of a report that hold a result, without the measured seconds and memory."""
    lines = [line for line in (folder / "study.md").read_text().splitlines() if line.startswith("| ")]
    return ["|".join(line.split("|")[:9]) if " runs " not in line else line for line in lines]


class TestJoin(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        here, there = cls.folder / "here", cls.folder / "there"
        here.mkdir()
        write_data(here)
        shutil.copytree(here, there)
        cls.study(here, "first", "--methods", DVPT, "--reference", "linear")
        for fold in (0, 1):
            cls.study(there, f"fold_{fold}", "--methods", "full", "--only-folds", fold)

    @classmethod
    def study(cls, data: Path, output: str, *arguments: str) -> None:
        options = [part for key, value in settings(data).items() for part in ("--set", f"{key}={value}")]
        options += ["--set", "max_epochs=1", "--workers", 2]
        design = ("--folds", 2, "--trials", 1, "--rounds", 1, "--seeds", 0)
        folder = cls.folder / output
        status, _, err = call(main, "study", "--bundle", BUNDLE, "--output", folder, *options, *design, *arguments)
        if status:
            raise AssertionError(err)

    def join(self, output: str, *folders: str) -> tuple[int, str, str]:
        paths = [self.folder / name for name in folders]
        return call(main, "join", "--bundle", BUNDLE, "--output", self.folder / output, *paths)

    def copied(self, name: str) -> Path:
        """A copy of a folder, to be changed."""
        copy = self.folder / f"{name}_{self._testMethodName}"
        shutil.copytree(self.folder / name, copy)
        return copy

    def test_has_all_runs_and_their_report(self):
        status, out, err = self.join("joined", "first", "fold_0", "fold_1")
        self.assertEqual(status, 0, err)
        joined = self.folder / "joined"
        rows = read_rows(joined)
        counts = Counter((row["method"], row["kind"], row["fold"]) for row in rows)
        self.assertEqual(
            counts,
            {
                (method, kind, fold): number
                for method in (DVPT, "full", "linear", "pixels")
                for kind, number in (("trial", 3), ("final", 1))
                for fold in ("0", "1")
            },
        )
        finals = {(row["method"], row["fold"]): row for row in rows if row["kind"] == "final"}
        for row in finals.values():
            with open(joined / "predictions" / row["predictions"]) as file:
                cases = list(csv.DictReader(file))
            pairs = [(case[f"label_{k}"], case[f"prediction_{k}"]) for case in cases for k in (0, 1)]
            kappa = cohen_kappa_score(*zip(*pairs, strict=True), labels=["0", "1", "2"], weights="quadratic")
            self.assertAlmostEqual(float(row["score"]), kappa, places=6)
        for method in (DVPT, "full", "linear", "pixels"):
            mean = sum(float(finals[method, fold]["score"]) for fold in ("0", "1")) / 2
            self.assertRegex(out, rf"\| {method} \| 100% \| 18 \| 2 \| {mean:.3f} \(")
        self.assertIn("| full | 0 |", out)
        self.assertIn("| pixels | 1 |", out)
        # a study in the folder has nothing to run, and the same report
        before = [row["seconds"] for row in rows], table(joined)
        self.study(self.folder / "here", "joined", "--methods", DVPT, "full")
        self.assertEqual(([row["seconds"] for row in read_rows(joined)], table(joined)), before)
        # joining again adds nothing
        status, _, err = self.join("joined", "fold_1", "first")
        self.assertEqual((status, read_rows(joined)), (0, rows), err)

    def test_missing_runs_are_named(self):
        status, _, err = self.join("parts", "first", "fold_1")
        self.assertEqual(status, 1)
        self.assertRegex(
            err, r"must have every method in every fold .* but 2 are missing: full, fold 0, with 0 of 3 tr"
        )
        self.assertRegex(err, r"; full, fold 0, seed 0, 100% of the labels; the study can go on in .*parts")

    def test_runs_that_differ_are_refused(self):
        for kind, words in (("trial", "trial"), ("final", "final")):
            changed = self.copied("fold_1")
            rows = read_rows(changed)
            row = next(row for row in rows if (row["method"], row["kind"]) == ("pixels", kind))
            row["score"] = str(float(row["score"]) + 0.25)
            write_rows(changed, rows)
            status, _, err = self.join(f"differ_{kind}", "first", changed.name)
            self.assertEqual(status, 1)
            self.assertRegex(err, rf"fold_1_.*/runs.csv: must agree .* pixels, {words}, fold 1, .* differs in score")
            shutil.rmtree(changed)

    def test_predictions_that_differ_are_refused(self):
        changed = self.copied("fold_1")
        row = next(row for row in read_rows(changed) if (row["method"], row["kind"]) == ("linear", "final"))
        path = changed / "predictions" / row["predictions"]
        with open(path, newline="") as file:
            cases = list(csv.DictReader(file))
        path.write_text(path.read_text().replace(f",{cases[0]['patient']},", ",p99,"))
        status, _, err = self.join("differ", "first", changed.name)
        self.assertEqual(status, 1)
        self.assertRegex(err, "must agree .* linear, final, fold 1, .* differs in predictions")
        path.unlink()
        status, _, err = self.join("gone", changed.name)
        self.assertRegex(err, rf"predictions/{path.name}: must be there, as runs.csv names it, but is missing")

    def test_other_plans_and_bundles_are_refused(self):
        changed = self.copied("fold_1")
        plan = json.loads((changed / "plan.json").read_text())
        self.assertNotIn(str(self.folder), json.dumps(plan))  # so that the data may lie anywhere
        (changed / "plan.json").write_text(json.dumps({**plan, "trials": 7, "--set img_size": 64}))
        status, _, err = self.join("other", "first", changed.name)
        self.assertRegex(err, "must have results of the same plan as .*first, but --set img_size, trials differ")
        (changed / "plan.json").unlink()
        status, _, err = self.join("other", "first", changed.name)
        self.assertRegex(err, r"plan.json: must say what runs.csv depends on, but is missing")
        bundle = BUNDLE.with_name("hippocampus_mri_dvpt_vit_classification")
        output = self.folder / "other"
        status, _, err = call(main, "join", "--bundle", bundle, "--output", output, self.folder / "first")
        self.assertRegex(err, "--bundle must be the bundle of .*first, got another one")
        self.assertFalse(output.exists())
        status, _, err = self.join("first_alone", "first")
        self.assertRegex(err, "--reference must be one of the methods of the folders, got full")
