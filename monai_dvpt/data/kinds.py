# SPDX-License-Identifier: Apache-2.0
"""The kind of a file, by its content and not by its name."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

from monai_dvpt.utils import InputError, naming

from .folders import walk_files

__all__ = [
    "VOLUMES",
    "check_regular",
    "file_ids",
    "file_kind",
    "image_kind",
    "image_problem",
    "image_stem",
    "is_regular",
    "looks_like_dicom",
    "nifti_image_of",
    "pair_header",
]

START = 1024  # bytes to look at
NIFTI_1, NIFTI_2 = 348, 540  # bytes of a header
MAGIC = {b"n+1\0": "nifti", b"ni1\0": "nifti pair"}
MAGIC_2 = {b"n+2\0": "nifti", b"ni2\0": "nifti pair"}
VOLUMES = ("nifti", "nifti pair", "nrrd", "metaimage")
PICTURES = ("png", "jpeg")
"""Kinds that can be read."""
PAIRS = (".hdr", ".hdr.gz", ".img", ".img.gz")
VOLUME_SUFFIXES = (".nii.gz", ".nii", *PAIRS, ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc", ".tif", ".tiff")
DICOM_SUFFIXES = ("", ".dcm", ".ima")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""Suffixes of images, whatever the content."""


def is_regular(path: str | os.PathLike) -> bool:
    """Whether a path is a regular file, or a link to one: no pipe, socket, device or folder."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def check_regular(path: str | os.PathLike) -> None:
    """Raises an InputError unless the path is a regular file, see :func:`is_regular`."""
    with naming(path):
        if not is_regular(path):
            raise InputError("must be an existing file, and a regular one.")


def file_kind(path: str | os.PathLike) -> str:
    """
    Returns:
        "nifti" (a single file, NIfTI-1 or NIfTI-2, compressed or not), "nifti pair" (the header of a pair), "analyze"
        (a header of Analyze 7.5, which has no orientation), "nrrd", "metaimage", "png", "jpeg" or "dicom" (with the
        preamble of PS3.10); "" for any other path.
    """
    if not is_regular(path):
        return ""
    try:
        with open(path, "rb") as file:
            start = _inflated(file.read(START))
    except OSError:
        return ""
    dicom = start[128:132] == b"DICM"
    for order in ("little", "big"):
        size = int.from_bytes(start[:4], order)
        plausible = 1 <= int.from_bytes(start[40:42], order) <= 7  # number of dimensions
        if size == NIFTI_1 and len(start) >= NIFTI_1 and (plausible or start[344:348] in MAGIC):
            return MAGIC.get(start[344:348], "dicom" if dicom else "analyze")
        if size == NIFTI_2 and start[4:8] in MAGIC_2:
            return MAGIC_2[start[4:8]]
    if dicom:
        return "dicom"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"NRRD000"):
        return "nrrd"
    lines = [line.partition(b"=")[0].strip() for line in start.split(b"\n")[:4]]
    return "metaimage" if b"ObjectType" in lines or b"NDims" in lines else ""


def looks_like_dicom(path: Path) -> bool:
    """
    Whether a file is DICOM by its first bytes, or should be by its name because it cannot be opened, is empty, or ends
    within its preamble.
    """
    if path.name.upper() == "DICOMDIR":  # an index of other files
        return False
    suffix = path.suffix.lower()
    dicom_name = suffix in DICOM_SUFFIXES or suffix[1:].isdigit()  # many files have a UID for a name
    if os.path.exists(path) and not is_regular(path) and not os.path.isdir(path):  # a pipe or device is never opened
        return dicom_name
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except IsADirectoryError:
        return os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK)
    except OSError:  # no permission, or a link to nowhere
        return dicom_name
    if start[128:] == b"DICM" or suffix in DICOM_SUFFIXES[1:]:
        return True
    if not start[:128].strip(b"\0"):  # empty, cut within or after the preamble, or never filled
        return dicom_name
    group, element = start[:2], start[2:4]  # of a file without preamble
    return len(start) == 132 and group in (b"\2\0", b"\10\0") and element[1] == 0


def _inflated(start: bytes) -> bytes:
    if not start.startswith(b"\x1f\x8b"):
        return start
    try:
        return zlib.decompressobj(31).decompress(start, START)
    except zlib.error:
        return b""


def image_problem(path: Path, pictures: bool = False) -> str | None:
    """
    Args:
        path: any file.
        pictures: whether PNG and JPEG files are images.

    Returns:
        "" for an image in a format that can be read; the reason for another image, or a file that only has the name of
        one; None for any other file, such as the values of a pair and DICOM files.
    """
    name, kind = path.name.lower(), file_kind(path)
    if pair_header(path) is not None:
        return None
    if kind == "nifti pair" and nifti_image_of(path) is None:
        return f"{path}: cannot be read: is the header of a NIfTI pair, must have its values beside it (.img)."
    if kind in VOLUMES or pictures and kind in PICTURES:
        return ""
    if kind == "dicom":
        return None
    if kind == "analyze":
        return f"{path}: cannot be read: is of Analyze 7.5, which does not say how an image lies; convert it to NIfTI."
    suffix = next((end for end in VOLUME_SUFFIXES + PICTURE_SUFFIXES * pictures if name.endswith(end)), None)
    if suffix is None:
        return None
    if not is_regular(path):
        return f"{path}: cannot be read: must be a regular file."
    wanted = f"NIfTI, NRRD, MetaImage{', PNG, JPEG' if pictures else ''} or DICOM"
    return f"{path}: cannot be read: is named {suffix}, and must hold {wanted}, does not."


def image_stem(name: str) -> str:
    """The name of an image's file without its suffix, in upper or lower case, or all of it if nothing is left."""
    lower = name.lower()
    suffix = next((end for end in (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES, ".gz", ".dcm") if lower.endswith(end)), "")
    return name[: len(name) - len(suffix)] or name


