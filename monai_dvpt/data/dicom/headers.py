# SPDX-License-Identifier: Apache-2.0
"""The header of one DICOM file and of its frames, without anything that names a patient."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from monai_dvpt.data.kinds import is_regular
from monai_dvpt.utils import InputError, naming
from monai_dvpt.utils.limits import MAX_FRAMES

from .limited import LimitedFile, refusal
from .privacy import identifiers_of, names_patient
from .terms import MODALITIES, PHOTOMETRIC, number_text, term, uid_text

__all__ = ["TIME_KEYS", "VARYING", "DicomFile", "Frame", "quiet_pydicom", "read_header"]

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
"""What can tell frames at one position apart, the most telling first: keywords in files of one or many frames."""
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"),
    *("Modality", "SeriesDescription", "SeriesNumber", "LossyImageCompression"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept"),
    *(*(names[0] for names in TIME_KEYS.values()), *GROUPS),
)
TAGS: list[Any] = [Tag(keyword) for keyword in KEYWORDS]
VARYING = ("TriggerTime", "AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
"""The ``TIME_KEYS`` that may differ between slices of one volume."""
LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
"""Transfer syntaxes with loss: JPEG baseline and extended, and near-lossless JPEG-LS."""
PIXEL_GROUP = (b"\xe0\x7f", b"\x7f\xe0")
"""Group of the tags of pixel data, in both byte orders."""


@dataclass(frozen=True)
class Frame:
    """
    One frame of a file.

    Attributes:
        number: from 1, as the standard counts.
        position_lps: patient coordinates of the centre of the first pixel in mm, or None.
        orientation_lps: unit vectors along a row and along a column, of shape (2, 3), or None.
        orientation_stated: the six numbers as the header has them, which a result repeats.
        spacing_mm: distance between columns and between rows, or None.
        thickness_mm: of the slice; 0 if it is not stated.
        slope, intercept: of the stored values, or None.
        stack: identifier of the stack in a multi-frame file.
        times: value by key of ``TIME_KEYS``: a number, a text or, for several values, a tuple of texts.
    """

    number: int
    position_lps: tuple[float, ...] | None
    orientation_lps: tuple[tuple[float, ...], ...] | None
    orientation_stated: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float
    slope: float | None
    intercept: float | None
    stack: str = field(repr=False)
    times: dict[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True)
class DicomFile:
    """
    One DICOM object. A text is empty, and the number of the series 0, if the header does not state it.

    Attributes:
        patient: tells patients apart within this process, and says nothing about them.
        size: columns and rows, or None if it is no image.
        samples: values per pixel.
        problem: why its pixels cannot be read; empty if no reason is known.
        frames: none if it is no image.
        lossy: whether its pixels were compressed with loss.
        identifiers: words that would name the patient, see :func:`identifiers_of`.
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
    lossy: bool
    identifiers: frozenset[tuple[str, bool]] = field(repr=False)

    @property
    def label(self) -> str:
        """The folder and name of the file, or a text without them if they name the patient."""
        text = f"{self.path.parent.name}/{self.path.name}"
        return "one of its files" if names_patient(text, self.identifiers) else text


class _Quiet:
    """State of :func:`quiet_pydicom`: what it changes is of the whole process, so the last thread restores it."""

    def __init__(self) -> None:
        self.lock, self.inside, self.restore = Lock(), 0, ExitStack()

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside > 1:
                return
            logger = logging.getLogger("pydicom")
            self.restore.callback(logger.setLevel, logger.level)
            self.restore.enter_context(warnings.catch_warnings())
            self.restore.enter_context(config.disable_value_validation())
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL + 1)  # its decoders log, too

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.restore.close()


_quiet = _Quiet()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """
    Context in which pydicom does not check, log or warn of values, since they could name a patient. Contexts may be
    nested, and be of several threads: pydicom is quiet until the last of them ends.
    """
    _quiet.enter()
    try:
        yield
    finally:
        _quiet.leave()


def read_header(path: str | os.PathLike) -> DicomFile:
    """
    Reads the header of a DICOM file, with or without preamble (PS3.10).

    Raises:
        InputError: if it cannot be read as DICOM, or states an impossible value.
    """
    path = Path(path)
    with naming(path.name):
        try:
            if os.path.exists(path) and not is_regular(path):
                raise InputError("must be a regular file that can be opened.")
            with quiet_pydicom(), LimitedFile(path) as file:
                dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)
                if not _sop_class(dataset) and "SOPInstanceUID" not in dataset:
                    raise InputError("must be a DICOM object, has no SOPClassUID.")
                return _describe(path, dataset, _pixel_problem(file, dataset))
        except Exception as error:  # damaged files raise whatever their bytes lead to
            if (refused := refusal(error)) is not None:
                raise refused from None
            deep = isinstance(error, RecursionError)
            why = "sequences are nested too deeply" if deep else type(error).__name__
            if isinstance(error, OSError) and error.errno:
                why += f", {os.strerror(error.errno)}"
            raise InputError(f"cannot be read: {why}.") from error


