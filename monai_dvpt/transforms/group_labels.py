# SPDX-License-Identifier: Apache-2.0
"""Label values of a file grouped into the classes of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LabelFilter, MapLabelValue, MapTransform, Transform

__all__ = ["GroupLabels", "GroupLabelsd"]


class GroupLabels(Transform):
    """
    Turns groups of label values into 1, 2, ... in the order of the groups, and every other value into 0, background.

    Args:
        groups: the label values of each class, by the name of the class.

    Raises:
        ValueError: if a group is no list of whole numbers of at least 1, or two groups share a value.

    Examples::

        >>> GroupLabels({"kidney": [2, 3], "liver": [5]})(torch.tensor([[0, 2, 3, 4, 5]])).tolist()
        [[0, 1, 1, 0, 2]]

    """

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        owner: dict[int, str] = {}
        for name, values in groups.items():
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ValueError(f"groups must have a list of label values for {name}, got {values!r}.")
            for value in values:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise ValueError(f"groups must have whole numbers of at least 1 for {name}, got {value!r}.")
                if value in owner:
                    raise ValueError(f"groups must have each value once, got {value} for {owner[value]} and {name}.")
                owner[value] = name
        index = {name: number for number, name in enumerate(groups, 1)}
        self.keep = LabelFilter(list(owner))
        self.number = MapLabelValue(list(owner), [index[name] for name in owner.values()], dtype=np.int64)

    def __call__(self, label: torch.Tensor | MetaTensor) -> torch.Tensor | MetaTensor:
        """
        Args:
            label: label values of any shape.
        """
        return self.number(self.keep(label))


class GroupLabelsd(MapTransform):
    """
    Dictionary version of :class:`GroupLabels`; ``keys`` are those of the label maps.
    """

    def __init__(self, keys: KeysCollection, groups: Mapping[str, Sequence[int]]) -> None:
        super().__init__(keys)
        self.group = GroupLabels(groups)

    def __call__(self, data: Mapping) -> dict:
        return {**data, **{key: self.group(data[key]) for key in self.key_iterator(data)}}
