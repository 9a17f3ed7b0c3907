# SPDX-License-Identifier: Apache-2.0
"""Pictures of results as Secondary Capture (DICOM PS3.3 A.8), which every viewer shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from pydicom.uid import ExplicitVRLittleEndian, MultiFrameTrueColorSecondaryCaptureImageStorage
from scipy.ndimage import binary_erosion

from monai_dvpt.data.dicom import SeriesGrid

from .codes import label_colour
from .document import Model, Placed, document, image_items, require_highdicom, save_document

__all__ = ["write_secondary_capture"]

SERIES_NUMBER = 9004
FILL = 0.45  # opacity of a label inside its outline


def write_secondary_capture(path: PathLike, placed: Placed, source: SeriesGrid, model: Model) -> Path:
    """
    Writes the picture of a result, such as a graded image. Without one, it draws the labels in their colours over the
    frames that contain labels, or over the middle frame if none does, as one multi-frame picture.

    Raises:
        ValueError: if the picture is not RGB in uint8.
    """
    shown, picture = list(range(len(source.frames))), placed.picture
    if picture is None:
        shown = np.flatnonzero(placed.labels.any(axis=(1, 2))).tolist() or [len(placed.labels) // 2]
        pictures = _overlay(placed, shown, model)
    elif picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        pictures = picture[None]
    else:
        raise ValueError(f"picture must be uint8 of shape (rows, columns, 3), got {picture.dtype} {picture.shape}.")
    dataset = require_highdicom().base.SOPClass(
        source.first.StudyInstanceUID,
        sop_class_uid=MultiFrameTrueColorSecondaryCaptureImageStorage,
        modality="OT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **document(model, "Overlay" if picture is None else "Picture", SERIES_NUMBER),
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
    # the text of a picture may name the case
    burned_in = any(image.get("BurnedInAnnotation") == "YES" for image, _ in source.references(shown))
    dataset.BurnedInAnnotation = "YES" if burned_in or picture is not None else "NO"
    dataset.SourceImageSequence = image_items(source, shown)
    dataset.PixelData = pictures.tobytes()
    return save_document(dataset, source, path)


def _overlay(placed: Placed, shown: Sequence[int], model: Model) -> np.ndarray:
    """Pictures of these frames, uint8, of shape (frames, rows, columns, 3)."""
    low, high = placed.window
    grey = np.clip((placed.image[shown] - low) / max(high - low, 1e-6), 0, 1)
    colours = {value: label_colour(value, segment) for value, segment in model.segments.items()}
    return np.stack([_draw(g, placed.labels[index], colours) for g, index in zip(grey, shown, strict=True)])


def _draw(grey: np.ndarray, labels: np.ndarray, colours: Mapping[int, Sequence[int]]) -> np.ndarray:
    """RGB picture, uint8, of shape (rows, columns, 3), of grey values in [0, 1]."""
    picture = np.repeat(grey[..., None] * 255, 3, axis=-1)  # (rows, columns, 3)
    for value, colour in colours.items():
        mask = labels == value
        opacity = np.where(binary_erosion(mask), FILL, 1.0)[mask][:, None]
        picture[mask] = opacity * np.array(colour) + (1 - opacity) * picture[mask]
    return np.rint(picture).astype(np.uint8)
