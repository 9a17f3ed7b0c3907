# SPDX-License-Identifier: Apache-2.0
"""The images of a folder of data: pictures and volumes, how tables may call them, and whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pydicom

from monai_dvpt.data import find_cases
from monai_dvpt.data.dicom.headers import quiet_pydicom
from monai_dvpt.data.dicom.limited import LimitedFile
from monai_dvpt.data.dicom.series import SECTIONAL
from monai_dvpt.data.dicom.terms import MODALITIES
from monai_dvpt.data.folders import walk_files
from monai_dvpt.data.gradelist import match_patient, patient_regex
from monai_dvpt.data.kinds import image_kind, image_problem, image_stem, looks_like_dicom
from monai_dvpt.data.nifti import nifti_size
from monai_dvpt.utils import InputError

from ..model import Finding, Options
from .words import IMAGE_WORDS, MASK_WORDS

__all__ = [
    "FoundImage",
    "ImageIndex",
    "Patients",
    "find_images",
    "has_mask_word",
    "in_mask_folder",
    "is_named_like_mask",
    "is_picture",
    "some",
    "without_kind",
    "without_masks",
    "words_of",
]

NUMBERS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber", "PatientID")
"""How a table may call a DICOM image; never to be shown."""
KIND_WORDS = MASK_WORDS[2] | IMAGE_WORDS | {"ground", "truth"}
MOST_LISTED = 5


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, such as those of "Ground-Truth_1stHO", "1st" and "ho" among them."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W_]+", spaced.lower())


def has_mask_word(name: str) -> bool:
    """Whether a name says that it is of masks, such as "masks", "labelsTr" or "ground_truth"."""
    words = words_of(name)
    pairs = (first + second for first, second in zip(words, words[1:], strict=False))  # such as ground and truth
    return not MASK_WORDS[2].isdisjoint({*words, *pairs})


def without_kind(name: str) -> str:
    """A name without the words for images and masks, such as "train" of "train_masks"; "" if nothing is left."""
    words = re.findall(r"[^\W_]+|[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name))
    kept: list[str] = []
    for word in words:
        if word.lower() not in KIND_WORDS:
            kept.append(word)
    return re.sub(r"([\W_])[\W_]+", r"\1", "".join(kept)).strip("_-. ").casefold()


def some(items: Iterable[Any]) -> str:
    """The first few of several things, and how many more there are."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:MOST_LISTED]) + (
        f" and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    )


@dataclass(frozen=True)
class FoundImage:
    """
    A picture or a volume.

    Attributes:
        name: unique among all images of the folder; see :func:`monai_dvpt.data.find_cases`.
        image: path of a file, or the paths of the files of a DICOM series.
        spatial_dims: 2 or 3.
        refused: why it cannot be read, or "".
        private: whether its path names the patient.
    """

    name: str
    image: str | list[str]
    spatial_dims: int
    refused: str = ""
    private: bool = False

    @property
    def path(self) -> Path:
        """The file, or the folder of the series."""
        if isinstance(self.image, str):
            return Path(self.image)
        return Path(os.path.commonpath([os.path.dirname(path) for path in self.image]))

    @cached_property
    def facts(self) -> Mapping[str, str]:
        """Of a DICOM image, its identifiers and modality, never to be shown; else empty."""
        first = self.image if isinstance(self.image, str) else self.image[0]
        return {} if not os.path.isfile(first) else _dicom_facts(Path(first))

    @property
    def modality(self) -> str:
        """As in DICOM, or ""."""
        modality = self.facts.get("Modality", "").upper()
        return modality if modality in MODALITIES else ""


def find_images(root: Path) -> list[FoundImage]:
    """
    The images below a folder, see :func:`monai_dvpt.data.find_cases`, in the order of their paths. A NIfTI file is a
    picture if it has two dimensions, or one slice; DICOM is a volume by its modality, such as CT.
    """
    spatial_dims = {path: _spatial_dims(path) for path in walk_files(root)}
    found = []
    for dims in sorted(set(spatial_dims.values()) - {0}):
        try:
            cases = find_cases(root, pictures=dims == 2)
        except InputError:  # it holds none, such as where all lie in folders of labels
            continue
        for case in cases:
            first = case["image"] if isinstance(case["image"], str) else case["image"][0]
            if os.path.isdir(first):  # a study without a readable series
                first = next(filter(looks_like_dicom, walk_files(Path(first))), first)
            if spatial_dims.get(Path(first), 0) == dims:
                facts = {key: case[key] for key in ("refused", "private") if key in case}
                found.append(FoundImage(case["name"], case["image"], dims, **facts))
    return found


def without_masks(images: Sequence[FoundImage], root: Path) -> list[FoundImage]:
    """The images that do not lie in a folder of masks; all where there are no others."""
    others = [image for image in images if not in_mask_folder(image.path, root)]
    return others or list(images)


