# SPDX-License-Identifier: Apache-2.0
"""The shipped hippocampus adapter on real images: what it scores, and that geometry does not change its answer."""

from __future__ import annotations

import csv
import itertools
import json
import subprocess
import sys
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from utils_data import ROOT, dice, save_nifti, shared_data, temporary_folder

from monai_dvpt.networks.adapter import adapter_metadata
from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.pretrained import MRI_VIT_TINY

BUNDLE = ROOT / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation"
ADAPTER = BUNDLE / "models" / "adapter.safetensors"
LABELS = (1, 2)


def run_config(name: str, kind: str, **settings) -> None:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / f"{name}.yaml"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        amp=False,
        **settings,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def segment(inputs: Path, outputs: Path) -> dict[str, nib.Nifti1Image]:
    """Label maps of everything in a folder, by name."""
    run_config("inference", "infer", dataset_dir=str(inputs), output_dir=str(outputs))
    return {path.name.removesuffix("_seg.nii.gz"): nib.load(path) for path in outputs.glob("*_seg.nii.gz")}


def sample(image: nib.Nifti1Image, affine: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """An image on another grid, by spline interpolation of ``order``."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    voxels = apply_affine(np.linalg.inv(image.affine) @ affine, indices)
    values = np.asarray(image.dataobj, dtype=np.float32)
    return map_coordinates(values, np.moveaxis(voxels, -1, 0), order=order, mode="nearest")


class TestShippedAdapter(unittest.TestCase):
    def test_sizes(self):
        metadata = adapter_metadata(ADAPTER)
        self.assertEqual(metadata["parts"], ["dvpt", "decoder", "head"])
        sizes = {"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "patch_size": 8}
        net = DVPTUNETR(1, 3, (40, 56, 40), **sizes)
        dvpt, backbone = (sum(p.numel() for p in part.parameters()) for part in (net.dvpt, net.vit))
        self.assertLessEqual(dvpt, 0.01 * backbone)
        self.assertLessEqual(4 * dvpt, 1_000_000)
        self.assertLess(MRI_VIT_TINY.stat().st_size + ADAPTER.stat().st_size, 20_000_000)

    def test_score_on_validation_cases(self):
        data, out = shared_data("msd_hippocampus"), temporary_folder(self)
        split = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
        self.assertEqual(split["validation"], json.loads((data / "datalist.json").read_text())["validation"])
        split["validation"] = split["validation"][::5]
        (out / "list.json").write_text(json.dumps(split))
        settings = {"dataset_dir": str(data), "datalist": str(out / "list.json"), "adapter_path": str(ADAPTER)}
        run_config("evaluate", "train", output_dir=str(out), **settings)
        with open(out / "metrics.csv") as file:
            scores = dict(row for row in csv.reader(file) if len(row) == 2)
        self.assertGreater(float(scores["val_mean_dice"]), 0.85)

    def test_dicom_series(self):
        """Plausible volumes, and the same label map as through dcm2niix."""
        series, out = shared_data("dicom/hippocampus_mr"), temporary_folder(self)
        (out / "nifti").mkdir()
        command = [
            sys.executable,
            "-m",
            "dcm2niix",
            "-z",
            "y",
            "-f",
            "converted",
            "-o",
            str(out / "nifti"),
            str(series),
        ]
        subprocess.run(command, check=True, capture_output=True)
        (from_dicom,) = segment(series, out / "dicom").values()
        from_nifti = segment(out / "nifti", out / "converted")["converted"]
        on_same_grid = sample(from_nifti, from_dicom.affine, from_dicom.shape, order=0)
        for value in LABELS:
            self.assertGreater(dice(np.asarray(from_dicom.dataobj), on_same_grid, value), 0.99)
        volumes = json.loads((out / "dicom" / "hippocampus_mr_volumes.json").read_text())["volumes_ml"]
        labels = [nib.load(path) for path in shared_data("msd_hippocampus/labelsTr").glob("*.nii.gz")]
        for value, volume in zip(LABELS, volumes.values(), strict=True):
            masks = [(np.asarray(label.dataobj) == value).sum() / 1000 for label in labels]  # of 1 mm^3
            self.assertGreater(volume, min(masks))
            self.assertLess(volume, max(masks))

    def test_axis_orders_flips_and_grids(self):
        """One anatomy in 48 axis codes, and on oblique and anisotropic grids, is labelled alike in the patient."""
        source = nib.load(shared_data("msd_hippocampus/imagesTr/hippocampus_006.nii.gz"))
        inputs, outputs = temporary_folder(self), temporary_folder(self)
        values = np.asarray(source.dataobj)
        orders = [
            np.array([(axis, flip) for axis, flip in zip(axes, flips, strict=True)])
            for axes in itertools.permutations(range(3))
            for flips in itertools.product((1, -1), repeat=3)
        ]
        for index, order in enumerate(orders):
            affine = source.affine @ inv_ornt_aff(order, source.shape)
            save_nifti(inputs / f"order{index:02}.nii.gz", apply_orientation(values, order), affine)
        centre = apply_affine(source.affine, (np.array(source.shape) - 1) / 2)
        extent = np.array(source.shape) * source.header.get_zooms()
        for name, degrees, spacing_mm in (
            ("oblique", (8, -5, 12), (0.8, 0.8, 0.8)),
            ("anisotropic", (0, 0, 0), (0.6, 0.8, 1.1)),
            ("oblique_anisotropic", (-6, 7, 10), (0.7, 0.9, 1.0)),
        ):
            axes = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * np.array(spacing_mm)
            shape = tuple(np.ceil(extent / spacing_mm).astype(int))
            affine = from_matvec(axes, centre - axes @ ((np.array(shape) - 1) / 2))
            save_nifti(inputs / f"{name}.nii.gz", sample(source, affine, shape, order=3), affine)
        found = segment(inputs, outputs)
        self.assertEqual(len(found), 51)
        reference = np.asarray(found.pop("order00").dataobj)
        for name, label_map in sorted(found.items()):
            written = nib.load(inputs / f"{name}.nii.gz")
            self.assertEqual(label_map.shape, written.shape)
            np.testing.assert_allclose(label_map.affine, written.affine, atol=1e-6)
            back = sample(label_map, source.affine, source.shape, order=0)
            for value in LABELS:
                with self.subTest(name=name, value=value):
                    self.assertGreaterEqual(dice(back, reference, value), 0.999 if "order" in name else 0.98)


if __name__ == "__main__":
    unittest.main()
