# SPDX-License-Identifier: Apache-2.0
"""The labelled images of a datastore, checked and with the values of a model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.transforms import LoadVolume
from monai_dvpt.utils import InputError, reason

from .dicom_labels import read_label_file
from .labels import ModelLabels, to_model_values

__all__ = ["labelled_cases", "split_cases"]

logger = logging.getLogger(__name__)

Case = dict[str, str]


def labelled_cases(datastore: Datastore, labels: ModelLabels, folder: Path) -> tuple[list[Case], dict[str, str]]:
    """
    The images with a final label. Of each label a copy is written with the values that the model has for its names,
    whatever numbers a viewer gave them.

    Args:
        datastore: of MONAI Label.
        labels: of the model.
        folder: for the copies.

    Returns:
        the cases, each with "name", "image" and "label"; and why others were left out, by name: an image or a label
        that cannot be read or placed, a label beside its image, or one that the model does not have.
    """
    cases, left_out = [], {}
    for entry in datastore.datalist():
        if not entry:
            continue
        name = datastore._to_id(os.path.basename(entry["image"]))[0]
        info = datastore.get_label_info(name, DefaultLabelTag.FINAL) or {}
        try:
            cases.append(_case(name, entry, info.get("label_info"), labels, folder))
        except Exception as error:  # one bad label costs one case, not the training
            left_out[name] = reason(error)
            logger.warning(f"{name}: left out: {left_out[name]}")
    return sorted(cases, key=lambda case: case["name"]), left_out


def split_cases(cases: Sequence[Case], share: float, trained_on: Container[str] = ()) -> tuple[list[Case], list[Case]]:
    """
    Training and validation cases. Where a case belongs is drawn from its name, so that it mostly stays there when
    others are added; of several cases at least one is in each part.

    Args:
        cases: with a "name".
        share: of the cases that validate, in [0, 1).
        trained_on: names of cases that adapters to be compared were trained on, and which therefore do not validate.

    Returns:
        the training and the validation cases; without a share, with one case, or where all were trained on, none
        validates.

    Raises:
        InputError: if ``share`` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"val_split must be in [0, 1), got {share}.")
    count = min(max(round(share * len(cases)), 1), len(cases) - 1) if share else 0
    unseen = sorted((case for case in cases if case["name"] not in trained_on), key=lambda case: _place(case["name"]))
    validation = unseen[:count]
    return [case for case in cases if case not in validation], validation


def _place(name: str) -> float:
    """A number in [0, 1) that is always the same for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _case(name: str, entry: Case, label_info: Any, labels: ModelLabels, folder: Path) -> Case:
    image = LoadVolume()(entry["image"])
    affine = image.affine.numpy()
    label = read_label_file(entry["label"], tuple(image.shape[1:]), affine)
    values = to_model_values(label, label_info, labels)
    if not values.any():
        raise InputError(f"{entry['label']}: must have a label, got background alone.")
    copy = save_nifti(folder / f"{name}.nii.gz", values, affine, scanner=True)
    return {"name": name, "image": entry["image"], "label": str(copy)}