def _describe(path: Path, dataset: Dataset, problem: str) -> DicomFile:
    size, count = None, 0
    if "Rows" in dataset and "Columns" in dataset:
        size = (_whole(dataset, "Columns"), _whole(dataset, "Rows"))
        count = _whole(dataset, "NumberOfFrames") if dataset.get("NumberOfFrames") else 1
        if count > MAX_FRAMES:
            raise InputError(f"NumberOfFrames must be at most {MAX_FRAMES:,}, got {count:,}.")
    elif not (name := UID(_sop_class(dataset)).name) or "Image Storage" in name:
        raise InputError("must have Rows and Columns, as an image, or say that it is something else.")
    identifiers, description = identifiers_of(dataset), _text(dataset, "SeriesDescription")
    return DicomFile(
        path=path,
        sop_class=_sop_class(dataset),
        sop_uid=_uid(dataset, "SOPInstanceUID"),
        study_uid=_uid(dataset, "StudyInstanceUID"),
        series_uid=_uid(dataset, "SeriesInstanceUID"),
        frame_of_reference=_uid(dataset, "FrameOfReferenceUID"),
        patient=hash((_text(dataset, "PatientID"), _text(dataset, "PatientName"))),
        modality=term(_text(dataset, "Modality"), MODALITIES),
        description="(names the patient)" if names_patient(description, identifiers) else description,
        series_number=int(_scalar("SeriesNumber", dataset.get("SeriesNumber")) or 0),
        size=size,
        photometric=term(_text(dataset, "PhotometricInterpretation"), PHOTOMETRIC),
        samples=int(_scalar("SamplesPerPixel", dataset.get("SamplesPerPixel")) or 1),
        problem=problem,
        frames=tuple(_frames(dataset, count)),
        lossy=_text(dataset, "LossyImageCompression") == "01" or _syntax(dataset) in LOSSY,
        identifiers=identifiers,
    )


def _frames(dataset: Dataset, count: int) -> list[Frame]:
    shared, each = ([*(dataset.get(name) or [])] for name in GROUPS)
    if each and len(each) != count:
        raise InputError(f"must describe each of its {count} frames, describes {len(each)}.")
    if not each and not shared and count > 1:
        each, dataset = [Dataset()] * count, Dataset()  # no value is said to apply to every frame
    frames = []
    for index in range(count):
        levels = [*each[index : index + 1], *shared[:1], dataset]
        stack = _find(levels, "FrameContentSequence.StackID")
        position = _find(levels, "PlanePositionSequence.ImagePositionPatient", "ImagePositionPatient")
        stated = _find(levels, "PlaneOrientationSequence.ImageOrientationPatient", "ImageOrientationPatient")
        orientation = _vector("ImageOrientationPatient", stated, 6)
        spacing = _find(levels, "PixelMeasuresSequence.PixelSpacing", "PixelSpacing")
        slope = _find(levels, "PixelValueTransformationSequence.RescaleSlope", "RescaleSlope")
        intercept = _find(levels, "PixelValueTransformationSequence.RescaleIntercept", "RescaleIntercept")
        times = {key: _find(levels, *reversed(names)) for key, names in TIME_KEYS.items()}
        frames.append(
            Frame(
                index + 1,
                _vector("ImagePositionPatient", position, 3),
                _directions(orientation),
                orientation,
                _spacing(_vector("PixelSpacing", spacing, 2)),
                _thickness(levels),
                _scalar("RescaleSlope", slope),
                _scalar("RescaleIntercept", intercept),
                str(stack or ""),
                {key: _comparable(value) for key, value in times.items() if value is not None},
            )
        )
    return frames


def _find(levels: Sequence[Dataset], *names: str) -> Any:
    """The value of the first data set that has one of the names, each perhaps inside a sequence."""
    for dataset in levels:
        for name in names:
            sequence, tag = _tags(name)
            holder = dataset if sequence is None else next(iter(_value(dataset, sequence) or []), None)
            value = None if holder is None else _value(holder, tag)
            if value is not None and value != "":
                return value
    return None


@cache
def _tags(name: str) -> tuple[BaseTag | None, BaseTag]:
    """Of a keyword, and of the sequence before it; pydicom finds them much faster than keywords."""
    sequence, _, keyword = name.rpartition(".")
    return Tag(sequence) if sequence else None, Tag(keyword)


def _value(dataset: Dataset, tag: BaseTag) -> Any:
    return dataset[tag].value if tag in dataset else None


