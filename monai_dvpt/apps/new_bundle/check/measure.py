# SPDX-License-Identifier: Apache-2.0
"""Reads every case of a folder of data once, and keeps what a plan and the rules need."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_dvpt.data import DicomSeriesReader
from monai_dvpt.transforms import LoadImage2D, LoadVolume
from monai_dvpt.utils import InputError, reason

from ..model import IGNORED, Case, Collection, Finding, Measurement

__all__ = ["load_image", "measure_cases", "shown"]

MAX_SAMPLED = 1 << 20
"""The most values of an image that its percentiles are taken of."""
PERCENTILES = (0.5, 50, 99.5)


def load_image(
    case: Case, spatial_dims: int, channels: Sequence[str] = (), file_channels: Sequence[str] = ()
) -> MetaTensor:
    """The image of a case, of shape (channels, x, y, z), or (3, rows, columns), as a bundle loads it."""
    if spatial_dims == 2:
        return LoadImage2D(channels=3)(str(case.image))
    reader = DicomSeriesReader(known=case.series)
    return LoadVolume(dicom_reader=reader, channels=channels, file_channels=file_channels)(case.image)


def measure_cases(collection: Collection, progress: Any = iter) -> tuple[list[Measurement | None], list[Finding]]:
    """
    Args:
        collection: the cases.
        progress: wraps the iterator of the cases, such as in a bar.

    Returns:
        what was measured of each case, None of one that cannot be read or whose label does not fit; and a finding for
        each of these.
    """
    findings = []

    def attempt(case: Case) -> Measurement | Finding:
        try:
            return _measure(case, collection)
        except InputError as error:
            return Finding("cannot be read", case.name, shown(error, collection), error=True)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(progress(pool.map(attempt, collection.cases)))
    measured: list[Measurement | None] = []
    for result in results:
        measured.append(result if isinstance(result, Measurement) else None)
        if isinstance(result, Finding):
            findings.append(result)
    return measured, findings


def shown(error: InputError, collection: Collection) -> str:
    """The message of an error, with paths below the folder of data."""
    text = reason(error)
    for root in {f"{collection.root}{os.sep}", f"{os.path.abspath(collection.root)}{os.sep}"}:
        text = text.replace(root, "")
    return text


def _measure(case: Case, collection: Collection) -> Measurement:
    image = load_image(case, collection.spatial_dims, collection.channels, collection.file_channels)
    label, names = case.read_label(image) if case.read_label is not None else (None, {})
    spacing = None
    if collection.spatial_dims == 3:
        if label is not None:
            label = np.asarray(_oriented(MetaTensor(label[None], affine=image.affine))[0])
        image = _oriented(image)
        spacing = tuple(float(side) for side in image.pixdim)
    values = np.ascontiguousarray(image.numpy(), dtype=np.float32)
    if collection.spatial_dims == 2 and np.array_equal(values[0], values[1]) and np.array_equal(values[1], values[2]):
        values = values[:1]  # grey
    if collection.spatial_dims == 2 or len(values) == 1:
        return _measure_values(values, spacing, label, names)
    by_channel = tuple(_measure_values(values[[number]], spacing, label, names) for number in range(len(values)))
    return replace(
        by_channel[0],
        channels=len(values),
        content=_hash(values, values.shape),
        by_channel=by_channel,
        resampled_channels=tuple(image.meta.get("resampled_channels", ())),
        covered_channels=tuple(image.meta.get("covered_channels", ())),
    )


def _measure_values(
    values: np.ndarray, spacing: tuple[float, ...] | None, label: np.ndarray | None, names: dict[int, str]
) -> Measurement:
    """What was measured of an image; its statistics are of the values of all channels."""
    sampled = _sample(values.ravel())
    foreground = None
    voxels: dict[str, int] = {}
    alone: tuple[float, ...] = ()
    centres: dict[str, tuple[float, ...]] = {}
    if label is not None:
        centres = _centres(label, names, spacing or (1.0,) * label.ndim)
        voxels = _voxels(label, names)
        inside = np.isin(label, [value for value, name in names.items() if name != IGNORED])
        foreground = _sample(values[:, inside].ravel()) if inside.any() else None
        alone = tuple(_alone(inside, axis) for axis in range(inside.ndim))
    described = sampled if foreground is None else foreground
    low, high = float(values.min()), float(values.max())
    return Measurement(
        size=tuple(values.shape[1:]),
        spacing_mm=spacing,
        channels=len(values),
        range=(low, high),
        percentiles=_percentiles(sampled),
        foreground=None if foreground is None else _percentiles(foreground),
        mean=float(described.mean(dtype=np.float64)),
        std=float(described.std(dtype=np.float64)),
        zeros=float((sampled == low).mean()),
        voxels=voxels,
        content=_hash(values, values.shape),
        label_content="" if label is None else _hash(label.astype(np.uint16), sorted(names.items())),
        alone=alone,
        centres=centres,
    )


def _centres(label: np.ndarray, names: dict[int, str], spacing: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """The middle of each named label that is there, from a share of the voxels where there are many."""
    if len({*names.values()} - {IGNORED}) < 2:
        return {}
    step = max(1, math.ceil((label.size / MAX_SAMPLED) ** (1 / label.ndim)))
    few = label[(slice(None, None, step),) * label.ndim]
    found = {}
    for name in {*names.values()} - {IGNORED}:
        inside = np.isin(few, [value for value, other in names.items() if other == name])
        if inside.any():
            found[name] = tuple(float(at.mean() * step * mm) for at, mm in zip(inside.nonzero(), spacing, strict=True))
    return found


def _alone(inside: np.ndarray, axis: int) -> float:
    """Share of the planes with labels along an axis that have none beside them; 0 of fewer than three."""
    planes = inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis))
    beside = np.pad(planes, 1)
    beside = beside[2:] | beside[:-2]
    return float((planes & ~beside).sum() / count) if (count := planes.sum()) >= 3 else 0.0


def _hash(values: np.ndarray, facts: Any) -> str:
    return hashlib.sha256(str(facts).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


def _oriented(image: MetaTensor) -> MetaTensor:
    return Orientation("RAS", labels=None)(image)  # type: ignore[return-value]


def _sample(values: np.ndarray) -> np.ndarray:
    """Evenly spaced values, at most ``MAX_SAMPLED``."""
    return values[:: 1 + (values.size - 1) // MAX_SAMPLED]


def _percentiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, PERCENTILES).tolist()
    return low, middle, high


def _voxels(label: np.ndarray, names: dict[int, str]) -> dict[str, int]:
    """Voxels of each named label; several values may share a name."""
    if label.dtype == np.uint8:  # without sorting
        counts = np.bincount(label.ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(label, return_counts=True)
    voxels = dict.fromkeys(names.values(), 0)
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        if value in names:
            voxels[names[value]] += count
        elif value:
            raise InputError(f"every value of the label must have a name, got {value} without one.")
    return voxels
