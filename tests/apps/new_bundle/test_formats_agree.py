# SPDX-License-Identifier: Apache-2.0
"""The same cases in four formats: one plan, one split, and trainings that agree."""

from __future__ import annotations

import csv
import json
import unittest
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
from utils_bundles import workflow
from utils_commands import call
from utils_data import dice, save_nifti, shared_data, temporary_folder
from utils_segmentations import ORGANS, read_hippocampus, save_itk, save_on_series, save_series, save_slicer

from monai_dvpt.__main__ import main
from monai_dvpt.apps.new_bundle.plan import make_plan

FORMATS = ("NIfTI", "SEG", "RTSTRUCT", "Slicer")
CASES = 10
COARSE = {"roi_size": [16, 24, 16], "spacing_mm": [2.5, 2.5, 2.5], "max_epochs": 3, "val_interval": 1}
NAMES = ",".join(f"{value}={organ}" for value, organ in enumerate(ORGANS, 1))


def save_case(kind: str, folder: Path, name: str) -> None:
    values, label, affine = read_hippocampus(name)
    if kind == "NIfTI":
        save_nifti(folder / "image.nii.gz", values, affine)
        save_nifti(folder / "segmentation.nii.gz", label, affine)
    elif kind == "Slicer":
        save_itk(folder / "image.nrrd", values, affine)
        segments = [(organ, value, 0) for value, organ in enumerate(ORGANS, 1)]
        save_slicer(folder / "Segmentation.seg.nrrd", label, affine, segments)
    else:
        save_series(folder / "series", values, affine, patient=name)
        save_on_series(kind, folder / "result.dcm", folder / "series", label, affine)


def train(root: Path, kind: str, names: list[str]) -> dict[str, Any]:
    """What ``new`` and a training of its bundle give: cases by part, label maps, plan, losses and Dice."""
    data, bundle, output = root / kind / "data", root / kind / "bundle", root / kind / "output"
    for name in names:
        save_case(kind, data / name, name)
    options = ["--label-names", NAMES] if kind == "NIfTI" else []
    # the size of the window by rule: by the time of a step it would depend on what else the machine does
    with mock.patch("monai_dvpt.apps.new_bundle.new.make_plan", partial(make_plan, measure=None)):
        status, out, err = call(main, "new", data, "--output", bundle, *options)
    if status:
        raise AssertionError(out + err)
    workflow(bundle, "train", "train", output_dir=str(output), device="cpu", **COARSE).run()
    sections = json.loads((bundle / "configs" / "datalist.json").read_text())
    of_case = {
        case["label"]: next(name for name in names if name in str(case["image"])) for case in sum(sections.values(), [])
    }
    plan = json.loads((bundle / "configs" / "plan.json").read_text())
    with open(output / "history.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    metrics = json.loads((output / "report.json").read_text())["last"]["metrics"]
    return {
        "parts": {part: [of_case[case["label"]] for case in section] for part, section in sections.items()},
        "labels": {name: read_canonical(bundle / "labels" / label) for label, name in of_case.items()},
        "plan": {name: choice["value"] for name, choice in plan.items()},
        "losses": losses,
        "dice": [metrics["val_mean_dice"], *metrics["val_dice"].values()],
    }


def read_canonical(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


class TestFormatsAgree(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        paths = sorted(shared_data("msd_hippocampus/imagesTr").glob("*.nii.gz"))[:CASES]
        cls.names = [path.name.removesuffix(".nii.gz") for path in paths]
        cls.found = {kind: train(temporary_folder(cls), kind, cls.names) for kind in FORMATS}

    def others(self, key: str) -> Iterator[tuple[str, Any, Any]]:
        """Of each format but NIfTI, what it gives, and what NIfTI gives."""
        for kind in FORMATS[1:]:
            with self.subTest(kind):
                yield kind, self.found[kind][key], self.found["NIfTI"][key]

    def test_one_split(self):
        self.assertEqual(sorted(sum(self.found["NIfTI"]["parts"].values(), [])), self.names)
        for _, parts, wanted in self.others("parts"):
            self.assertEqual(parts, wanted)

    def test_one_plan(self):
        for _, plan, wanted in self.others("plan"):
            self.assertEqual(plan, wanted)

    def test_label_maps(self):
        for kind, labels, wanted in self.others("labels"):
            for name in self.names:
                truth = read_canonical(shared_data(f"msd_hippocampus/labelsTr/{name}.nii.gz"))
                np.testing.assert_array_equal(wanted[name], truth)
                if kind == "RTSTRUCT":
                    self.assertGreaterEqual(min(dice(labels[name], truth, value) for value in (1, 2)), 0.98)
                else:
                    np.testing.assert_array_equal(labels[name], truth)

    def test_trainings_agree(self):
        losses = self.found["NIfTI"]["losses"]
        self.assertEqual(len(losses), COARSE["max_epochs"])
        self.assertLess(losses[-1], losses[0])
        for key in ("losses", "dice"):
            for kind, values, wanted in self.others(key):
                np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-2 if kind == "RTSTRUCT" else 1e-4)


if __name__ == "__main__":
    unittest.main()
