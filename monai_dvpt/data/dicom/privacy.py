# SPDX-License-Identifier: Apache-2.0
"""Whether a text, such as the name of a folder, names the patient."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from pydicom.dataset import Dataset

__all__ = ["identifiers_of", "names_patient"]

NO_NAMES = {"anonymous", "anonymized", "anonymised", "anon", "patient", "unknown", "unnamed", "none", "test", "phantom"}
"""Words that are written instead of a name."""
NUMBERS = ("PatientID", "PatientBirthDate", "AccessionNumber")
WORD = re.compile(r"[^\W_]+")
SPELLED_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
SPELLED_OUT |= str.maketrans({"Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "Ø": "Oe", "Å": "Aa"})
PLAIN = str.maketrans({"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "æ": "ae", "Æ": "Ae"})
"""Letters that Unicode does not decompose."""
MIN_PART = 5
"""Length from which a number is looked for inside words; names are from 3."""


def identifiers_of(dataset: Dataset) -> frozenset[tuple[str, bool]]:
    """
    Returns:
        the words of the patient's name and the numbers of ``NUMBERS``, and for each whether it also counts inside other
        words. For this process alone: never to be shown or kept.
    """
    found = set()
    name = str(dataset.get("PatientName") or "")
    for text in (name, name.translate(SPELLED_OUT)):
        words = [word for word in WORD.findall(_fold(text)) if len(word) >= 2 and word not in NO_NAMES]
        found |= {(word, len(word) >= 3 or not word.isascii()) for word in words}
        joined = ("".join(words), "".join(reversed(words)))
        found |= {(word, True) for word in joined if len(word) >= 4}
    date = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(\d\d)", str(dataset.get("PatientBirthDate") or ""))
    if date:
        century, year, month, day = date.groups()
        found |= {(text, True) for text in (day + month + century + year, month + day + century + year)}
        found |= {(text, True) for text in (year + month + day, day + month + year)}
    for keyword in NUMBERS:
        number = re.sub(r"[\W_]+", "", _fold(str(dataset.get(keyword) or "")))
        for digits in {number, number.lstrip("0")}:
            if len(digits) >= 3 and digits not in NO_NAMES:
                found.add((digits, len(digits) >= MIN_PART))
    return frozenset(found)


def names_patient(text: str, identifiers: Iterable[tuple[str, bool]]) -> bool:
    """
    Args:
        text: a path, for instance; accents, case, and other characters than letters and digits do not count.
        identifiers: from :func:`identifiers_of`.
    """
    folded = _fold(text)
    words, joined = set(WORD.findall(folded)), re.sub(r"[\W_]+", "", folded)
    parts = {re.sub(r"[\W_]+", "", part) for part in re.split(r"[/\\]", folded)}
    whole, inside = _lookup(frozenset(identifiers))
    if not whole.isdisjoint(words) or not whole.isdisjoint(parts):
        return True
    if len(whole) <= len(joined):
        return any(word in joined for lengths in inside.values() for word in lengths)
    pieces = ((joined[at : at + size], size) for size in inside for at in range(len(joined) - size + 1))
    return any(piece in inside[size] for piece, size in pieces)  # as fast with many patients


@lru_cache(maxsize=16)
def _lookup(identifiers: frozenset[tuple[str, bool]]) -> tuple[frozenset[str], dict[int, set[str]]]:
    """All words, and those that count inside others by their length."""
    inside: dict[int, set[str]] = {}
    for word, counts in identifiers:
        if counts:
            inside.setdefault(len(word), set()).add(word)
    return frozenset(word for word, _ in identifiers), inside


def _fold(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.translate(PLAIN))
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()
