# SPDX-License-Identifier: Apache-2.0
"""What the paths of images and label maps have in common, word by word."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from monai_dvpt.data.kinds import image_stem

from .words import MASK_WORDS, PARTS, VOLUME_WORDS

__all__ = ["ImageIndex", "Match", "PathWords"]

LABEL_WORDS = MASK_WORDS[3]
MODALITY_WORDS = frozenset("ct cta cbct mr mri flair dwi adc pet pt us".split())
WORD = re.compile(r"\d+|[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
CHANNEL = re.compile(r"\d{4}")
"""Last word of nnU-Net's names of images, the number of the channel."""


class Word(NamedTuple):
    """A word of a path in lower case, and where it stands: number of the folder or file, first and last letter."""

    text: str
    place: int
    start: int
    end: int


@dataclass(frozen=True)
class PathWords:
    """
    A path below the folder of data.

    Attributes:
        pieces: names of the folders, and that of the file without its suffix.
        words: without those that only say what lies there, such as "images" and "label".
        role: "label" or "image" where a word says so, else "".
        part: of the data, by the name of a folder, else "".
        channel: number of the channel as nnU-Net writes it, else "".
    """

    pieces: tuple[str, ...]
    words: tuple[Word, ...]
    role: str
    part: str
    channel: str

    @classmethod
    def of(cls, path: Path, root: Path) -> PathWords:
        """The words of a file, or of the folder of a series."""
        inside = path.relative_to(root).parts
        last = image_stem(inside[-1]) if inside and not os.path.isdir(path) else (inside[-1] if inside else "")
        pieces = (*inside[:-1], last)
        found = [_words(piece, place) for place, piece in enumerate(pieces)]
        role = "label" if any(word.text in LABEL_WORDS for word in found[-1]) else ""
        part, kept = "", []
        for words in found[:-1]:
            texts = {word.text for word in words}
            says = bool(texts) and texts <= LABEL_WORDS | VOLUME_WORDS | PARTS.keys()
            kept += [word for word in words if not says or word.text in PARTS]
            part = next((PARTS[text] for text in texts & PARTS.keys() if says), part)
        for words in reversed(found[:-1]):
            texts = {word.text for word in words}
            if not role and texts & (LABEL_WORDS | VOLUME_WORDS) and texts <= LABEL_WORDS | VOLUME_WORDS | PARTS.keys():
                role = "label" if texts & LABEL_WORDS else "image"
        if not role and any(word.text in VOLUME_WORDS for word in found[-1]):
            role = "image"
        kept += [word for word in found[-1] if word.text not in LABEL_WORDS | VOLUME_WORDS]
        named = tuple(word._replace(text=PARTS.get(word.text, word.text)) for word in kept)
        channel = named[-1].text if len(named) > 1 and CHANNEL.fullmatch(named[-1].text) else ""
        return cls(pieces, named, role, part, channel)

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.words)

    @property
    def short_keys(self) -> set[tuple[str, ...]]:
        """The key of an image without its channel, or without the modality at its end."""
        key, short = self.key, set()
        if self.channel:
            short.add(key[:-1])
        while key and (key[-1] in MODALITY_WORDS or key[-2:] in (("t", "1"), ("t", "2"))):
            key = key[: -1 if key[-1] in MODALITY_WORDS else -2]
            short.add(key)
        return short

    def text_of(self, words: Sequence[Word]) -> str:
        """What the path itself says from the first to the last word of each folder or file, joined by "_"."""
        places = dict.fromkeys(word.place for word in words)
        return "_".join(
            self.pieces[place][
                min(word.start for word in words if word.place == place) : max(
                    word.end for word in words if word.place == place
                )
            ]
            for place in places
        )


class Match(NamedTuple):
    """
    The images that a label could be of.

    Attributes:
        images: their indices.
        name: of the label, where its path has more words.
        of_folder: whether a folder around all cases has that name, which may be no label if it is the only one.
    """

    images: list[int]
    name: str = ""
    of_folder: bool = False


class ImageIndex:
    """Finds the images that a label could be of by the words of their paths."""

    def __init__(self, images: Sequence[PathWords]) -> None:
        self._same: dict[tuple[str, ...], list[int]] = {}
        self._short: dict[tuple[str, ...], list[int]] = {}
        self._begins: dict[tuple[str, ...], list[int]] = {}
        self._beside: dict[tuple[str, ...], list[int]] = {}
        for index, image in enumerate(images):
            key = image.key
            self._same.setdefault(key, []).append(index)
            for short in image.short_keys:
                self._short.setdefault(short, []).append(index)
            for size in range(len(key)):
                self._begins.setdefault(key[:size], []).append(index)
            if len(image.pieces) > 1:
                self._beside.setdefault(_without_folder(image), []).append(index)

    def match(self, label: PathWords) -> Match:
        """
        By the first rule that an image fits: its path has the same words as the label's; the same without channel or
        modality; the same and more; the same name in a folder beside that of the label; fewer words, the most of all,
        of which those that are left then name the label.
        """
        key = label.key
        for table in (self._same, self._short, self._begins):
            if found := table.get(key):
                return Match(found)
        if not label.role and (found := self._beside.get(_without_folder(label))):
            return Match(found)
        for size in range(len(key) - 1, -1, -1):
            for part, more in (
                (key[:size], label.words[size:]),
                (key[len(key) - size :], label.words[: len(key) - size]),
            ):
                if found := list(dict.fromkeys([*self._same.get(part, ()), *self._short.get(part, ())])):
                    of_folder = part != key[:size] and all(word.place < len(label.pieces) - 1 for word in more)
                    return Match(found, label.text_of(more), of_folder)
        return Match(self._beside.get(_without_folder(label), []))


def _without_folder(path: PathWords) -> tuple[str, ...]:
    return (*path.pieces[:-2], "", path.pieces[-1])


def _words(piece: str, place: int) -> list[Word]:
    words = []
    for match in WORD.finditer(piece):
        ends = [0, *(each.start() for each in CAMEL.finditer(match[0])), len(match[0])]
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            words.append(Word(match[0][start:end].casefold(), place, match.start() + start, match.start() + end))
    return words
