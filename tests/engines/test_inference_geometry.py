# SPDX-License-Identifier: Apache-2.0
"""The hippocampus bundle's inference, with a network of known answers in the place of the trained one."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import unittest
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff
from parameterized import parameterized
from scipy.spatial.transform import Rotation
from utils_data import ROOT, dice, save_dicom, save_nifti, shared_data, temporary_folder

from monai_dvpt.transforms import LoadVolume

CONFIG = ROOT / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation" / "configs" / "inference.yaml"
ORIENTATIONS = [
    np.array([(axis, flip) for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def run_inference(dataset_dir: Path, output_dir: Path, network: torch.nn.Module) -> dict[str, nib.Nifti1Image]:
    """Runs the config on a folder, and returns the label maps that it wrote by the name of the case."""
    parser = ConfigParser()
    parser.read_config(CONFIG)
    settings = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "network": network, "amp": False}
    parser.update({**settings, "device": "$torch.device('cpu')", "bundle_root": str(CONFIG.parents[1])})
    with mock.patch("monai_dvpt.handlers.case_writer.plot_overlay", side_effect=check_overlay):
        parser.get_parsed_content("run")
    suffix = "_seg.nii.gz"
    return {path.name.removesuffix(suffix): nib.load(path) for path in output_dir.glob(f"*{suffix}")}


def check_overlay(image: MetaTensor, label_map: MetaTensor, *args) -> Figure:
    """In the place of the picture, which takes longer than all else: what is drawn is the image as it was loaded."""
    loaded = LoadVolume()(image.meta["filename_or_obj"])
    np.testing.assert_array_equal(image.affine.numpy(), label_map.affine.numpy())
    np.testing.assert_allclose(image.affine.numpy(), loaded.affine.numpy(), atol=1e-6)
    assert image.shape == loaded.shape
    correlation = np.corrcoef(image.numpy().ravel(), loaded.numpy().ravel())[0, 1]
    assert correlation > 0.99, correlation
    return Figure(figsize=(0.1, 0.1))


def points_ras(image: nib.Nifti1Image) -> np.ndarray:
    """Position of every voxel in mm, of shape (x, y, z, 3)."""
    return apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))


class Texture(torch.nn.Module):
    """Three classes, by what lies right, in front and on top of a voxel: a mirrored or turned input differs."""

    SHIFTS = ((0, 0, 0), (3, 0, 0), (0, 3, 0), (0, 0, 3), (2, -1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool3d(x, 3, 1, 1)
        here, right, front, top, corner = (x.roll(shift, dims=(2, 3, 4)) for shift in self.SHIFTS)
        return 4 * torch.cat([right - here, front - top, corner - right], dim=1)


class Blobs(torch.nn.Module):
    """
    Finds bright ellipsoids of Gaussian profile, and labels them 1 on the one side of a plane through their centre and
    2 on the other; knows no position, only brightness and its slope to the right, front and top.

    Args:
        mean: that of the image's intensities, which the preprocessing subtracts.
        std: that by which it divides.
    """

    BACKGROUND, HEIGHT, SIGMA_MM = 100.0, 400.0, np.array((7.0, 8.0, 6.0))
    CENTRES_RAS = np.array(((9.0, -20.0, 31.0), (34.0, -13.0, 36.0)))
    NORMAL = np.array((2.0, 1.0, -0.5)) / 3

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = (x * self.std + self.mean - self.BACKGROUND).clamp(min=0)
        slopes = torch.gradient(above, dim=(2, 3, 4))
        slope = sum(w * s for w, s in zip((self.SIGMA_MM**2 * self.NORMAL).tolist(), slopes, strict=True))
        side = slope / above.clamp(min=self.HEIGHT / 20)  # minus the distance from the plane, in mm
        inside = (above - self.HEIGHT / 2) / (self.HEIGHT / 10)
        one, two = F.logsigmoid(side), F.logsigmoid(-side)
        outside = F.logsigmoid(-inside) + torch.maximum(one, two)
        return torch.cat([outside, F.logsigmoid(inside) + one, F.logsigmoid(inside) + two], dim=1)

    @classmethod
    def image_and_label(cls, points_ras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intensity and label at points in millimetres, by formula."""
        offsets = points_ras[..., None, :] - cls.CENTRES_RAS
        blobs = cls.HEIGHT * np.exp(-((offsets / cls.SIGMA_MM) ** 2).sum(axis=-1) / 2)
        above = blobs.sum(axis=-1)
        side = (blobs * (offsets @ cls.NORMAL)).sum(axis=-1)
        return cls.BACKGROUND + above, np.where(above > cls.HEIGHT / 2, np.where(side < 0, 1, 2), 0)


