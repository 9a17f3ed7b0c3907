# SPDX-License-Identifier: Apache-2.0
"""Which file is the mask of which picture, by their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_dvpt.data.kinds import image_stem

from .images import FoundImage, has_mask_word, without_kind, words_of
from .masks import read_mask

__all__ = ["Pair", "is_observer", "pair_by_name"]

OBSERVERS = frozenset(
    "ho observer observers reader rater expert annotator grader doctor physician radiologist manual manual1 manual2 "
    "observer1 observer2 reader1 reader2 rater1 rater2 expert1 expert2 annotator1 annotator2".split()
)
"""Words of names that tell who drew a mask."""
ENDS = re.compile(r"[_\-. ]")


@dataclass(frozen=True)
class Pair:
    """
    A mask and its picture.

    Attributes:
        index: of the picture.
        path: of the mask.
        variant: what tells the masks of one picture apart: the name of a folder, or the end of the file's name; without
            words such as "mask".
        by_folder: whether that is a folder.
    """

    index: int
    path: Path
    variant: str = ""
    by_folder: bool = False


def is_observer(variant: str) -> bool:
    """Whether a variant tells who drew a mask, such as "1stHO" or "observer2", and not what it shows."""
    words = words_of(variant)
    return any(word in OBSERVERS or re.fullmatch(r"\d+(st|nd|rd|th)?", word) for word in words)


def pair_by_name(root: Path, images: Sequence[FoundImage], files: Sequence[Path]) -> tuple[list[Pair], list[Path]]:
    """
    Pairs pictures with masks in other folders, such as images/a.jpg with masks/a.png or masks/lesion/a_mask.png; else
    with files in the same folder whose names go on, such as a.jpg and a_mask.png.

    Args:
        root: folder of data.
        images: pictures, perhaps with masks among them.
        files: that may be masks.

    Returns:
        the pairs, and masks in folders of masks that belong to no picture, or to more than one.
    """
    inside = {path for path in files if any(map(has_mask_word, _folders(path, root)))}
    outside = {index for index, image in enumerate(images) if image.path not in inside}
    outside -= {index for index in outside if any(map(has_mask_word, _folders(images[index].path, root)))}
    if inside and outside:
        stems = _by_stem(images, outside)
        found = {path: _in_other_folder(path, root, images, stems) for path in sorted(inside)}
        if any(found.values()):
            pairs = [pair for pair in found.values() if pair is not None]
            return pairs, [path for path, pair in found.items() if pair is None]
    return _in_same_folder(images, files), []


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    return Path(os.path.relpath(path, root)).parts[:-1]


def _by_stem(images: Sequence[FoundImage], indices: set[int]) -> dict[str, list[int]]:
    stems: dict[str, list[int]] = {}
    for index in sorted(indices):
        stem = image_stem(images[index].path.name)
        for key in dict.fromkeys([stem.casefold(), without_kind(stem)]):
            stems.setdefault(key, []).append(index)
    return stems


def _in_other_folder(path: Path, root: Path, images: Sequence[FoundImage], stems: dict[str, list[int]]) -> Pair | None:
    """The only picture whose name a mask's begins with, in folders that differ in what they hold, or in a label."""
    folders = _plain_folders(path, root)
    for stem, end in _beginnings(image_stem(path.name)):
        fits = []
        for index in stems.get(stem.casefold(), []):
            extra = _extra(folders, _plain_folders(images[index].path, root))
            if extra is not None:
                fits.append((index, extra))
        if same := [each for each in fits if not each[1]]:
            fits = same
        if len(fits) == 1:
            index, extra = fits[0]
            variant = extra or without_kind(end)
            return Pair(index, path, variant, bool(extra))
        if fits:
            return None
    return None


def _plain_folders(path: Path, root: Path) -> list[str]:
    """Folders without words for images and masks, such as "train" of "train_masks"."""
    return [name for name in map(without_kind, _folders(path, root)) if name]


def _extra(folders: list[str], others: list[str]) -> str | None:
    """The folder that the first has and the others lack, "" if they are alike, None if they differ more."""
    if folders == others:
        return ""
    for at, name in enumerate(folders):
        if folders[:at] + folders[at + 1 :] == others:
            return name
    return None


def _beginnings(stem: str) -> list[tuple[str, str]]:
    """A stem and its beginnings up to a separator, the longest first, each with the rest."""
    ends = [match.start() for match in ENDS.finditer(stem)]
    whole = [(stem, "")] + ([(plain, "")] if (plain := without_kind(stem)) and plain != stem else [])
    return whole + [(stem[:end], stem[end:].strip("_-. ")) for end in reversed(ends) if end]


def _in_same_folder(images: Sequence[FoundImage], files: Sequence[Path]) -> list[Pair]:
    """Masks beside pictures, where the ends of their names say so, or are the same for most pictures."""
    stems: dict[tuple[Path, str], list[int]] = {}
    for index, image in enumerate(images):
        stem = image_stem(image.path.name)
        for key in {stem.casefold()} | (set() if has_mask_word(stem) else {without_kind(stem)}):
            stems.setdefault((image.path.parent, key), []).append(index)
    found: list[tuple[int, Path, str]] = []
    for path in files:
        stem = image_stem(path.name)
        named = [(without_kind(stem), "mask")] if has_mask_word(stem) else []  # mask_1 beside image_1
        for start, end in [*_beginnings(stem), *named]:
            fits = [index for index in stems.get((path.parent, start.casefold()), []) if images[index].path != path]
            if fits and end:
                found += [(index, path, end) for index in fits if len(fits) == 1]
                break
    masks = {path for _, path, _ in found}
    rest = [image for image in images if image.path not in masks]
    counts = Counter(end for _, _, end in found)
    ends = {end for end, count in counts.items() if has_mask_word(end) or 2 * count >= len(rest) and count > 1}
    ends = {end for end in ends if _is_mask(next(path for _, path, each in found if each == end))}
    return [Pair(index, path, without_kind(end)) for index, path, end in found if end in ends]


def _is_mask(path: Path) -> bool:
    """Whether a file has as few values as a mask, or is one that must be refused for another reason."""
    try:
        read_mask(path)
    except ValueError:
        return has_mask_word(image_stem(path.name))
    return True
