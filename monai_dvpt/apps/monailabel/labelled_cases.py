# SPDX-License-Identifier: Apache-2.0
"""The labelled images of a datastore, checked, with the label values of a model."""

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
    The images with a final label. Copies each label into ``folder``, with the model's values for its names.

    Returns:
        the cases, each with "name", "image" and "label"; and, by name, why others were left out: an image or a label
        cannot be read or placed, the label does not lie on its image, or the model lacks it.
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
    Training and validation cases. A hash of its name places a case, so that it mostly stays there as others are added.

    Args:
        cases: each with a "name".
        share: share of the cases that validate, in [0, 1); at least one validates, if there are several.
        trained_on: names of cases that the compared adapters were trained on; these do not validate.

    Returns:
        the training and the validation cases; none validates without a share, of one case, or if all were trained on.

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
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _case(name: str, entry: Case, label_info: Any, labels: ModelLabels, folder: Path) -> Case:
    image = LoadVolume()(entry["image"])
    affine = image.affine.numpy()
    label = read_label_file(entry["label"], tuple(image.shape[1:]), affine)
    values = to_model_values(label, label_info, labels)
    if not values.any():
        raise InputError(f"{entry['label']}: must have a label, got only background.")
    copy = save_nifti(folder / f"{name}.nii.gz", values, affine, scanner=True)
    return {"name": name, "image": entry["image"], "label": str(copy)}