def blobs_grid(spacing_mm: Sequence[float], degrees: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Size and affine of an oblique grid that holds both ellipsoids."""
    shape = tuple(np.ceil(np.array((60, 46, 42)) / spacing_mm).astype(int).tolist())
    axes = Rotation.from_euler("zyx", (degrees, degrees / 2, -degrees), degrees=True).as_matrix() * spacing_mm
    origin = Blobs.CENTRES_RAS.mean(axis=0) - axes @ ((np.array(shape) - 1) / 2)
    return shape, from_matvec(axes, origin)


class TestInferenceGeometry(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)

    def run_on_inputs(self, network: torch.nn.Module) -> dict[str, nib.Nifti1Image]:
        label_maps = run_inference(self.root / "in", self.root / "out", network)
        self.assertTrue(label_maps)
        for name, label_map in label_maps.items():
            path = self.root / "in" / f"{name}.nii.gz"
            if path.is_file():
                source = nib.load(path)
                self.assertEqual(label_map.shape, source.shape)
                np.testing.assert_array_equal(label_map.affine, source.affine)
            self.assertEqual(label_map.get_data_dtype(), np.uint8)
        return label_maps

    def assert_blobs(self, label_map: nib.Nifti1Image, least_dice: float) -> None:
        """The ellipsoids' halves are found where they lie in the patient."""
        points, found = points_ras(label_map), np.asarray(label_map.dataobj)
        _, truth = Blobs.image_and_label(points)
        for value in (1, 2):
            self.assertGreaterEqual(dice(found, truth, value), least_dice)
            centres = [points[mask == value].mean(axis=0) for mask in (found, truth)]
            self.assertLess(np.linalg.norm(centres[0] - centres[1]), 0.1)  # mm

    def test_axis_orders_and_flips(self):
        """A real image stored in all 48 ways gives one and the same label map in the patient."""
        source = nib.load(shared_data("msd_hippocampus/imagesTr/hippocampus_001.nii.gz"))
        volume = source.get_fdata(dtype=np.float32)[:, 3:, :-1]  # three different sides
        for index, orientation in enumerate(ORIENTATIONS):
            affine = source.affine @ inv_ornt_aff(orientation, volume.shape)
            save_nifti(self.root / "in" / f"{index}.nii.gz", apply_orientation(volume, orientation), affine)
        label_maps = self.run_on_inputs(Texture())
        self.assertEqual(len(label_maps), 48)
        canonical = {name: nib.as_closest_canonical(label_map) for name, label_map in label_maps.items()}
        reference = np.asarray(canonical["0"].dataobj)
        self.assertGreater(np.bincount(reference.ravel()).min(), 5000)  # every class is there
        for name, label_map in canonical.items():
            np.testing.assert_allclose(label_map.affine, canonical["0"].affine, atol=1e-6)
            for value in (0, 1, 2):
                self.assertGreaterEqual(dice(np.asarray(label_map.dataobj), reference, value), 0.999, name)

    @parameterized.expand(
        [
            ("isotropic", (1.0, 1.0, 1.0), 0, 0.99),
            ("anisotropic", (0.7, 0.9, 1.3), 0, 0.98),
            ("thick slices", (0.8, 0.6, 2.5), 0, 0.96),
            ("oblique", (0.8, 0.8, 0.8), 20, 0.98),
            ("oblique, anisotropic", (0.7, 0.9, 1.3), 20, 0.98),
            ("far from every axis", (0.9, 1.1, 1.0), 44, 0.98),
        ]
    )
    def test_grids(self, _, spacing_mm, degrees, least_dice):
        """Ellipsoids known by formula, on the same grid in several axis orders and flips, both handed."""
        shape, affine = blobs_grid(spacing_mm, degrees)
        image, _ = Blobs.image_and_label(points_ras(nib.Nifti1Image(np.zeros(shape, np.uint8), affine)))
        for index in (0, 1, 13, 30, 47):
            turned = affine @ inv_ornt_aff(ORIENTATIONS[index], shape)
            volume = apply_orientation(image.astype(np.float32), ORIENTATIONS[index])
            save_nifti(self.root / "in" / f"{index}.nii.gz", volume, turned)
        label_maps = self.run_on_inputs(Blobs(image.mean(), image.std()))
        self.assertEqual(len(label_maps), 5)
        for label_map in label_maps.values():
            self.assert_blobs(label_map, least_dice)

    @parameterized.expand([("axial", 0), ("oblique", 25)])
    def test_dicom(self, _, degrees):
        """A DICOM series of the ellipsoids, and what dcm2niix makes of it."""
        shape, affine = blobs_grid((0.9, 1.1, 1.4), degrees)
        image, _ = Blobs.image_and_label(points_ras(nib.Nifti1Image(np.zeros(shape, np.uint8), affine)))
        to_lps = np.diag((-1, -1, 1))
        directions, spacing_mm = to_lps @ (affine[:3, :3] / (0.9, 1.1, 1.4)), (0.9, 1.1, 1.4)
        volume = image.round().astype(np.uint16)
        save_dicom(self.root / "in" / "series", volume, directions, to_lps @ affine[:3, 3], spacing_mm)
        self.convert(self.root / "in" / "series")
        label_maps = self.run_on_inputs(Blobs(volume.mean(), volume.std()))
        self.assert_blobs(label_maps["series"], 0.98)
        self.assert_equal_in_patient(label_maps)

    def test_real_dicom(self):
        shutil.copytree(shared_data("dicom/hippocampus_mr"), self.root / "in" / "series")
        self.convert(self.root / "in" / "series")
        self.assert_equal_in_patient(self.run_on_inputs(Texture()))

    def convert(self, folder: Path) -> None:
        options = ["-z", "y", "-b", "n", "-f", "converted", "-o", str(self.root / "in")]
        subprocess.run([sys.executable, "-m", "dcm2niix", *options, str(folder)], check=True, capture_output=True)

    def assert_equal_in_patient(self, label_maps: dict[str, nib.Nifti1Image]) -> None:
        series, converted = (nib.as_closest_canonical(label_maps[name]) for name in ("series", "converted"))
        np.testing.assert_allclose(series.affine, converted.affine, atol=1e-3)
        self.assertEqual(len(np.unique(series.dataobj)), 3)
        for value in (0, 1, 2):
            overlap = dice(np.asarray(series.dataobj), np.asarray(converted.dataobj), value)
            self.assertGreaterEqual(overlap, 0.999)


if __name__ == "__main__":
    unittest.main()
