# SPDX-License-Identifier: Apache-2.0
"""Share of right grades, counted by Ignite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

__all__ = ["correct_grades"]


def correct_grades(output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The ``output_transform`` that makes :class:`ignite.metrics.Accuracy` the share of right grades.

    Args:
        output: for each case its "grade" and its "label", each of shape (O,); a missing label is -1.

    Returns:
        1 for each right and 0 for each wrong grade, of shape (graded,), and as many ones.

    Examples::

        >>> correct_grades([{"grade": torch.tensor([0, 2, 1]), "label": torch.tensor([0, 1, -1])}])
        (tensor([1, 0]), tensor([1, 1]))

    """
    grade, label = (torch.cat([case[key] for case in output]) for key in ("grade", "label"))
    right = (grade == label)[label >= 0].long()
    return right, torch.ones_like(right)
