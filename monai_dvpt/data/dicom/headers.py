# SPDX-License-Identifier: Apache-2.0
"""What the header of one DICOM file says about its frames, with nothing that names a patient."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_dvpt.utils import InputError

__all__ = ["TIME_KEYS", "DicomFile", "Frame", "looks_like_dicom", "quiet_pydicom", "read_header"]

TIME_KEYS = {
    "ImageType": ("ImageType", "MRImageFrameTypeSequence.FrameType", "CTImageFrameTypeSequence.FrameType"),
    "TemporalPositionIdentifier": ("TemporalPositionIdentifier", "FrameContentSequence.TemporalPositionIndex"),
    "TriggerTime": ("TriggerTime", "CardiacSynchronizationSequence.NominalCardiacTriggerDelayTime"),
    "DiffusionBValue": ("DiffusionBValue", "MRDiffusionSequence.DiffusionBValue"),
    "EchoTime": ("EchoTime", "MREchoSequence.EffectiveEchoTime"),
    "EchoNumbers": ("EchoNumbers",),
    "AcquisitionNumber": ("AcquisitionNumber", "FrameContentSequence.FrameAcquisitionNumber"),
    "AcquisitionDateTime": ("AcquisitionDateTime", "FrameContentSequence.FrameAcquisitionDateTime"),
    "AcquisitionTime": ("AcquisitionTime",),
    "ContentTime": ("ContentTime",),
}
"""What can tell frames at one position apart, the most telling first, and where files of one or many frames say it."""

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SINGLE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *(
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "AccessionNumber",
        "Modality",
        "SeriesDescription",
        "SeriesNumber",
        "InstanceNumber",
        "ImageType",
    ),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", *(names[0] for names in TIME_KEYS.values()), *GROUPS),
)
MAX_FRAMES = 100_000
NO_NAMES = {"anonymous", "anonymized", "anonymised", "anon", "patient", "unknown", "unnamed", "none", "test", "phantom"}
_WORD = re.compile(r"[^\W_]+")
PIXEL_GROUP = (b"\xe0\x7f", b"\x7f\xe0")
"""Of the tags of pixel data, in both orders of bytes."""


@dataclass(frozen=True)
class Frame:
    """
    One frame of a file.

    Attributes:
        number: from 1, as the standard counts.
        position_lps: patient coordinates of the centre of the first pixel in mm, or None.
        orientation_lps: unit vectors along a row and along a column, of shape (2, 3), or None.
        spacing_mm: distance between columns and between rows, or None.
        slope: of the stored values.
        intercept: of the stored values.
        stack: identifier of the stack in a multi-frame file.
        times: what is there of ``TIME_KEYS``, each as a number, a text or, of several values, a tuple of texts.
    """

    number: int
    position_lps: tuple[float, ...] | None
    orientation_lps: tuple[tuple[float, ...], ...] | None
    spacing_mm: tuple[float, float] | None
    slope: float
    intercept: float
    stack: str
    times: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class DicomFile:
    """
    One DICOM object.

    Attributes:
        path: the file.
        sop_class: its SOP Class UID.
        sop_uid: its SOP Instance UID.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        frame_of_reference: Frame of Reference UID.
        patient: tells patients apart within this process, and says nothing about them.
        modality: such as "CT".
        description: of the series.
        series_number: number of the series, or -1.
        size: columns and rows, or None if it is no image.
        photometric: photometric interpretation.
        samples: values per pixel.
        problem: why its pixels cannot be read; empty if nothing is known against it.
        frames: its frames; none if it is no image.
        identifiers: hashes, of this process alone, of what would name the patient; see :meth:`names_patient`.
    """

    path: Path
    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    patient: int
    modality: str
    description: str
    series_number: int
    size: tuple[int, int] | None
    photometric: str
    samples: int
    problem: str
    frames: tuple[Frame, ...]
    identifiers: frozenset[int]

    @property
    def label(self) -> str:
        """The folder and name of the file, or what stands for them where they name the patient."""
        text = f"{self.path.parent.name}/{self.path.name}"
        return "one of its files" if self.names_patient(text) else text

    def names_patient(self, text: str) -> bool:
        """Whether a text, such as a path, holds a name, ID, birth date or accession number of the header."""
        words = _words(text) | {"".join(_WORD.findall(part)) for part in re.split(r"[/\\]", text.lower())}
        return any(hash(word) in self.identifiers for word in words)


def _words(text: str) -> set[str]:
    """Words that could be a name, without those that stand in place of one."""
    return {word for word in _WORD.findall(text.lower()) if len(word) >= 3} - NO_NAMES


def _identifiers(dataset: Dataset) -> frozenset[int]:
    name = _text(dataset, "PatientName")
    words = _words(name) | {
        "".join(_WORD.findall(text.lower()))
        for text in (
            name,
            *(_text(dataset, keyword) for keyword in ("PatientID", "PatientBirthDate", "AccessionNumber")),
        )
    }
    return frozenset(hash(word) for word in words - NO_NAMES if len(word) >= 3)


class quiet_pydicom(warnings.catch_warnings):
    """Context in which pydicom neither warns of invalid values, which could name a patient, nor checks them."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._validation = config.disable_value_validation()
        self._validation.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._validation.__exit__(*error)
        super().__exit__(*error)


