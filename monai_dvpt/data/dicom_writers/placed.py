# SPDX-License-Identifier: Apache-2.0
"""What a model found, placed once for all writers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.utils import InputError

__all__ = ["Model", "Placed", "place"]


@dataclass(frozen=True)
class Model:
    """
    Whose result it is.

    Attributes:
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        segments: description of each label value, see :func:`segment_codes`.
    """

    algorithm_name: str
    algorithm_version: str
    segments: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """
    What a model found in a series; of it each writer takes what it writes.

    Attributes:
        labels: label values on the frames of the source, (n, rows, columns), 0 is background; uint8 or uint16.
        probability: of the labels, in [0, 1], (n, rows, columns, labels).
        image: grey values of the source, (n, rows, columns), float32.
        window: grey values that are shown black and white.
        volumes_ml: millilitres by name of label.
        grades: by output its "grade" and "confidence" (the probability of that grade), as of
            :func:`monai_dvpt.handlers.grade_writer.grades_of`.
        picture: of the result, RGB, uint8, (rows, columns, 3).
        segmentation: file of a DICOM SEG of the labels, to which a report of volumes then refers.
        corrected: whether a person had a part in the labels.
    """

    labels: Any = None
    probability: Any = None
    image: Any = None
    window: tuple[float, float] = (0.0, 1.0)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    grades: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    picture: Any = None
    segmentation: str | os.PathLike | None = None
    corrected: bool = False


def place(
    source: SeriesGrid,
    model: Model,
    affine_ras: np.ndarray,
    label: np.ndarray,
    probability: np.ndarray | None = None,
    image: np.ndarray | None = None,
    **others: Any,
) -> Placed:
    """
    Places a result on the frames of its source, see :meth:`monai_dvpt.data.SeriesGrid.place`.

    Args:
        source: what it is about.
        model: whose labels they are.
        affine_ras: 4x4 matrix from voxels to patient coordinates (RAS, mm).
        label: label values of shape (x, y, z), 0 is background.
        probability: in [0, 1], of shape (classes, x, y, z) without background: the first is label value 1.
        image: grey values of shape (x, y, z); the 1st to the 99th percentile are shown.
        others: attributes of the result that are not placed.

    Raises:
        InputError: if it does not lie on the frames, a label value is not a whole number or not described, or a
            probability is outside [0, 1].
        ValueError: if the probability has another number of classes.
    """
    label = np.asarray(label)
    if found := set(np.unique(label).tolist()) - {0, *model.segments}:
        raise InputError(f"label values must be 0 or one of {sorted(model.segments)}, got {sorted(found)[:5]}.")
    label = label.astype(np.uint8 if max(model.segments) < 256 else np.uint16)
    if probability is not None:
        probability = np.asarray(probability, dtype=np.float32)
        if probability.ndim != 4 or len(probability) != len(model.segments):
            raise ValueError(f"probability must have shape ({len(model.segments)}, x, y, z), got {probability.shape}.")
        low, high = float(probability.min()), float(probability.max())
        if not 0 <= low <= high <= 1:
            raise InputError(f"probabilities must be in [0, 1], got {low} to {high}.")
        others["probability"] = np.stack([source.place(each, affine_ras) for each in probability], axis=-1)
    if image is not None:
        image = np.asarray(image, dtype=np.float32)
        others |= {"image": source.place(image, affine_ras), "window": tuple(np.percentile(image, (1, 99)))}
    return Placed(source.place(label, affine_ras), **others)