def file_ids(path: str | os.PathLike) -> set[tuple[int, int]]:
    """
    Device and inode of the files of a scan: two scans whose sets overlap share data, perhaps through symbolic or hard
    links. The data file of an NRRD or MetaImage header does not count.

    Args:
        path: an existing file, with its values if it is the header of a pair, or a folder with all its files.
    """
    path = Path(path)
    paths = [path, *(walk_files(path) if path.is_dir() else [])]
    paths += filter(None, [nifti_image_of(path)])
    states = [os.stat(each) for each in paths if os.path.exists(each)]
    return {(state.st_dev, state.st_ino) for state in states}


def image_kind(path: str | os.PathLike) -> str:
    """As :func:`file_kind`, but "nifti pair" also for the values of a pair."""
    return "nifti pair" if pair_header(path) else file_kind(path)


def pair_header(path: str | os.PathLike) -> Path | None:
    """The header beside a file with the values of a pair (``.img``, ``.img.gz``); None for any other file."""
    path = Path(path)
    if not path.name.lower().endswith((".img", ".img.gz")) or file_kind(path) in VOLUMES:
        return None
    header = _beside(path, ".hdr")
    return header if header is not None and file_kind(header) in ("nifti pair", "analyze") else None


def nifti_image_of(header: Path) -> Path | None:
    """The file with the values of a pair, beside its header: ``.img`` or ``.img.gz``, in upper or lower case."""
    return _beside(header, ".img") if header.name.lower().endswith((".hdr", ".hdr.gz")) else None


def _beside(part: Path, suffix: str) -> Path | None:
    """The other part of a pair."""
    stem = image_stem(part.name)
    spellings = (suffix, suffix.upper(), suffix.title())
    names = (stem + spelling + end for end in ("", ".gz", ".GZ", ".Gz") for spelling in spellings)
    return next((path for name in names if os.path.exists(path := part.with_name(name))), None)