def looks_like_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes or, without them, by its name; an empty file without suffix may be."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima") or not (start or path.suffix)


def read_header(path: str | os.PathLike) -> DicomFile:
    """
    Reads what a file says of itself, without its pixels.

    Args:
        path: a DICOM file, with or without preamble (PS3.10).

    Raises:
        InputError: if it cannot be read as DICOM, or says something that cannot be.
    """
    path = Path(path)
    try:
        with quiet_pydicom(), open(path, "rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(SINGLE))
            if "SOPClassUID" not in dataset and "SOPInstanceUID" not in dataset:
                raise InputError(f"{path.name}: must be a DICOM object, has no SOPClassUID.")
            return _describe(path, dataset, _pixel_problem(file, dataset))
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path.name}: cannot be read: sequences are nested too deeply.") from None
    except Exception as error:  # damaged files raise whatever their bytes lead to
        raise InputError(f"{path.name}: cannot be read: {type(error).__name__}.") from error


def _describe(path: Path, dataset: Dataset, problem: str) -> DicomFile:
    size, count = None, 0
    if "Rows" in dataset and "Columns" in dataset:
        size = (_whole(path, dataset, "Columns"), _whole(path, dataset, "Rows"))
        count = _whole(path, dataset, "NumberOfFrames") if dataset.get("NumberOfFrames") else 1
        if count > MAX_FRAMES:
            raise InputError(f"{path.name}: NumberOfFrames must be at most {MAX_FRAMES}, got {count}.")
    return DicomFile(
        path=path,
        sop_class=_text(dataset, "SOPClassUID"),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        patient=hash((_text(dataset, "PatientID"), _text(dataset, "PatientName"))),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        series_number=int(_number(path, dataset, "SeriesNumber", -1)),
        size=size,
        photometric=_text(dataset, "PhotometricInterpretation"),
        samples=int(_number(path, dataset, "SamplesPerPixel", 1)),
        problem=problem,
        frames=tuple(_frames(path, dataset, count)),
        identifiers=_identifiers(dataset),
    )


def _frames(path: Path, dataset: Dataset, count: int) -> list[Frame]:
    shared, each = ([*(dataset.get(name) or [])] for name in GROUPS)
    if each and len(each) != count:
        raise InputError(f"{path.name}: must describe each of its {count} frames, describes {len(each)}.")
    if not each and not shared and count > 1:
        each = [Dataset()] * count  # says nothing about its frames: nothing of the file holds for all of them
        dataset = Dataset()
    frames = []
    for index in range(count):
        levels = [*each[index : index + 1], *shared[:1], dataset]
        stack = _find(levels, "FrameContentSequence.StackID")
        position = _find(levels, "PlanePositionSequence.ImagePositionPatient", "ImagePositionPatient")
        orientation = _find(levels, "PlaneOrientationSequence.ImageOrientationPatient", "ImageOrientationPatient")
        spacing = _find(levels, "PixelMeasuresSequence.PixelSpacing", "PixelSpacing")
        slope = _find(levels, "PixelValueTransformationSequence.RescaleSlope", "RescaleSlope")
        intercept = _find(levels, "PixelValueTransformationSequence.RescaleIntercept", "RescaleIntercept")
        times = {key: _find(levels, *reversed(names)) for key, names in TIME_KEYS.items()}
        frames.append(
            Frame(
                index + 1,
                _vector(path, "ImagePositionPatient", position, 3),
                _directions(path, _vector(path, "ImageOrientationPatient", orientation, 6)),
                _spacing(path, _vector(path, "PixelSpacing", spacing, 2)),
                _scalar(path, "RescaleSlope", slope, 1.0),
                _scalar(path, "RescaleIntercept", intercept, 0.0),
                str(stack or ""),
                {key: _comparable(value) for key, value in times.items() if value is not None},
            )
        )
    return frames


