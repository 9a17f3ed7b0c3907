# SPDX-License-Identifier: Apache-2.0
"""A real brain MR with labels from a Python package, for the quick start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.utils import optional_import

from monai_dvpt.utils import atomic_path

from .nifti import save_nifti

nilearn_datasets, _ = optional_import("nilearn.datasets")

__all__ = ["make_mni152_dataset"]


def make_mni152_dataset(dataset_dir: str | os.PathLike) -> Path:
    """
    Writes nilearn's MNI152 T1 template (ICBM 2009a, symmetric, 1 mm) as two cases, the back and the front half of the
    brain, with labels 0 other, 1 grey matter, 2 white matter (tissue probability of at least one half), in the layout
    of the Medical Segmentation Decathlon. The split is front to back because the template's left half is the exact
    mirror image of its right. A folder that has a ``datalist.json`` is left as it is.

    Args:
        dataset_dir: folder to write ``imagesTr``, ``labelsTr`` and ``datalist.json`` to.

    Returns:
        ``dataset_dir``, with the back half listed for training and the front half for validation.

    Raises:
        OptionalImportError: if nilearn is not installed.
    """
    root = Path(dataset_dir)
    if (root / "datalist.json").is_file():
        return root
    t1 = nilearn_datasets.load_mni152_template(resolution=1)
    grey, white = (
        np.asarray(load(resolution=1).dataobj) >= 0.5
        for load in (nilearn_datasets.load_mni152_gm_template, nilearn_datasets.load_mni152_wm_template)
    )
    image, label = t1.get_fdata(dtype=np.float32), np.where(white, 2, np.where(grey, 1, 0)).astype(np.uint8)
    brain = [np.flatnonzero(image.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    (x0, x1), (y0, y1), (z0, z1) = ((voxels[0], voxels[-1] + 1) for voxels in brain)
    middle = (y0 + y1) // 2
    for name, back, front in (("mni152_back", y0, middle), ("mni152_front", middle, y1)):
        affine = t1.affine.copy()
        affine[:3, 3] = nib.affines.apply_affine(t1.affine, (x0, back, z0))
        for folder, volume in (("imagesTr", image), ("labelsTr", label)):
            save_nifti(root / folder / f"{name}.nii.gz", volume[x0:x1, back:front, z0:z1], affine)
    case = "{0}/mni152_{1}.nii.gz".format
    sections = {"training": "back", "validation": "front"}
    datalist = {
        section: [{"image": case("imagesTr", half), "label": case("labelsTr", half)}]
        for section, half in sections.items()
    }
    with atomic_path(root / "datalist.json") as path:
        path.write_text(json.dumps(datalist, indent=1))
    return root
