# SPDX-License-Identifier: Apache-2.0
"""Colour photographs of the fundus, a bright disc on black, of one size and one illumination."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import BorderPad, GaussianSmooth, MapTransform, SpatialCrop, Transform

from monai_dvpt.utils import InputError

__all__ = ["BenGraham", "BenGrahamd", "CropToDisc", "CropToDiscd"]

DARK = 0.1
"""Rows and columns that are darker than this share of the whole image's mean are not of the disc."""
MARGIN = 0.01
SMOOTHING, CONTRAST, GREY, KEPT = 1 / 30, 4.0, 0.5, 0.9


class CropToDisc(Transform):
    """
    Crops a photograph of the fundus to the disc: to the first and last row and column whose mean is at least a tenth of
    the mean of the whole image, the rule by which Graham (see :class:`BenGraham`) finds the radius. It adds a black
    margin of a hundredth of the longer side, so that a rotation that repeats the border repeats no part of the disc.
    """

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape (channels, rows, columns), black outside the disc, no value below 0.

        Returns:
            the part with the disc, and the margin on all sides.

        Raises:
            InputError: if a value is below 0, or all are 0.
        """
        if image.min() < 0 or not image.any():
            name = getattr(image, "meta", {}).get("filename_or_obj", "image")
            raise InputError(f"{name}: must have values of at least 0, and not only 0, got {float(image.min()):g}.")
        grey = torch.as_tensor(image.as_tensor() if hasattr(image, "as_tensor") else image).mean(dim=0)
        slices = []
        for axis in (1, 0):  # means of rows, then of columns
            bright = torch.nonzero(grey.mean(dim=axis) >= DARK * grey.mean())
            slices.append(slice(int(bright.min()), int(bright.max()) + 1))
        cropped = SpatialCrop(roi_slices=slices)(image)
        return BorderPad(max(1, round(MARGIN * max(cropped.shape[1:]))))(cropped)


class BenGraham(Transform):
    """
    Evens out illumination and colour of a photograph of the fundus: four times the difference to a Gaussian blur, whose
    standard deviation is a thirtieth of the disc's radius, on middle grey; middle grey also outside 0.9 of the radius,
    where the blur reaches over the border. Based on: "Graham, Kaggle Diabetic Retinopathy Detection competition report,
    2015 <https://www.kaggle.com/c/diabetic-retinopathy-detection/discussion/15801>". There the image has a radius of
    300 pixels; here the blur follows the radius of any image. The blur takes the image as black beyond its sides.
    """

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: of shape (channels, side, side), values in [0, 1], with the disc in its middle, as wide as the image.

        Returns:
            the image, of the same shape, in [0, 1]; a region without structure is 0.5.

        Raises:
            ValueError: if the image is not square.
        """
        side = image.shape[-1]
        if image.ndim != 3 or image.shape[1] != side:
            raise ValueError(f"image must be of shape (channels, side, side), got {tuple(image.shape)}.")
        blurred = GaussianSmooth(sigma=SMOOTHING * side / 2, approx="sampled")(image)
        offset = torch.arange(side, device=image.device) - (side - 1) / 2
        inside = (offset[:, None] ** 2 + offset**2) < (KEPT * side / 2) ** 2
        return (CONTRAST * (image - blurred) * inside + GREY).clip(0, 1)


class CropToDiscd(MapTransform):
    """
    Dictionary version of :class:`CropToDisc`; ``keys`` are those of the images.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.crop = CropToDisc()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.crop(data[key]) for key in self.key_iterator(dict(data))}}


class BenGrahamd(MapTransform):
    """
    Dictionary version of :class:`BenGraham`; ``keys`` are those of the images.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.even = BenGraham()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.even(data[key]) for key in self.key_iterator(dict(data))}}
