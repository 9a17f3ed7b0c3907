# SPDX-License-Identifier: Apache-2.0
"""A learning rate for a run, and for the rounds of a federated one."""

from __future__ import annotations

import math

from monai.optimizers import WarmupCosineSchedule

__all__ = ["WarmupCosineRounds"]


class WarmupCosineRounds(WarmupCosineSchedule):
    """
    :class:`monai.optimizers.WarmupCosineSchedule` that goes on after its end: every further ``t_total`` steps are
    another decay, by half a cosine from the full rate, without a warm-up. So each round of a federated training, which
    goes on with the optimizer of the last one, has its own decay, and no round a rate of 0. Arguments are MONAI's, but
    for ``cycles``, which is 0.5.
    """

    def lr_lambda(self, step: int) -> float:
        """
        Args:
            step: from 0.

        Returns:
            the share of the full rate.
        """
        if step < self.t_total:
            return super().lr_lambda(step)
        return 0.5 * (1 + math.cos(math.pi * (step % self.t_total) / self.t_total))
