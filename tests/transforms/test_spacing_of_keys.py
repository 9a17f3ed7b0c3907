# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Spacingd

from monai_dvpt.transforms import SpacingOfKeysd

AFFINE = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
ARGUMENTS = {"keys": ["image", "label"], "pixdim": (1.5, 2.5, 3.5), "mode": ["bilinear", "nearest"]}


def volume(seed: int) -> MetaTensor:
    values = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, affine=AFFINE, meta={"filename_or_obj": "a/b.nii.gz"})


class TestSpacingOfKeys(unittest.TestCase):
    def test_entries_beside_the_images_stay_as_they_are(self):
        others = {"image_path": "a/b.nii.gz", "image_number": 7, "label_info": None, "device": "cpu"}
        found = SpacingOfKeysd(**ARGUMENTS)({"image": volume(0), "label": volume(1), **others})
        expected = Spacingd(**ARGUMENTS)({"image": volume(0), "label": volume(1)})
        self.assertEqual({key: found[key] for key in others}, others)
        for key in ("image", "label"):
            torch.testing.assert_close(found[key].as_tensor(), expected[key].as_tensor(), rtol=0, atol=0)
            np.testing.assert_array_equal(found[key].affine, expected[key].affine)

    def test_fault_of_monai_that_it_is_for(self):
        """Where this fails MONAI has mended it, and the bundles can go back to ``Spacingd``."""
        with self.assertRaises(AttributeError):
            Spacingd(**ARGUMENTS)({"image": volume(0), "label": volume(1), "image_path": "a/b.nii.gz"})

    def test_inverse(self):
        transform = Compose([SpacingOfKeysd("image", (1.0, 1.0, 1.0), mode="bilinear")])
        data = transform({"image": volume(0), "image_path": "a/b.nii.gz"})
        data["pred"] = data["image"].clone()
        back = Invertd("pred", transform, orig_keys="image", nearest_interp=False)(data)
        self.assertEqual(back["pred"].shape, (1, 9, 8, 7))
        np.testing.assert_allclose(back["pred"].affine, AFFINE)
