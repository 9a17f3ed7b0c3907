# SPDX-License-Identifier: Apache-2.0
"""Batches of images with their prefix."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch, default_prepare_batch

__all__ = ["PreparePrefix"]


class PreparePrefix(PrepareBatch):
    """
    Prepares a batch as MONAI's engines do by default, and passes its prefix, if any, to the network.

    Args:
        prefix_key: key of the prefix in a batch of :class:`monai_dvpt.data.PrefixCacheDataset`.
    """

    def __init__(self, prefix_key: str = "prefix") -> None:
        self.prefix_key = prefix_key

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        batch = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        if self.prefix_key not in batchdata:
            return batch
        prefix = batchdata[self.prefix_key].to(device=device, non_blocking=non_blocking, **kwargs)
        return *batch, (), {"prefix": prefix}
