# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from parameterized import parameterized
from utils_data import AFFINE_RAS, save_nifti, temporary_folder

from monai_dvpt.transforms import VolumeGrade, VolumeGraded, volume_thresholds_ml
from monai_dvpt.utils import InputError

VOXEL_ML = 2 * 3 * 4 / 1000  # of AFFINE_RAS


def mask(voxels: int) -> MetaTensor:
    """A mask of so many voxels of the labels 1 and 2."""
    values = torch.zeros(5 * 6 * 7)
    values[:voxels] = 1
    values[: voxels // 2] = 2
    return MetaTensor(values.reshape(1, 5, 6, 7), affine=torch.as_tensor(AFFINE_RAS))


class TestVolumeGrade(unittest.TestCase):
    @parameterized.expand([(0, 0), (9, 0), (10, 1), (19, 1), (20, 2), (200, 2)])
    def test_counts_the_thresholds_that_are_reached(self, voxels, grade):
        found = VolumeGrade([10 * VOXEL_ML, 20 * VOXEL_ML])(mask(voxels))
        self.assertTrue(torch.equal(found, torch.tensor([grade])))

    def test_dictionary(self):
        data = VolumeGraded("label", [10 * VOXEL_ML])({"label": mask(12), "name": "a"})
        self.assertEqual((data["label"].tolist(), data["name"]), ([1], "a"))

    @parameterized.expand([([],), ([2.0, 2.0],), ([3.0, 2.0],)])
    def test_thresholds_must_ascend(self, thresholds):
        with self.assertRaisesRegex(ValueError, "thresholds_ml must be one or more ascending numbers"):
            VolumeGrade(thresholds)


class TestVolumeThresholds(unittest.TestCase):
    def cases(self, voxels: list[int]) -> list[dict[str, str]]:
        folder = temporary_folder(self)
        masks = [np.asarray(mask(count)[0], dtype=np.uint8) for count in voxels]
        return [{"label": str(save_nifti(folder / f"{i}.nii.gz", m))} for i, m in enumerate(masks)]

    def test_quartiles(self):
        cases = self.cases([100, 20, 60, 80, 40])
        expected = [round(count * VOXEL_ML, 3) for count in (40, 60, 80)]
        self.assertEqual(volume_thresholds_ml(cases, 4, num_classes=3), expected)
        grades = [int(VolumeGrade(expected)(mask(count))) for count in (20, 40, 60, 80, 100)]
        self.assertEqual(grades, [0, 1, 2, 3, 3])

    def test_volumes_that_do_not_divide_are_refused(self):
        with self.assertRaisesRegex(InputError, "must have volumes that divide into 4 grades"):
            volume_thresholds_ml(self.cases([50, 50, 50, 50, 60]), 4, num_classes=3)
        with self.assertRaisesRegex(InputError, "divide into 2 grades"):
            volume_thresholds_ml(self.cases([50]), 2, num_classes=3)

    def test_wrong_labels_are_refused(self):
        cases = self.cases([50, 60])
        with self.assertRaisesRegex(InputError, r"0\.nii\.gz: labels must be whole numbers in \[0, 2\)"):
            volume_thresholds_ml(cases, 2, num_classes=2)
