# SPDX-License-Identifier: Apache-2.0
"""Images of nearly the size that a network takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResizeWithPadOrCrop, Transform

from monai_dvpt.utils import InputError

__all__ = ["FitSize", "FitSized"]


class FitSize(Transform):
    """
    Pads or crops an image about its centre to the size that a network takes. It refuses an image that would lose more
    than a margin, since a network that sees only a part of an image gives a wrong result without a warning. Padding
    mirrors the image, so that a network cannot read the grade off the size of the image.

    Args:
        spatial_size: voxels per axis.
        largest: largest size per axis that is cropped, in voxels.

    Raises:
        ValueError: if the two differ in length, or ``largest`` is below ``spatial_size``.
    """

    def __init__(self, spatial_size: Sequence[int], largest: Sequence[int]) -> None:
        if len(spatial_size) != len(largest) or any(a > b for a, b in zip(spatial_size, largest, strict=True)):
            raise ValueError(f"largest must be at least spatial_size={list(spatial_size)}, got {list(largest)}.")
        self.largest = list(largest)
        self.fit = ResizeWithPadOrCrop(spatial_size, mode="symmetric")

    def __call__(self, image: MetaTensor) -> torch.Tensor:
        """
        Args:
            image: of shape (channels, *spatial).

        Returns:
            the image, of shape ``(channels, *spatial_size)``.

        Raises:
            InputError: if an axis is longer than ``largest``.
        """
        sides = list(image.shape[1:])
        if any(side > most for side, most in zip(sides, self.largest, strict=True)):
            name = image.meta.get("filename_or_obj", "image")
            raise InputError(
                f"{name}: must be cropped to what is graded, at most {self.largest} voxels after resampling, "
                f"got {sides}."
            )
        return self.fit(image)


class FitSized(MapTransform):
    """
    Dictionary version of :class:`FitSize`; ``keys`` are those of the images.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        largest: Sequence[int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.fit = FitSize(spatial_size, largest)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.fit(data[key]) for key in self.key_iterator(dict(data))}}
