# SPDX-License-Identifier: Apache-2.0
"""How often the cases of a training set are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from monai.data import DistributedSampler, DistributedWeightedRandomSampler
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from monai_dvpt.utils import InputError

__all__ = ["balanced_weights", "training_sampler"]

SAMPLINGS = ("natural", "balanced")


def training_sampler(cases: Sequence[Mapping[str, Any]], sampling: str = "natural", seed: int = 0) -> Sampler:
    """
    A sampler that draws as many cases as there are in an epoch, or in a distributed run (where a process group is
    initialised) an equal share of them in each process.

    Args:
        cases: from :func:`monai_dvpt.data.load_gradelist`.
        sampling: "natural", every case once; "balanced", with replacement, so that in the mean every class is drawn
            equally often (see :func:`balanced_weights`). A model trained so gives probabilities for classes that are
            equally frequent.
        seed: for the order in which the cases of a distributed run are dealt to its processes; the same in all of them.

    Raises:
        InputError: if ``sampling`` is unknown.
    """
    if sampling not in SAMPLINGS:
        raise InputError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling}.")
    distributed = dist.is_available() and dist.is_initialized()
    if sampling == "natural":
        return DistributedSampler(cases, seed=seed) if distributed else RandomSampler(cases)  # type: ignore[arg-type]
    weights = balanced_weights([case["label"] for case in cases])
    if distributed:
        return DistributedWeightedRandomSampler(cases, weights, seed=seed)  # type: ignore[arg-type]
    return WeightedRandomSampler(weights, len(weights))


def balanced_weights(labels: Sequence[Sequence[int]]) -> list[float]:
    """
    A weight for each case, 1 over the number of cases of its class; with several outputs the mean over those that are
    labelled, since one case has one weight for all of them.

    Args:
        labels: for each case the class of every output, at least one of which is not -1 (missing).

    Examples::

        >>> balanced_weights([[0], [0], [1]])
        [0.5, 0.5, 1.0]
        >>> balanced_weights([[0, 1], [0, -1], [1, 1]])
        [0.5, 0.5, 0.75]

    """
    counts = [Counter(column) for column in zip(*labels, strict=True)]
    shares = [[1 / count[c] for count, c in zip(counts, label, strict=True) if c >= 0] for label in labels]
    return [sum(share) / len(share) for share in shares]
