# SPDX-License-Identifier: Apache-2.0
"""How unsure a segmentation is of each voxel."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

__all__ = ["PredictiveEntropy", "PredictiveEntropyd"]


class PredictiveEntropy(Transform):
    """
    Entropy of the class probabilities of each voxel over its largest value, the logarithm of the number of classes: 0
    is sure of one class, 1 gives all classes the same probability. Probabilities that interpolation left with another
    sum are divided by it; a voxel without any is 0. Based on: "Shannon, A Mathematical Theory of Communication
    <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>".

    Examples::

        >>> PredictiveEntropy()(torch.tensor([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]))
        tensor([[1.0000, 0.0000, 0.8113]])

    """

    def __call__(self, probability: torch.Tensor) -> torch.Tensor:
        """
        Args:
            probability: at least 0, of shape (classes, ...), at least two classes.

        Returns:
            float32 in [0, 1], of shape (1, ...), with the metadata of ``probability``.

        Raises:
            ValueError: if there is one class alone.
        """
        if probability.ndim < 2 or len(probability) < 2:
            raise ValueError(f"probability must be of at least 2 classes, got shape {tuple(probability.shape)}.")
        plain = probability.as_tensor() if isinstance(probability, MetaTensor) else probability
        total = torch.zeros(plain.shape[1:], dtype=torch.float32, device=plain.device)
        entropy = torch.zeros_like(total)
        for of_class in plain:  # one class at a time: a volume of all classes may fill the memory
            total += of_class
            entropy += torch.special.entr(of_class.float())
        # of p / s, with s the sum: log(s) + (sum of -p log p) / s
        entropy = entropy.div_(total).add_(total.log()).div_(math.log(len(plain)))
        found = torch.where(total > 0, entropy, 0.0).clamp_(0, 1)[None]
        return MetaTensor(found).copy_meta_from(probability) if isinstance(probability, MetaTensor) else found


class PredictiveEntropyd(MapTransform):
    """
    Dictionary version of :class:`PredictiveEntropy`; adds the entry "uncertainty".

    Raises:
        ValueError: if ``keys`` is more than one key, that of the probabilities.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        if len(self.keys) > 1:
            raise ValueError(f"keys must be one key, got {self.keys}.")
        self.entropy = PredictiveEntropy()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d["uncertainty"] = self.entropy(d[key])
        return d
