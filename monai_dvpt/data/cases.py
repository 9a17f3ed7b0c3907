# SPDX-License-Identifier: Apache-2.0
"""The inputs that a folder holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pydicom.misc import is_dicom

from monai_dvpt.utils import InputError

__all__ = ["find_cases", "unique_names"]


NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg")


def find_cases(
    dataset_dir: str | os.PathLike, exclude: str | os.PathLike | None = None, pictures: bool = False
) -> list[dict[str, str]]:
    """
    Lists the images at a path: every NIfTI file, and every folder that directly holds DICOM files, at any depth.
    Hidden files and folders, and folders whose name begins with "labels" (as the Decathlon names its masks), are
    passed over.

    Args:
        dataset_dir: a folder, or one file.
        exclude: folder to pass over, such as that of the results.
        pictures: whether the images are 2D: PNG and JPEG files are then listed too, and every DICOM file by itself,
            also one that has only the name of one (".dcm").

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
        found += [path for path in paths if path.name.endswith(NIFTI)]
        if pictures:
            found += [path for path in paths if path.name.lower().endswith(PICTURES) or _is_dicom_file(path)]
        elif any(path.is_file() and path.name != "DICOMDIR" and is_dicom(path) for path in paths):
            found.append(Path(folder))
    if not found:
        kinds = "NIfTI, PNG, JPEG or DICOM files" if pictures else "NIfTI files or folders of DICOM files"
        raise InputError(f"{root}: dataset_dir must hold {kinds}, found {'none' if pictures else 'neither'}.")
    return [{"image": str(path), "name": name} for name, path in unique_names(root, found).items()]


def unique_names(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """
    A name of its own for each path, made of its way below ``root``, in order of the paths; of a path elsewhere it is
    made of the last part.
    """
    names: dict[str, Path] = {}
    for path in sorted(paths):
        inside = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
        parts = inside or (root.resolve().name,)
        name = base = "_".join([*parts[:-1], parts[-1] if path.is_dir() else _stem(parts[-1])])
        count = 1
        while name in names:  # scan.nii beside scan.nii.gz
            count += 1
            name = f"{base}_{count}"
        names[name] = path
    return names


def _is_dicom_file(path: Path) -> bool:
    return path.is_file() and path.name != "DICOMDIR" and (path.suffix.lower() == ".dcm" or is_dicom(path))


def _stem(name: str) -> str:
    name = name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm") or name
    return Path(name).stem if name.lower().endswith(PICTURES) else name
