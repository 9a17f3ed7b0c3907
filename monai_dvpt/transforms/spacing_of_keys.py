# SPDX-License-Identifier: Apache-2.0
"""Resampling of the given keys alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd

__all__ = ["SpacingOfKeysd"]


class SpacingOfKeysd(Spacingd):
    """
    :class:`monai.transforms.Spacingd`, which sees its keys alone. In MONAI 1.6 it takes every entry whose name begins
    with a key, such as "image_path" beside "image", for metadata, and fails if that is a text; MONAI Label adds one.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        images = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(images, lazy)}
