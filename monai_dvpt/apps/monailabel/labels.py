# SPDX-License-Identifier: Apache-2.0
"""What the values of a label map mean: names decide, never the order in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_dvpt.data.dicom_writers import Model
from monai_dvpt.utils import InputError

__all__ = ["ModelLabels", "labels_in_file", "to_model_values"]


@dataclass(frozen=True)
class ModelLabels(Model):
    """
    A model and its labels.

    Attributes:
        names: names of the classes in the order of their values, background first.
    """

    names: tuple[str, ...] = ()

    @property
    def label_info(self) -> list[dict[str, Any]]:
        """The labels, without background, as a viewer describes segments."""
        return [{"name": name, "idx": value} for value, name in enumerate(self.names) if value]

    def value_of(self, name: str) -> int | None:
        """The value of a label by its :func:`plain` name; None if the model lacks it."""
        return {plain(known): value for value, known in enumerate(self.names)}.get(plain(name))


def plain(name: str) -> str:
    """A name to compare by: viewers change case, spaces and underscores."""
    return "_".join(str(name).lower().replace("_", " ").split())


def labels_in_file(values: Sequence[int], label_info: Sequence[Mapping[str, Any]] | None) -> dict[int, str]:
    """
    The name of each value in a label file that a viewer saved. Viewers number the segments from 1 in the order of their
    list, whatever the model's values are: value ``v`` is the ``v``-th of the list. A list too short for that has the
    value as "idx".

    Args:
        values: the values in the file, without 0.
        label_info: the viewer's segments, each with "name"; without any, no value gets a name.

    Raises:
        InputError: if a value has no name.

    Examples::

        >>> labels_in_file([1], [{"name": "posterior", "idx": 2}])
        {1: 'posterior'}
        >>> labels_in_file([2], [{"name": "posterior", "idx": 2}])
        {2: 'posterior'}

    """
    if not label_info:
        return {}
    names = [str(info.get("name", "")) for info in label_info]
    by_position = dict(enumerate(names, start=1))
    by_index = {int(info["idx"]): name for info, name in zip(label_info, names, strict=True) if "idx" in info}
    for known in (by_position, by_index):
        if all(known.get(value) for value in values):
            return {value: known[value] for value in values}
    raise InputError(f"every label value must have a name in label_info, got values {list(values)} and names {names}.")


def to_model_values(
    label_map: np.ndarray, label_info: Sequence[Mapping[str, Any]] | None, labels: ModelLabels
) -> np.ndarray:
    """
    A viewer's label map with the values of a model, uint8 or uint16.

    Args:
        label_map: whole numbers, 0 is background.
        label_info: see :func:`labels_in_file`; without it the values are the model's already.
        labels: the model's labels.

    Raises:
        InputError: if a value is not a whole number or has no name, or the model lacks a name or value.
    """
    found = np.unique(label_map)
    if not np.isfinite(found).all() or (found != np.rint(found)).any() or found.min() < 0:
        raise InputError(f"label values must be whole numbers from 0, got {found[:5].tolist()}.")
    values = [int(value) for value in found if value]
    names = labels_in_file(values, label_info)
    known = {value: labels.value_of(names[value]) for value in values} if names else {value: value for value in values}
    count = len(labels.names)
    if bad := [names.get(value, value) for value, own in known.items() if own is None or not 0 <= own < count]:
        raise InputError(f"labels must be of the model's {list(labels.names[1:])}, got {bad}.")
    result = np.zeros(label_map.shape, np.uint8 if count <= 256 else np.uint16)
    for value, own in known.items():
        result[label_map == value] = own
    return result