def is_named_like_mask(image: FoundImage) -> bool:
    """Whether the name of an image's file says that it is a mask."""
    return has_mask_word(image_stem(image.path.name))


def in_mask_folder(path: Path, root: Path) -> bool:
    """Whether the name of a folder of a file, below ``root``, says that it is of masks."""
    return any(map(has_mask_word, Path(os.path.relpath(path, root)).parts[:-1]))


def is_picture(path: Path) -> bool:
    """Whether a file holds a picture, or has the name of one, and is not DICOM."""
    problem = image_problem(path, pictures=True)
    return problem is not None and (problem == "" or not looks_like_dicom(path)) and _spatial_dims(path) == 2


def _spatial_dims(path: Path) -> int:
    """2 for a picture, 3 for a volume, 0 for anything else, also a folder of DICOM that was refused."""
    problem = image_problem(path, pictures=True)
    if problem != "" and looks_like_dicom(path):
        return 3 if _dicom_facts(path).get("Modality", "").upper() in SECTIONAL else 2
    if problem is None:
        return 0
    kind = image_kind(path)
    if kind in ("nifti", "nifti pair"):
        try:
            size = nifti_size(path)
            return 2 if len(size) == 3 and size.count(1) == 1 else 3
        except InputError:
            return 3
    if kind in ("png", "jpeg"):
        return 2
    return 2 if problem and image_problem(path) is None else 3


def _dicom_facts(path: Path) -> dict[str, str]:
    if not os.path.isfile(path) or not looks_like_dicom(path):
        return {}
    try:
        with quiet_pydicom(), LimitedFile(path) as file:
            names = [*NUMBERS, "Modality"]
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=names)
            return {name: str(header.get(name) or "").strip() for name in names}
    except Exception:  # damaged files raise whatever their bytes lead to; the case says later that it cannot be read
        return {}


@dataclass
class ImageIndex:
    """
    Finds images by what a table calls them: a path below the folder of data or of the table, with or without suffix,
    or its last parts, or a DICOM identifier. Case does not count.

    Args:
        root: folder of data.
        images: to find.
    """

    root: Path
    images: Sequence[FoundImage]
    _named: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for index, image in enumerate(self.images):
            parts = Path(os.path.abspath(image.path)).relative_to(os.path.abspath(self.root)).parts
            tails = {"/".join(parts[start:]) for start in range(len(parts))}
            keys = tails | {image_stem(tail) for tail in tails} | {image.facts.get(name, "") for name in NUMBERS}
            for key in filter(None, map(str.casefold, keys)):
                self._named.setdefault(key, []).append(index)

    def find(self, cell: str, folder: Path) -> list[int]:
        """
        Args:
            cell: of a table.
            folder: of the table.

        Returns:
            indices of the images that it may mean.
        """
        text = cell.strip().replace("\\", "/").removeprefix("./")
        if not text:
            return []
        if os.path.isabs(text) and Path(text).is_relative_to(os.path.abspath(self.root)):
            text = Path(text).relative_to(os.path.abspath(self.root)).as_posix()
        beside = Path(os.path.normpath(folder / text))
        names = [beside.relative_to(self.root).as_posix()] if beside.is_relative_to(self.root) else []
        parts = [part for part in text.split("/") if part]
        # folders of another machine do not count, those of this one do
        here = len(parts) > 1 and any((place / parts[0]).is_dir() for place in (self.root, folder))
        names += ["/".join(parts[start:]) for start in range(1 if here else len(parts))]
        for name in (name.casefold() for name in names):
            if found := self._named.get(name) or self._named.get(image_stem(name)):
                whole = [index for index in found if self._is(index, name)]
                return whole or found
        return []

    def _is(self, index: int, name: str) -> bool:
        """Whether a name is the whole path of an image, and not its last parts alone."""
        path = os.path.relpath(self.images[index].path, self.root).casefold()
        return name in (path, image_stem(path))


class Patients:
    """
    Whose the images are: by a table's cell, else by the pattern, else by DICOM PatientID.

    Args:
        root: folder of data.
        options: with the pattern and the secret.

    Raises:
        InputError: if the pattern is no regular expression.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.root, self.options = root, options
        self.pattern = patient_regex(options.patient_pattern) if options.patient_pattern else None
        self.unmatched: list[str] = []

    def of(self, image: FoundImage, stated: str = "") -> str:
        """The alias of an image's patient, "" if not known; ``stated`` is what a table says."""
        if stated:
            return self.options.patient(stated)
        if self.pattern is not None:
            if found := match_patient(self.pattern, os.path.relpath(image.path, self.root)):
                return self.options.patient(found)
            self.unmatched.append(image.name)
        return self.options.patient(image.facts.get("PatientID", ""))

    def findings(self) -> list[Finding]:
        """Images in whose path the pattern finds nothing."""
        if not self.unmatched:
            return []
        message = (
            f"the pattern of patients is not in the paths of {len(self.unmatched)} images: {some(self.unmatched)}."
        )
        return [Finding("patient not found", "", message)]
