# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unittest
from unittest import mock

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from utils_data import temporary_folder

from monai_dvpt.data import load_datalist, make_mni152_dataset

HALVES = ("back", "front")


class TestMakeMNI152Dataset(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = make_mni152_dataset(temporary_folder(cls) / "mni152")
        cls.t1 = load_mni152_template(resolution=1)
        cls.files = {
            (folder, half): nib.load(cls.root / folder / f"mni152_{half}.nii.gz")
            for folder in ("imagesTr", "labelsTr")
            for half in HALVES
        }

    def world(self, file, voxels):
        return apply_affine(file.affine, voxels)

    def template_voxels(self, points):
        voxels = apply_affine(np.linalg.inv(self.t1.affine), points)
        np.testing.assert_allclose(voxels, voxels.round(), atol=1e-6)
        return tuple(voxels.round().astype(int).T)

    def test_voxels_are_where_the_template_has_them(self):
        tissue = [load(resolution=1).get_fdata() >= 0.5 for load in (load_mni152_gm_template, load_mni152_wm_template)]
        for half in HALVES:
            image, label = self.files["imagesTr", half], self.files["labelsTr", half]
            np.testing.assert_array_equal(image.affine, label.affine)
            self.assertEqual(image.shape, label.shape)
            corners = np.array([(0, 0, 0), np.array(image.shape) - 1])
            voxels = np.concatenate([corners, np.random.default_rng(0).integers(0, image.shape, (2000, 3))])
            there = self.template_voxels(self.world(image, voxels))
            here = tuple(voxels.T)
            np.testing.assert_allclose(image.get_fdata()[here], self.t1.get_fdata()[there], atol=1e-6)
            grey, white = (mask[there] for mask in tissue)
            expected = np.where(white, 2, grey.astype(int))
            np.testing.assert_array_equal(np.asarray(label.dataobj)[here], expected)

    def test_labels(self):
        for half in HALVES:
            label = np.asarray(self.files["labelsTr", half].dataobj)
            self.assertEqual(label.dtype, np.uint8)
            self.assertEqual(np.unique(label).tolist(), [0, 1, 2])

    def test_halves_meet_and_do_not_overlap(self):
        back, front = (self.files["imagesTr", half] for half in HALVES)
        last = self.world(back, np.array(back.shape) - 1)[1]
        first = self.world(front, np.zeros(3))[1]
        self.assertEqual(first - last, 1.0)  # next to each other, in mm
        self.assertEqual(back.shape[::2], front.shape[::2])
        brain = self.t1.get_fdata() != 0
        kept = sum(int((self.files["imagesTr", half].get_fdata() != 0).sum()) for half in HALVES)
        self.assertEqual(kept, int(brain.sum()))

    def test_split_is_by_half(self):
        cases = load_datalist(self.root)
        for part, half in (("training", "back"), ("validation", "front")):
            paths = {key: str(self.root / f"{key}sTr" / f"mni152_{half}.nii.gz") for key in ("image", "label")}
            self.assertEqual(cases[part], [paths])

    def test_left_half_mirrors_the_right(self):
        """The reason for the split from front to back: left to right would validate on the training voxels."""
        data = self.t1.get_fdata()
        voxels = np.random.default_rng(0).integers(0, data.shape, (5000, 3))
        mirrored = self.world(self.t1, voxels) * (-1, 1, 1)
        np.testing.assert_array_equal(data[self.template_voxels(mirrored)], data[tuple(voxels.T)])
        self.assertFalse(np.array_equal(data, data[:, ::-1]))

    def test_second_call_keeps_the_files(self):
        before = {path: path.stat().st_mtime_ns for path in self.root.rglob("*")}
        with mock.patch("monai_dvpt.data.mni152.nilearn_datasets.load_mni152_template") as load:
            self.assertEqual(make_mni152_dataset(str(self.root)), self.root)
            load.assert_not_called()
        self.assertEqual({path: path.stat().st_mtime_ns for path in self.root.rglob("*")}, before)


if __name__ == "__main__":
    unittest.main()
