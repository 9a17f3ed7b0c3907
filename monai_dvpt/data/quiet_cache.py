# SPDX-License-Identifier: Apache-2.0
"""Cached cases whose progress does not fill logs."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

from monai.data import CacheDataset

from monai_dvpt.utils import progress

__all__ = ["QuietCacheDataset"]


class QuietCacheDataset(CacheDataset):
    """
    :class:`monai.data.CacheDataset`, whose bar is shown only where a person sees it; a log has a line in half a
    minute, with the time left (see :func:`monai_dvpt.utils.progress`). Arguments are MONAI's.
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        indices = range(self.cache_num) if indices is None else indices
        if not indices:
            return []
        with ThreadPool(self.num_workers) as pool:
            cached = pool.imap(self._load_cache_item, indices)
            return list(progress(cached, "caching", total=len(indices)) if self.progress else cached)
