# SPDX-License-Identifier: Apache-2.0
"""The choice of one series."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

from monai_dvpt.utils import InputError

from .series import VOLUMES, DicomSeries

__all__ = ["choose_series"]

MAX_LISTED = 10  # series in an error


def choose_series(
    found: Iterable[DicomSeries],
    uid: str | None = None,
    description: str | None = None,
    modality: str | None = None,
    num_slices: int | None = None,
) -> DicomSeries:
    """
    The one series that fits.

    Args:
        found: from :func:`find_series`.
        uid: Series Instance UID.
        description: pattern of the Series Description as in a shell, such as ``"*T1*"``; case does not matter.
        modality: such as "MR".
        num_slices: number of slices.

    Raises:
        InputError: if none or several fit; lists them. Localizers, single slices and pictures are only taken by their
            UID; a volume that cannot be read counts, since it may be the one that is meant.
    """
    found = list(found)
    asked = {"uid": uid, "description": description, "modality": modality, "num_slices": num_slices}
    wishes = {key: value for key, value in asked.items() if value not in (None, "")}
    rules: dict[str, Callable[[DicomSeries], bool]] = {
        "uid": lambda series: series.series_uid == str(uid),
        "description": lambda series: fnmatch.fnmatchcase(series.description.lower(), str(description).lower()),
        "modality": lambda series: series.modality.upper() == str(modality).upper(),
        "num_slices": lambda series: series.num_slices == int(num_slices or 0),
    }
    fitting = [series for series in found if all(rules[key](series) for key in wishes)]
    volumes = [series for series in fitting if series.verdict in VOLUMES]
    candidates = volumes or (fitting if uid else [])
    if len(candidates) == 1:
        return candidates[0]
    wanted = f" with {', '.join(f'{key} {value}' for key, value in wishes.items())}" if wishes else ""
    shown = candidates or found
    listed = "; ".join(f"[{number}] {series}" for number, series in enumerate(shown[:MAX_LISTED], 1)) or "nothing"
    if (more := len(shown) - MAX_LISTED) > 0:
        listed += f"; and {more} more"
    if candidates:
        how = "choose by uid, description, modality or num_slices"
        raise InputError(f"must hold one DICOM volume{wanted}, holds {len(candidates)}: {listed}; {how}.")
    raise InputError(f"must hold a DICOM volume{wanted}, holds none; there is: {listed}.")
