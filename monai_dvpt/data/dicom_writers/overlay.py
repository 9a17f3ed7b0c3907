# SPDX-License-Identifier: Apache-2.0
"""Pictures of results as Secondary Capture (DICOM PS3.3 A.8), for viewers that show nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameTrueColorSecondaryCaptureImageStorage
from scipy.ndimage import binary_erosion

from .codes import label_colour
from .segmentation import check_labels
from .source import Source, document, place_on_frames, read_source, require_highdicom, save_document

__all__ = ["write_overlay", "write_picture"]

SERIES_NUMBER = 9004
FILL = 0.45  # opacity of a label inside its outline


def write_overlay(
    path: PathLike,
    image: np.ndarray,
    label: np.ndarray,
    affine_ras: np.ndarray,
    frames: Sequence[Sequence[Any]],
    segments: Mapping[int, Mapping[str, Any]],
    algorithm_name: str,
    algorithm_version: str,
    series_description: str = "Overlay",
) -> Path:
    """
    Writes one multi-frame colour picture of the source's frames that hold labels, each label in its colour; of the
    middle frame where there is none.

    Args:
        path: the file.
        image: grey values of shape (x, y, z); the 1st to the 99th percentile are shown.
        label: label values of the same shape, 0 is background.
        affine_ras: 4x4 matrix from voxels to patient coordinates (RAS, mm).
        frames: ``[path, number]`` of the source's frames, one for each z, numbers from 1.
        segments: description of each label value, see :func:`segment_codes`.
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        series_description: what viewers list.

    Raises:
        InputError: if image and label map do not lie on the frames, the label map has values that are not described, or
            a file cannot be read or written.
        OptionalImportError: if highdicom is not installed.
    """
    source = read_source(frames)
    labels = place_on_frames(check_labels(label, segments), affine_ras, source)
    shown = np.flatnonzero(labels.any(axis=(1, 2))).tolist() or [len(labels) // 2]
    grey = place_on_frames(np.asarray(image, dtype=np.float32), affine_ras, source)[shown]
    low, high = np.percentile(np.asarray(image, dtype=np.float32), (1, 99))
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    colours = {value: label_colour(value, segment) for value, segment in segments.items()}
    pictures = [_draw(g, labels[index], colours) for g, index in zip(grey, shown, strict=True)]
    arguments = document(algorithm_name, algorithm_version, series_description, SERIES_NUMBER)
    return save_document(_true_color(np.stack(pictures), shown, source, arguments), source, path)


def write_picture(
    path: PathLike,
    picture: np.ndarray,
    frames: Sequence[Sequence[Any]],
    algorithm_name: str,
    algorithm_version: str,
    series_description: str = "Picture",
) -> Path:
    """
    Writes a colour picture of a result, such as a graded image, into the study of its source.

    Args:
        path: the file.
        picture: RGB, uint8, of shape (rows, columns, 3).
        frames: ``[path, number]`` of the source's frames, numbers from 1.
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        series_description: what viewers list.

    Raises:
        InputError: if a file cannot be read or written.
        OptionalImportError: if highdicom is not installed.
        ValueError: if the picture is not RGB in uint8.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture must be uint8 of shape (rows, columns, 3), got {picture.dtype} {picture.shape}.")
    source = read_source(frames)
    arguments = document(algorithm_name, algorithm_version, series_description, SERIES_NUMBER)
    dataset = _true_color(picture[None], range(len(source.paths)), source, arguments)
    dataset.BurnedInAnnotation = "YES"  # its text may name the case
    return save_document(dataset, source, path)


def _draw(grey: np.ndarray, labels: np.ndarray, colours: Mapping[int, Sequence[int]]) -> np.ndarray:
    """RGB picture, uint8, of shape (rows, columns, 3), of grey values in [0, 1]."""
    picture = np.repeat(grey[..., None] * 255, 3, axis=-1)  # (rows, columns, 3)
    for value, colour in colours.items():
        mask = labels == value
        opacity = np.where(binary_erosion(mask), FILL, 1.0)[mask][:, None]
        picture[mask] = opacity * np.array(colour) + (1 - opacity) * picture[mask]
    return np.rint(picture).astype(np.uint8)


def _true_color(pictures: np.ndarray, shown: Sequence[int], source: Source, arguments: Mapping[str, Any]) -> Any:
    """Multi-frame True Color Secondary Capture (DICOM PS3.3 A.8.5) of pictures (n, rows, columns, 3)."""
    highdicom = require_highdicom()
    dataset = highdicom.base.SOPClass(
        source.identity.StudyInstanceUID,
        sop_class_uid=MultiFrameTrueColorSecondaryCaptureImageStorage,
        modality="OT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **arguments,
    )
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation, dataset.Laterality = "", ""  # unknown
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pictures.shape[:3]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    if len(pictures) > 1:
        dataset.PageNumberVector = list(range(1, len(pictures) + 1))
        dataset.FrameIncrementPointer = dataset["PageNumberVector"].tag
    dataset.BurnedInAnnotation = "NO"
    images = source.references(shown)
    if any(image.get("BurnedInAnnotation") == "YES" for image, _ in images):
        dataset.BurnedInAnnotation = "YES"
    dataset.SourceImageSequence = [Dataset() for _ in images]
    for item, (image, numbers) in zip(dataset.SourceImageSequence, images, strict=True):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        if numbers is not None:
            item.ReferencedFrameNumber = numbers
    dataset.PixelData = pictures.tobytes()
    return dataset
