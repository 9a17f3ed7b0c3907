# SPDX-License-Identifier: Apache-2.0
"""Resampling that leaves alone what it was not asked to resample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd

__all__ = ["SpacingOfKeysd"]


class SpacingOfKeysd(Spacingd):
    """
    MONAI's ``Spacingd``, shown its keys alone. That of MONAI 1.6 takes every entry whose name begins with that of a
    key, such as "image_path" beside "image", for metadata, and fails on one that is a text; MONAI Label adds one. All
    arguments are those of :class:`monai.transforms.Spacingd`.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """
        Args:
            data: images under the keys, and anything else beside them.
            lazy: see :class:`monai.transforms.Spacingd`.

        Returns:
            the same with resampled images.
        """
        images = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(images, lazy)}
