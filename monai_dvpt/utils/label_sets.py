# SPDX-License-Identifier: Apache-2.0
"""Label values that say of a voxel only that it is one of several labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["UNKNOWN", "labels_of_values"]

UNKNOWN = "classes_with_unknown_voxels"
"""In the metadata of a truth with one mask per class: the numbers of these classes."""


def labels_of_values(labels: Sequence[str], label_sets: Sequence[Sequence[str]] = ()) -> torch.Tensor:
    """
    The labels that a voxel may have, for each value of a label map. A value below ``len(labels)`` is that label; the
    values from there on stand for the sets: the voxel has one label of the set, and which one was not drawn. The set of
    all labels says nothing of a voxel, so it is ignored.

    Args:
        labels: names of the ``C`` classes, background first.
        label_sets: ``S`` sets of names.

    Returns:
        truth values of shape (C + S, C).

    Raises:
        ValueError: if a set has fewer than two labels, one twice, or one that is not in ``labels``.

    Examples::

        >>> labels_of_values(["background", "liver", "spleen"], [["background", "spleen"]]).int().tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]

    """
    for names in label_sets:
        listed = not isinstance(names, str) and isinstance(names, Sequence)
        if not listed or len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(labels):
            raise ValueError(f"label_sets must be lists of two or more of the labels {list(labels)}, got {names!r}.")
    rows = [[label in names for label in labels] for names in label_sets]
    return torch.cat(
        [torch.eye(len(labels), dtype=torch.bool), torch.tensor(rows, dtype=torch.bool).view(-1, len(labels))]
    )
