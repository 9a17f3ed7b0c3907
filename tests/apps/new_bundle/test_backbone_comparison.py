# SPDX-License-Identifier: Apache-2.0
"""The command that compares backbones, on real knees: its files against scikit-learn, its folds, and its privacy."""

from __future__ import annotations

import csv
import json
import math
import shutil
import unittest
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import cohen_kappa_score
from utils_commands import call
from utils_data import shared_data, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.apps.new_bundle import BackboneComparison, NewBundle, Options, data_to_compare, new_secret
from monai_dvpt.utils import InputError

TINY = "weights/vit_tiny_patch16_224_timm.safetensors"
PROBES = ["linear probe", "linear probe of four layers", "nearest neighbours"]


def knees(folder: Path, patients: int) -> list[dict[str, str]]:
    """Copies the radiographs of some patients, and their list; the rows of the list."""
    root = shared_data("knee_kl")
    with open(root / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    known = sorted({row["patient"] for row in rows})
    chosen = set(known[:: len(known) // patients][:patients])
    rows = [row for row in rows if row["patient"] in chosen]
    for row in rows:
        (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / row["image"], folder / row["image"])
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def scrambled(source: Path, path: Path) -> Path:
    """Weights that see nothing: each tensor of the layers in another order."""
    order = torch.Generator().manual_seed(0)
    state = load_file(source)
    for name, tensor in state.items():
        if name.startswith("blocks."):
            state[name] = tensor.flatten()[torch.randperm(tensor.numel(), generator=order)].view(tensor.shape)
    save_file(state, path)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class TestKnees(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        cls.rows = knees(cls.folder / "knees", 30)
        cls.blind = scrambled(shared_data(TINY), cls.folder / "blind.safetensors")
        cls.output = cls.folder / "output"
        arguments = (cls.blind, shared_data(TINY), "--data", cls.folder / "knees", "--output", cls.output)
        cls.status, cls.out, cls.err = call(main, "backbone", "compare", *arguments)
        if cls.status:
            raise AssertionError(cls.err)
        cls.comparison = json.loads((cls.output / "comparison.json").read_text())
        cls.predictions = read_rows(cls.output / "predictions.csv")

    def of(self, backbone: str, probe: str) -> list[dict[str, str]]:
        return [row for row in self.predictions if (row["backbone"], row["probe"]) == (backbone, probe)]

    def test_scores_are_those_of_the_predictions(self):
        self.assertEqual((self.comparison["metric"], self.comparison["cases"]), ("quadratic kappa", 60))
        self.assertEqual(list(self.comparison["probes"]), PROBES)
        for backbone in self.comparison["backbones"]:
            for probe in PROBES:
                rows = self.of(backbone["name"], probe)
                said, true = ([int(row[key]) for row in rows] for key in ("prediction", "truth"))
                expected = cohen_kappa_score(true, said, weights="quadratic", labels=range(5))
                self.assertAlmostEqual(backbone[probe]["score"], expected, places=3)
                self.assertTrue(backbone[probe]["low"] <= expected <= backbone[probe]["high"])

    def test_truth_is_that_of_the_list(self):
        truths = sorted(row["truth"] for row in self.of("blind.safetensors", PROBES[0]))
        self.assertEqual(truths, sorted(row["kl_grade"] for row in self.rows))

    def test_folds_are_the_same_for_all_and_keep_patients_together(self):
        folds = {}
        for row in self.predictions:
            self.assertEqual(folds.setdefault(row["patient"], row["fold"]), row["fold"])
        self.assertEqual((len(folds), len(set(folds.values()))), (30, 5))

    def test_the_one_that_sees_is_the_best(self):
        blind, tiny = self.comparison["backbones"]
        self.assertGreater(tiny[PROBES[1]]["score"], blind[PROBES[1]]["score"])
        self.assertIsNone(tiny[PROBES[1]]["minus_best"])
        difference = blind[PROBES[1]]["score"] - tiny[PROBES[1]]["score"]
        self.assertAlmostEqual(blind[PROBES[1]]["minus_best"], difference, places=3)
        self.assertTrue(0 < blind[PROBES[1]]["p_holm"] <= 1)

    def test_csv_is_the_json(self):
        rows = read_rows(self.output / "comparison.csv")
        self.assertEqual(len(rows), 6)
        for row in rows:
            told = next(each for each in self.comparison["backbones"] if each["name"] == row["backbone"])
            self.assertEqual(float(row["score"]), told[row["probe"]]["score"])
            self.assertEqual(int(row["parameters"]), told["parameters"])

    def test_says_it_all(self):
        for word in ("60 cases of 30 patients", *PROBES, "the best", "Holm", "Once prompts are trained"):
            self.assertIn(word, self.out)
        told = self.comparison["backbones"][1][PROBES[0]]
        self.assertIn(f"{told['score']:.3f} ({told['low']:.3f} to {told['high']:.3f})", self.out)

    def test_names_no_patient(self):
        text = self.out + "".join(path.read_text() for path in self.output.iterdir())
        for row in self.rows:
            self.assertNotIn(row["patient"], text)

    def test_list_that_new_wrote(self):
        new = NewBundle(self.folder / "knees", Options(secret=new_secret()), shared_data(TINY))
        new.look()
        bundle = self.folder / "bundle"
        list(new.write(bundle))
        read = data_to_compare(bundle / "configs" / "datalist.csv", Options(secret=new_secret()))
        read.look()
        self.assertFalse([each for each in read.findings if each.error])
        self.assertEqual([len(read.parts[part]) for part in new.parts], [len(part) for part in new.parts.values()])
        for first, second in zip(new.collection.cases, read.collection.cases, strict=True):
            self.assertEqual((first.image, first.grades), (second.image, second.grades))
        self.assertEqual(len({case.patient for case in read.collection.cases}), 30)

    def test_list_in_the_folder_itself(self):
        read = data_to_compare(self.folder / "knees" / "labels.csv", Options(secret=new_secret()))
        read.look()
        self.assertEqual(len(read.collection.cases), 60)
        with self.assertRaisesRegex(InputError, "labels.csv: is a list already"):
            data_to_compare(self.folder / "knees" / "labels.csv", Options(table="labels.csv"))

    def test_bad_input(self):
        data = ("--data", self.folder / "knees")
        status, _, err = call(main, "backbone", "compare", self.blind, self.blind, *data)
        self.assertEqual(status, 1)
        self.assertIn("must name each file once", err)
        status, _, err = call(main, "backbone", "compare", self.folder / "none.pt", *data)
        self.assertEqual(status, 1)
        self.assertRegex(err, "none.pt: .*existing file")
        status, _, err = call(main, "backbone", "compare", self.blind, "--data", self.folder / "none")
        self.assertEqual(status, 1)
        self.assertIn("must be an existing folder", err)
        status, _, err = call(main, "backbone", "compare", self.blind, *data, "--output", self.output)
        self.assertEqual(status, 1)
        self.assertIn("output: must not exist", err)


class TestLesions(unittest.TestCase):
    def test_dice_of_each_case(self):
        folder, root = temporary_folder(self), shared_data("skin_lesions")
        for kind in ("images", "masks"):
            (folder / kind).mkdir()
        for mask in sorted((root / "masks").glob("*.png"))[:10]:
            shutil.copy(mask, folder / "masks")
            shutil.copy(next((root / "images").glob(f"{mask.stem.split('_seg')[0]}*")), folder / "images")
        new = data_to_compare(folder, Options(secret=new_secret()))
        new.look()
        comparison = BackboneComparison(new, [str(shared_data(TINY))], 6)
        table = comparison.run()
        comparison.write(table, folder / "output")
        dices = [float(row["dice"]) for row in read_rows(folder / "output" / "predictions.csv")]
        self.assertEqual((table.metric, table.probes, len(dices)), ("mean Dice", ["linear decoder"], 6))
        (backbone,) = table.backbones
        self.assertAlmostEqual(backbone.scores["linear decoder"].mean, float(np.mean(dices)), places=3)
        self.assertIs(table.best("linear decoder"), backbone)
        self.assertTrue(backbone.seconds > 0 and not math.isnan(backbone.scores["linear decoder"].low))


if __name__ == "__main__":
    unittest.main()
