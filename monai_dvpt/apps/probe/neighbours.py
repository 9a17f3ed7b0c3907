# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours among frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["NEIGHBOURS", "NeighbourModel", "fit_neighbours"]

NEIGHBOURS = (10, 20)
"""Numbers of neighbours to choose from."""
TEMPERATURE = 0.07
NO_VOTE = 1e-12
"""Share of a class without a vote."""


@dataclass(frozen=True)
class NeighbourModel:
    """
    Known images.

    Attributes:
        features: of length 1, of shape (N, C).
        targets: of shape (N, O, K).
        neighbours: how many of them vote.
    """

    features: torch.Tensor
    targets: torch.Tensor
    neighbours: int

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logarithms of the shares of votes, of shape (N, O, K), of features of shape (N, C)."""
        alike = F.normalize(features, dim=1) @ self.features.T  # (N, known)
        shares = []
        for target in self.targets.unbind(1):  # those without a label of an output do not vote
            known = target.sum(1) > 0
            count = min(self.neighbours, int(known.sum()))
            cosines, nearest = alike[:, known].topk(count)  # (N, count)
            weights = (cosines / TEMPERATURE).softmax(dim=1)  # as of exp, but for a factor
            shares.append((weights[..., None] * target[known][nearest]).sum(1))  # (N, K)
        return torch.stack(shares, dim=1).clamp(min=NO_VOTE).log()


def fit_neighbours(features: torch.Tensor, targets: torch.Tensor, neighbours: float) -> NeighbourModel:
    """
    Weighted nearest neighbours: the known images with the largest cosine vote, each with the weight exp(cosine / 0.07),
    as in the evaluation of "Caron et al., DINO <https://arxiv.org/abs/2104.14294>", section 4.

    Args:
        features: of shape (N, C).
        targets: of shape (N, O, K), the classes as 0 and 1; a row of zeros votes for nothing.
        neighbours: how many vote; all, if there are fewer.
    """
    return NeighbourModel(F.normalize(features, dim=1), targets.to(features.dtype), int(neighbours))
