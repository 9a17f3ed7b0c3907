# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import torch
from monai.data import MetaTensor
from parameterized import parameterized

from monai_dvpt.transforms import FitSize, FitSized
from monai_dvpt.utils import InputError


class TestFitSize(unittest.TestCase):
    def test_pads_and_crops_about_the_centre(self):
        image = MetaTensor(torch.arange(1.0, 1 + 4 * 7 * 2).reshape(1, 4, 7, 2))
        fitted = FitSize((6, 5, 2), (8, 7, 3))(image)
        self.assertEqual(tuple(fitted.shape), (1, 6, 5, 2))
        torch.testing.assert_close(fitted[:, 1:5].as_tensor(), image[:, :, 1:6].as_tensor())
        torch.testing.assert_close(fitted[:, [0, 5]].as_tensor(), fitted[:, [1, 4]].as_tensor())  # mirrored
        torch.testing.assert_close(fitted.affine[:3, 3], torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64))

    def test_larger_images_are_refused_by_name(self):
        image = MetaTensor(torch.zeros(1, 9, 5, 2), meta={"filename_or_obj": "head.nii.gz"})
        with self.assertRaisesRegex(
            InputError, r"^head\.nii\.gz: must be cropped .* \[8, 7, 3\] .*, got \[9, 5, 2\]\.$"
        ):
            FitSized("image", (6, 5, 2), (8, 7, 3))({"image": image})

    @parameterized.expand([((6, 5), (8, 7, 3)), ((6, 5, 2), (8, 4, 3))])
    def test_sizes_must_agree(self, size, largest):
        with self.assertRaisesRegex(ValueError, "largest must be at least spatial_size"):
            FitSize(size, largest)