def _comparable(value: Any) -> Any:
    """A number, a text or texts that can be compared; never to be shown as they are."""
    if isinstance(value, (int, float)):
        return round(float(value), 2)  # of milliseconds, say, the rest is rounding
    return str(value) if isinstance(value, str) or not hasattr(value, "__len__") else tuple(map(str, value))


def _vector(name: str, value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    try:
        numbers = tuple(float(entry) for entry in value)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} must have {count} finite numbers, got {number_text(value)}.")
    return numbers


def _directions(numbers: tuple[float, ...] | None) -> tuple[tuple[float, ...], ...] | None:
    if numbers is None:
        return None
    vectors = np.reshape(numbers, (2, 3))
    lengths = np.linalg.norm(vectors, axis=1)
    if (abs(lengths - 1) > 0.01).any() or abs(vectors[0] @ vectors[1]) > 1e-3:
        raise InputError(f"ImageOrientationPatient must be two perpendicular unit vectors, got {number_text(numbers)}.")
    return tuple(map(tuple, (vectors / lengths[:, None]).tolist()))


def _spacing(numbers: tuple[float, ...] | None) -> tuple[float, float] | None:
    if numbers is None:
        return None
    if min(numbers) <= 0:
        raise InputError(f"PixelSpacing must be above 0, got {number_text(numbers)}.")
    return numbers[1], numbers[0]  # the standard has rows first


def _thickness(levels: Sequence[Dataset]) -> float:
    try:
        thickness = float(_find(levels, "PixelMeasuresSequence.SliceThickness", "SliceThickness"))
    except Exception:  # absent, or damaged: nothing is placed by it
        return 0.0
    return thickness if math.isfinite(thickness) else 0.0


def _scalar(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or name == "RescaleSlope" and number == 0:
        rule = "a finite number other than 0" if name == "RescaleSlope" else "a finite number"
        raise InputError(f"{name} must be {rule}, got {number_text(value)}.")
    return number


def _whole(dataset: Dataset, name: str) -> int:
    number = _scalar(name, dataset.get(name))
    if number is None or number < 1 or number != int(number):
        raise InputError(f"{name} must be a whole number of at least 1, got {number_text(dataset.get(name))}.")
    return int(number)


def _syntax(dataset: Dataset) -> Any:
    return getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")


def _bits_problem(dataset: Dataset) -> str:
    """Why the standard does not have such bits of a pixel. An InputError if one is no number."""
    names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration")
    numbers = [_scalar(name, dataset.get(name)) for name in names]
    allocated, stored, high, signed, planar = numbers
    if stored is not None and high is not None and high != stored - 1:
        return f"must have a HighBit of one less than its BitsStored {stored:g}, has {high:g}"
    if stored is not None and allocated is not None and not 1 <= stored <= allocated:
        return f"must have a BitsStored of 1 to its BitsAllocated {allocated:g}, has {stored:g}"
    if signed not in (None, 0, 1) or planar not in (None, 0, 1):
        return "must have a PixelRepresentation and a PlanarConfiguration of 0 or 1"
    return ""


def _sop_class(dataset: Dataset) -> str:
    """The SOP Class UID; a DICOMDIR, whatever its file is called, states it in its file meta information alone."""
    stored = _text(getattr(dataset, "file_meta", Dataset()), "MediaStorageSOPClassUID")
    return stored if stored == MediaStorageDirectoryStorage else _uid(dataset, "SOPClassUID")


def _text(dataset: Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _uid(dataset: Dataset, name: str) -> str:
    text = _text(dataset, name)
    if not re.fullmatch(r"[\d.]*", text):
        raise InputError(f"{name} must be of digits and points, as a UID, and is not.")
    return text


def _pixel_problem(file: LimitedFile, dataset: Dataset) -> str:
    """Why the pixels cannot be complete, or nothing; the file is read up to the end of the header."""
    syntax, start = _syntax(dataset), file.tell()
    if (deflated := syntax == DeflatedExplicitVRLittleEndian) is False and file.read(2) not in PIXEL_GROUP:
        return "has no pixel data"
    if syntax is not None and UID(syntax).type != "Transfer Syntax":
        return f"has the transfer syntax {uid_text(syntax)}, which the standard does not define"
    if problem := _bits_problem(dataset):
        return problem
    if deflated or syntax is not None and syntax.is_compressed:
        return ""  # only decoding tells
    wanted = math.prod(int(dataset.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"))
    implicit = syntax is None or syntax.is_implicit_VR
    there = file.size - start - (8 if implicit else 12)  # tag, perhaps VR, and length
    wanted = wanted * int(dataset.get("BitsAllocated") or 8) // 8
    return f"is truncated: has {there:,} bytes of pixel data, needs {wanted:,}" if there < wanted else ""