def _find(levels: Sequence[Dataset], *names: str) -> Any:
    """The first value of the names, each perhaps inside a sequence, in the first data set that has one."""
    for dataset in levels:
        for name in names:
            sequence, _, inner = name.rpartition(".")
            holder = dataset if not sequence else next(iter(dataset.get(sequence) or []), None)
            value = None if holder is None else holder.get(inner or name)
            if value is not None and value != "":
                return value
    return None


def _comparable(value: Any) -> Any:
    if isinstance(value, (int, float)):
        return float(value)
    return str(value) if isinstance(value, str) or not hasattr(value, "__len__") else tuple(map(str, value))


def _vector(path: Path, name: str, value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    try:
        numbers = tuple(float(entry) for entry in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"{path.name}: {name} must have {count} finite numbers, got {_short(value)}.")
    return numbers


def _directions(path: Path, numbers: tuple[float, ...] | None) -> tuple[tuple[float, ...], ...] | None:
    if numbers is None:
        return None
    vectors = np.reshape(numbers, (2, 3))
    lengths = np.linalg.norm(vectors, axis=1)
    if (abs(lengths - 1) > 0.01).any() or abs(vectors[0] @ vectors[1]) > 1e-3:
        raise InputError(
            f"{path.name}: ImageOrientationPatient must be two perpendicular unit vectors, got {_short(numbers)}."
        )
    return tuple(map(tuple, (vectors / lengths[:, None]).tolist()))


def _spacing(path: Path, numbers: tuple[float, ...] | None) -> tuple[float, float] | None:
    if numbers is None:
        return None
    if min(numbers) <= 0:
        raise InputError(f"{path.name}: PixelSpacing must be above 0, got {_short(numbers)}.")
    return numbers[1], numbers[0]  # the standard has rows first


def _scalar(path: Path, name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path.name}: {name} must be a finite number, got {_short(value)}.")
    return number


def _number(path: Path, dataset: Dataset, name: str, default: float) -> float:
    value = dataset.get(name)
    return _scalar(path, name, None if value == "" else value, default)


def _whole(path: Path, dataset: Dataset, name: str) -> int:
    number = _number(path, dataset, name, 0)
    if number < 1 or number != int(number):
        raise InputError(f"{path.name}: {name} must be a whole number of at least 1, got {_short(dataset.get(name))}.")
    return int(number)


def _short(value: Any) -> str:
    numbers = [value] if isinstance(value, (str, int, float)) or value is None else list(value)
    return ", ".join(str(number)[:20] for number in numbers[:6])


def _text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _pixel_problem(file: Any, dataset: Dataset) -> str:
    """Why the pixels that should follow cannot be all there, or nothing; the file stands behind the header."""
    meta = getattr(dataset, "file_meta", Dataset())
    syntax = meta.get("TransferSyntaxUID")
    if syntax == DeflatedExplicitVRLittleEndian:
        return ""  # is known only when all is inflated
    start = file.tell()
    if file.read(2) not in PIXEL_GROUP:
        return "has no pixel data"
    if syntax is not None and syntax.is_compressed:
        return ""
    wanted = math.prod(int(dataset.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"))
    there = os.fstat(file.fileno()).st_size - start
    wanted = wanted * int(dataset.get("BitsAllocated") or 8) // 8
    return f"is truncated: has {there:,} bytes of pixel data, needs {wanted:,}" if there < wanted else ""
