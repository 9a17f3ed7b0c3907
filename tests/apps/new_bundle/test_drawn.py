# SPDX-License-Identifier: Apache-2.0
"""Label maps that are drawn in part: real cases of the hippocampus, of which nibabel says what was left out."""

from __future__ import annotations

import json
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from parameterized import parameterized
from utils_bundles import workflow
from utils_commands import call
from utils_data import shared_data, temporary_folder

from monai_dvpt.__main__ import main
from monai_dvpt.apps.new_bundle import NewBundle, Options, update_bundle
from monai_dvpt.apps.new_bundle.model import Finding
from monai_dvpt.losses import LabelSetDiceCELoss
from monai_dvpt.utils import InputError

NAMES = {1: "anterior", 2: "posterior"}
UNKNOWN = 3
"""Value of the set of all labels, or of the only set, in the label maps of a bundle of two labels."""
CODES = ("RAS", "PIR", "LSP", "SAR")
"""Axes of the files, so that planes lie along other axes in each."""


class Drawn(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)
        self.truth: dict[str, np.ndarray] = {}

    def save(self, leave_out, count: int = 4) -> None:
        """
        Writes cases whose label maps lack something.

        Args:
            leave_out: changes a label map in RAS orientation; gets the number of the case and the map.
            count: of cases.
        """
        names = sorted(path.name for path in shared_data("msd_hippocampus/imagesTr").iterdir())[:count]
        for number, name in enumerate(names):
            for part in ("imagesTr", "labelsTr"):
                source = nib.as_closest_canonical(nib.load(shared_data(f"msd_hippocampus/{part}/{name}")))
                values = np.asarray(source.dataobj)
                if part == "labelsTr":
                    values = values.astype(np.uint8)
                    self.truth[name] = values.copy()
                    leave_out(number, values)
                image = nib.Nifti1Image(values, source.affine)
                turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(CODES[number % 4]))
                path = self.root / "data" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(image.as_reoriented(turn), path)

    def look(self, *drawn: str, **options) -> NewBundle:
        given = {"label_names": NAMES, **options}
        new = NewBundle(self.root / "data", Options(secret=bytes(range(32)), drawn=drawn, **given))
        new.look()
        return new

    def found(self, new: NewBundle) -> dict[str, Finding]:
        return {each.rule: each for each in new.findings}

    def write(self, name: str, *drawn: str, **options) -> Path:
        new = self.look(*drawn, **options)
        list(new.write(self.root / name))
        return self.root / name

    def written(self, bundle: Path) -> dict[str, np.ndarray]:
        """The label maps of a bundle, in RAS orientation, by the name of the case's file."""
        paths = {path.name.removeprefix("imagesTr_"): path for path in (bundle / "labels").glob("*.nii.gz")}
        self.assertEqual(set(paths), set(self.truth))
        return {name: np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj) for name, path in paths.items()}

    def label_sets(self, bundle: Path) -> list[list[str]]:
        return yaml.safe_load((bundle / "configs" / "train.yaml").read_text())["label_sets"]


def every_third_coronal_plane(number: int, label: np.ndarray) -> None:
    label[:, np.arange(label.shape[1]) % 3 != number % 3] = 0


