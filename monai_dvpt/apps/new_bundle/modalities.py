# SPDX-License-Identifier: Apache-2.0
"""The modality, as in DICOM, that the name of a channel says."""

from __future__ import annotations

import re

__all__ = ["modality_of"]

WORDS = {
    **dict.fromkeys(("ct", "cta"), "CT"),
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair"), "MR"),
    **dict.fromkeys(("adc", "dwi", "swi", "pd", "pdw"), "MR"),
    **dict.fromkeys(("pt", "pet"), "PT"),
    **{term: term.upper() for term in ("us", "nm", "opt", "xa")},
}


def modality_of(name: str) -> str:
    """
    The modality of a channel by the words of its name; "" if none or several say one.

    Examples::

        >>> modality_of("MRI"), modality_of("T2-FLAIR"), modality_of("CT"), modality_of("PET/CT"), modality_of("zscore")
        ('MR', 'MR', 'CT', '', '')

    """
    words = re.findall(r"[^\W_]+", name.casefold())
    found = {WORDS[word] for word in words if word in WORDS}
    return found.pop() if len(found) == 1 else ""
