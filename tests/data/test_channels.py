# SPDX-License-Identifier: Apache-2.0
"""Cases whose channels are files."""

from __future__ import annotations

import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from parameterized import parameterized
from utils_data import save_dicom, save_nifti, temporary_folder

from monai_dvpt.data import find_cases
from monai_dvpt.data.channels import channel_numbers, files_beside, group_channels, stacked_channels

SIZE = (4, 5, 6)
NAMES = ("t1", "t1_gd", "FLAIR")


class Files(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def touch(self, *names: str, channels: int = 1) -> list[Path]:
        shape = SIZE if channels == 1 else (*SIZE, channels)
        return [save_nifti(self.root / f"{name}.nii.gz", np.zeros(shape, np.uint8)) for name in names]

    def short(self, path: str | Path) -> str:
        return str(Path(path).relative_to(self.root)).replace(".nii.gz", "")


class TestGroups(Files):
    @parameterized.expand(
        [
            (["a/t1", "a/flair", "a/T1_GD"], {"a": ["a/t1", "a/T1_GD", "a/flair"]}),
            (["x_t1", "x_t1-gd", "x.flair"], {"x": ["x_t1", "x_t1-gd", "x.flair"]}),
            (["flair_x", "t1-x", "t1-gd-x"], {"x": ["t1-x", "t1-gd-x", "flair_x"]}),
            (["x_0000", "x_0001", "y_0002"], {"x": ["x_0000", "x_0001"], "y": ["y_0002"]}),
            (["x_0003", "t1x", "xflair", "x_001", "x"], {}),
            (["a/x_t1", "b/x_t1"], {"a/x": ["a/x_t1"], "b/x": ["b/x_t1"]}),
            (["x_1_t1", "x_11_t1", "x_1_flair"], {"x_1": ["x_1_t1", "x_1_flair"], "x_11": ["x_11_t1"]}),
        ]
    )
    def test_names(self, files, expected):
        groups = group_channels(self.touch(*files), NAMES)
        found = {self.short(group.place): [self.short(path) for path in group.files.values()] for group in groups}
        self.assertEqual(found, expected)
        self.assertEqual([group.unclear for group in groups], [()] * len(groups))

    def test_a_file_with_all_channels_is_no_channel(self):
        paths = [*self.touch("x_t1", channels=3), *self.touch("y_0001")]
        self.assertEqual([self.short(group.place) for group in group_channels(paths, NAMES)], ["y"])

    @parameterized.expand([(["t1_0001", "t1_0000"],), (["x_t1", "x-T1"],), (["t1_001_flair"],)])
    def test_unclear_names(self, files):
        (group,) = group_channels(self.touch(*files), NAMES)
        self.assertTrue(group.unclear)
        with self.assertRaisesRegex(ValueError, "must say one channel"):
            group.paths_of(["t1"])

    @parameterized.expand([(["T2*", "T1"],), (["T1+"],), (["t1_gd", "T1 gd"],), (["-"],)])
    def test_names_that_files_cannot_say(self, names):
        with self.assertRaisesRegex(ValueError, "names of channels must"):
            channel_numbers(names, names)

    def test_files_beside(self):
        files = self.touch("a/t1", "a/t2", "a/mask", "b/x_t1", "b/x_t2", "b/y_t2", "c/t2")
        groups = group_channels(files, NAMES)
        self.assertEqual({self.short(path) for path in files_beside(groups, files)}, {"a/t2", "a/mask", "b/x_t2"})

    def test_number_of_channels(self):
        (path,) = self.touch("x", channels=3)
        self.assertEqual(stacked_channels(path), 3)
        self.assertEqual(stacked_channels(self.touch("y")[0]), 1)
        (self.root / "z.nii.gz").write_text("no image")
        self.assertEqual(stacked_channels(self.root / "z.nii.gz"), 1)
        vector = nib.Nifti1Image(np.zeros((*SIZE, 1, 2), np.uint8), np.eye(4))
        nib.save(vector, self.root / "v.nii.gz")
        self.assertEqual(stacked_channels(self.root / "v.nii.gz"), 2)


class TestFindCases(Files):
    def find(self, *channels: str, **arguments) -> dict[str, dict]:
        return {case["name"]: case for case in find_cases(self.root, channels=channels, **arguments)}

    def test_all_layouts(self):
        self.touch("a/flair", "a/t1", "a/t2", "b_0000", "b_0001")
        self.touch("c", channels=2)
        cases = self.find("flair", "t1", file_channels=("t1", "flair"))
        images = {
            name: [self.short(path) for path in case["image"]]
            if isinstance(case["image"], list)
            else self.short(case["image"])
            for name, case in cases.items()
        }
        self.assertEqual(images, {"a": ["a/flair", "a/t1"], "b": ["b_0001", "b_0000"], "c": "c"})
        self.assertFalse(any("refused" in case for case in cases.values()))

    def test_refusals(self):
        self.touch("a/t1", "d")
        self.touch("c", channels=3)
        values = np.zeros((6, 7, 8), np.uint16)
        values[2:] = 5
        save_dicom(self.root / "s", values, np.eye(3), np.zeros(3), (1.0, 1.0, 1.2))
        cases = self.find("t1", "flair")
        self.assertEqual(sorted(cases), ["a", "c", "d", "s"])
        for name, words in (
            ("a", "a: must have the channels t1, flair; without flair"),
            ("c", "c.nii.gz: must have the channels t1, flair, or the name of one in its own, has 3"),
            ("d", "d.nii.gz: must have the channels t1, flair, or the name of one in its own, has 1"),
            ("s", "channels must be NIfTI, NRRD or MetaImage files"),
        ):
            self.assertIn(words, cases[name]["refused"])

    def test_one_channel_of_a_case(self):
        self.touch("a/t1", "a/flair", "b/scan")
        cases = self.find("t1")
        self.assertEqual([self.short(path) for path in cases["a"]["image"]], ["a/t1"])
        self.assertIn("must have the channels t1, or the name of one in its own", cases["b_scan"]["refused"])
        self.assertEqual(len(cases), 2)


if __name__ == "__main__":
    unittest.main()