class TestPlanes(Drawn):
    def test_it_asks_and_then_takes_planes_without_a_label_as_unknown(self):
        self.save(every_third_coronal_plane)
        asked = self.found(self.look())["planes not drawn"]
        self.assertTrue(asked.error)
        self.assertIn("in 4 of 4 cases no two coronal planes", asked.message)
        self.assertNotIn("planes not drawn", self.found(self.look("all")))
        bundle = self.write("bundle", "coronal")
        self.assertEqual(self.label_sets(bundle), [["background", *NAMES.values()]])
        for number, (name, truth) in enumerate(self.truth.items()):
            drawn = (np.arange(truth.shape[1]) % 3 == number % 3) & truth.any(axis=(0, 2))
            expected = np.where(drawn[None, :, None], truth, UNKNOWN)
            np.testing.assert_array_equal(self.written(bundle)[name], expected)
        self.check_losses(bundle)
        again = update_bundle(bundle)
        again.look()
        self.assertEqual(([*again.options.drawn], self.found(again).keys()), (["coronal"], {"few cases"}))

    def test_the_command_asks(self):
        self.save(every_third_coronal_plane)
        command = ("new", self.root / "data", "--check", "--label-names", "1=anterior,2=posterior")
        code, out, error = call(main, *command)
        self.assertEqual(code, 1)
        self.assertIn("pass --drawn coronal if the planes between were not drawn", out)
        self.assertIn("1 error in the data, nothing is written", error)
        self.assertEqual(call(main, *command, "--drawn", "coronal")[0], 0)
        code, _, error = call(main, *command, "--drawn", "rows")
        self.assertEqual((code, error.strip().splitlines()[-1][:30]), (1, "error: --drawn must be of all,"))

    def test_whole_label_maps_are_not_asked_about(self):
        self.save(lambda number, label: None)
        self.assertEqual({each.rule for each in self.look().findings}, {"few cases"})

    def check_losses(self, bundle: Path) -> None:
        """The whole truth is a perfect answer for the bundle's own loss, and where nothing was drawn nothing pulls."""
        train = workflow(bundle, "train", "train")
        loss = train.parser.get_parsed_content("train#loss")
        wrong = LabelSetDiceCELoss(["background", *NAMES.values()])
        maps = self.written(bundle)
        for number, (name, truth) in enumerate(self.truth.items()):
            answer = torch.from_numpy(20 * np.stack([truth == value for value in range(3)]).astype(np.float32))[None]
            answer.requires_grad_()
            y = torch.from_numpy(maps[name].astype(np.int64))[None, None]
            found = loss(answer, y)
            found.backward()
            self.assertLess(found.item(), 1e-3)
            self.assertEqual(answer.grad[(y == UNKNOWN).expand_as(answer)].abs().max().item(), 0)
            zeros = truth.copy()
            every_third_coronal_plane(number, zeros)
            self.assertGreater(wrong(answer, torch.from_numpy(zeros.astype(np.int64))[None, None]).item(), 0.5)


class TestLabels(Drawn):
    def test_labels_that_some_cases_lack(self):
        def leave_out(number: int, label: np.ndarray) -> None:
            label[label == 2] = 0 if number % 2 else 2

        self.save(leave_out)
        noted = self.found(self.look())["label not in all cases"]
        self.assertEqual((noted.where, noted.error), ("posterior", False))
        self.assertIn("absent in 2 of 4 cases", noted.message)
        new = self.look("labels")
        self.assertIn("in 2 cases", self.found(new)["label not drawn"].message)
        self.assertNotIn("label not in all cases", self.found(new))
        bundle = self.write("bundle", "labels")
        self.assertEqual(self.label_sets(bundle), [["background", "posterior"]])
        for number, (name, truth) in enumerate(self.truth.items()):
            expected = np.where(truth == 1, 1, UNKNOWN) if number % 2 else truth
            np.testing.assert_array_equal(self.written(bundle)[name], expected)
        check = json.loads((bundle / "configs" / "check.json").read_text())
        self.assertIn("label not drawn", [each["rule"] for each in check["findings"]])

    def test_a_case_without_any_label_trains_nothing(self):
        self.save(lambda number, label: label.fill(0) if number == 0 else None)
        self.assertTrue(self.found(self.look("labels"))["nothing drawn"].error)


class TestScribbles(Drawn):
    def test_only_labelled_voxels_are_known(self):
        def leave_out(number: int, label: np.ndarray) -> None:
            scribble = np.zeros(label.shape, bool)
            scribble[::3, ::4, 5::6] = True
            label[label == 0] = 5
            label[~scribble] = 0

        self.save(leave_out)
        names = {**NAMES, 5: "Background"}
        bundle = self.write("bundle", "voxels", label_names=names)
        self.assertEqual(self.label_sets(bundle), [["background", *NAMES.values()]])
        for name, truth in self.truth.items():
            expected = np.full(truth.shape, UNKNOWN)
            expected[::3, ::4, 5::6] = truth[::3, ::4, 5::6]
            np.testing.assert_array_equal(self.written(bundle)[name], expected)

    def test_background_must_be_drawn(self):
        self.save(lambda number, label: None)
        found = self.found(self.look("voxels"))["no background"]
        self.assertTrue(found.error)
        self.assertIn("--label-names 5=background", found.message)


class TestOptions(Drawn):
    @parameterized.expand(
        [
            ("rows", "must be of all, labels, voxels, sagittal, coronal, axial, got rows"),
            ("all,axial", "all must stand alone, got all, axial"),
        ]
    )
    def test_bad_rules(self, given, why):
        self.save(lambda number, label: None, count=2)
        with self.assertRaisesRegex(InputError, why):
            self.look(*given.split(","))

    def test_ignoring_what_is_not_there(self):
        self.save(lambda number, label: None)
        found = self.found(self.look(ignored=["0"]))["nothing ignored"]
        self.assertTrue(found.error)
        self.assertIn("what --ignore names, 0; voxels of 0 that were not drawn are --drawn voxels", found.message)


if __name__ == "__main__":
    unittest.main()
