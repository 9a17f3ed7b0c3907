# SPDX-License-Identifier: Apache-2.0
"""What is said where labels overlap that a label map cannot hold at once."""

from __future__ import annotations

import numpy as np

from monai_dvpt.utils import InputError

__all__ = ["overlap_error"]


def overlap_error(what: str, there: np.ndarray, pair: tuple[object, object], place: str = "") -> InputError:
    """
    Args:
        what: "segment", "ROI" or "label".
        there: values of a label map where the second of the pair is to be drawn; those that are not 0 are taken.
        pair: numbers or names of the two that overlap.
        place: where this is, such as "slice 3".
    """
    found = f"{np.count_nonzero(there)}{f' of {place}' if place else ''} are of both {what} {pair[0]} and {pair[1]}"
    hint = "choose labels that do not overlap, in the command new with --labels"
    return InputError(f"a voxel must be of one {what}, but {found}; {hint}.")
