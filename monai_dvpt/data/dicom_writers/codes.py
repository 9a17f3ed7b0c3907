# SPDX-License-Identifier: Apache-2.0
"""Names of labels in DICOM: coded concepts (DICOM PS3.3 8), and colours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

__all__ = ["PRIVATE_SCHEME", "label_colour", "long_string", "private_code", "segment_codes"]

PRIVATE_SCHEME = "99MONAIDVPT"
"""Coding scheme for names without a standard code; "99" marks private schemes (DICOM PS3.3 8.2)."""

CATEGORY = ("91723000", "SCT", "Anatomical Structure")
MAX_LONG_STRING = 64  # characters in VR LO
MAX_CODE_VALUE = 16  # characters in VR SH


def long_string(text: str) -> str:
    """``text`` as a value of VR LO (DICOM PS3.5 6.2): one line of at most 64 characters without backslash."""
    return " ".join(str(text).replace("\\", "/").split())[:MAX_LONG_STRING]


def private_code(name: str) -> tuple[str, str, str]:
    """
    Private code for a name: always the same for one name, and different for different names.

    Examples::

        >>> private_code("liver")
        ('liver', '99MONAIDVPT', 'liver')
        >>> private_code("left kidney without cysts")
        ('left_ki-895c9d1c', '99MONAIDVPT', 'left kidney without cysts')

    """
    value = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if value != name or not 0 < len(value) <= MAX_CODE_VALUE:
        value = f"{value[:7]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return value, PRIVATE_SCHEME, long_string(name)


def segment_codes(labels: Sequence[str], metadata: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """
    How the writers of this package describe each label.

    Args:
        labels: names of the classes in the order of their values, background first.
        metadata: of a bundle; its "segment_codes" has, by name, "type" and optionally "category" (else Anatomical
            Structure), "region", each ``[value, scheme, meaning]``, and "color", RGB in 0 to 255. Other names get a
            private code.

    Returns:
        "name", "category", "type" and, where given, "region" and "color", by label value.

    Raises:
        ValueError: if a code is not three texts.

    Examples::

        >>> codes = {"liver": {"type": ["10200004", "SCT", "Liver"]}}
        >>> segment_codes(["background", "liver"], {"segment_codes": codes})[1]["type"]
        ('10200004', 'SCT', 'Liver')

    """
    given = metadata.get("segment_codes", {})
    segments = {}
    for value, name in enumerate(labels[1:], start=1):
        segment = {"category": CATEGORY, "type": private_code(name), **given.get(name, {}), "name": name}
        for key in {"category", "type", "region"} & segment.keys():
            code = segment[key]
            if isinstance(code, str) or len(code) != 3 or not all(isinstance(part, str) and part for part in code):
                raise ValueError(f'{key} of "{name}" in segment_codes must be [value, scheme, meaning], got {code}.')
            segment[key] = tuple(code)
        segments[value] = segment
    return segments


def label_colour(value: int, segment: Mapping[str, Any]) -> tuple[int, int, int]:
    """
    Args:
        value: of the label, from 1.
        segment: description of the label, see :func:`segment_codes`.

    Returns:
        RGB in 0 to 255: the "color" of the segment, else one of matplotlib's "tab10" by the value.
    """
    colours = np.rint(colormaps["tab10"](range(10))[:, :3] * 255).astype(int).tolist()
    red, green, blue = segment.get("color", colours[(value - 1) % len(colours)])
    return int(red), int(green), int(blue)
