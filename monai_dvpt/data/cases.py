# SPDX-License-Identifier: Apache-2.0
"""The inputs that a folder holds."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom.misc import is_dicom

from monai_dvpt.utils import InputError

__all__ = ["find_cases"]


def find_cases(dataset_dir: str | os.PathLike, exclude: str | os.PathLike | None = None) -> list[dict[str, str]]:
    """
    Lists the images at a path: every NIfTI file, and every folder that directly holds DICOM files, at any depth.
    Hidden files and folders, and folders whose name begins with "labels" (as the Decathlon names its masks), are
    passed over.

    Args:
        dataset_dir: a folder, or one file.
        exclude: folder to pass over, such as that of the results.

    Returns:
        for each input its path as "image" and a "name" that is unique among them, made of the path below
        ``dataset_dir``, in order of the names.

    Raises:
        InputError: if the path does not exist or holds no input.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise InputError(f"{root}: dataset_dir must be an existing file or folder.")
    if root.is_file():
        return [{"image": str(root), "name": _stem(root.name)}]
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "labels"))
            and (exclude is None or Path(folder, name).resolve() != Path(exclude).resolve())
        ]
        paths = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if path.name.endswith((".nii", ".nii.gz"))]
        if any(path.is_file() and path.name != "DICOMDIR" and is_dicom(path) for path in paths):
            found.append(Path(folder))
    if not found:
        raise InputError(f"{root}: dataset_dir must hold NIfTI files or folders of DICOM files, found neither.")
    cases: dict[str, str] = {}
    for path in sorted(found):
        parts = path.relative_to(root).parts or (root.resolve().name,)
        name = base = "_".join([*parts[:-1], _stem(parts[-1]) if path.is_file() else parts[-1]])
        count = 1
        while name in cases:  # scan.nii beside scan.nii.gz
            count += 1
            name = f"{base}_{count}"
        cases[name] = str(path)
    return [{"image": path, "name": name} for name, path in cases.items()]


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm") or name
