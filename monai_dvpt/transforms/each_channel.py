# SPDX-License-Identifier: Apache-2.0
"""A transform of its own for each channel."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

__all__ = ["EachChannel", "EachChanneld"]


class EachChannel(Transform):
    """
    Applies to each channel of an image its own transform of intensities, such as a window for CT beside a z-score for
    PET.

    Args:
        transforms: one for each channel; each takes and returns a tensor of shape (1, \\*spatial).
    """

    def __init__(self, transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape (channels, \\*spatial).

        Raises:
            ValueError: if the image has not as many channels as there are transforms.
        """
        if len(image) != len(self.transforms):
            raise ValueError(f"image must have {len(self.transforms)} channels, got {len(image)}.")
        changed = image.clone()
        for number, transform in enumerate(self.transforms):
            changed[number] = torch.as_tensor(transform(image[number : number + 1]))[0]
        return changed


class EachChanneld(MapTransform):
    """
    Dictionary version of :class:`EachChannel`; ``keys`` are those of the images.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transforms: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.each = EachChannel(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.each(data[key]) for key in self.key_iterator(dict(data))}}
