# SPDX-License-Identifier: Apache-2.0
"""Lists of cases and names of labels: ``dataset.json`` and ``datalist.json`` of the Decathlon, nnU-Net and MONAI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_dvpt.data.datalist import read_list_file
from monai_dvpt.data.kinds import image_stem
from monai_dvpt.utils import InputError, reason

from ..modalities import modality_of
from ..model import Finding

__all__ = ["DataList", "read_lists"]

NAMES = ("datalist.json", "dataset.json")
SECTIONS = ("training", "validation", "calibration", "test")


@dataclass
class DataList:
    """
    What a folder's list says.

    Attributes:
        folder: its paths are relative to.
        names: name of each label value, without the background; empty if it names none.
        pairs: label by image, None without one; None if the list names no cases.
        parts: part by image.
        channels: names of the images' channels, in the order of their numbers; empty if it names none.
    """

    folder: Path
    names: dict[int, str] = field(default_factory=dict)
    pairs: dict[Path, Path | None] | None = None
    parts: dict[Path, str] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)

    @property
    def modality(self) -> str:
        """Of the first channel, as in DICOM; "" if it is not said or none of the standard."""
        return modality_of(self.channels[0]) if self.channels else ""


def read_lists(root: Path, files: list[Path], several_channels: bool = False) -> tuple[list[DataList], list[Finding]]:
    """
    Args:
        root: folder of data.
        files: all of its files; the lists among them are found by their names.
        several_channels: whether an image may have several files, one for each channel, also where no list names these.

    Returns:
        a list for each folder that has a ``datalist.json`` or ``dataset.json``, the deepest first, in which the first
        of these says what it has; and what is wrong with them.
    """
    found: dict[Path, DataList] = {}
    findings = []
    for file in sorted((file for file in files if file.name in NAMES), key=lambda file: NAMES.index(file.name)):
        where = str(file.relative_to(root))
        try:
            content = read_list_file(file)
            if not isinstance(content, dict):
                raise InputError("must be an object with lists of cases or names of labels.")
            lists = found.setdefault(file.parent, DataList(file.parent))
            lists.names = lists.names or _names(content.get("labels"))
            lists.channels = lists.channels or _channels(content)
            if lists.pairs is None:
                _add_pairs(lists, content, several_channels or len(lists.channels) > 1)
        except InputError as error:
            findings.append(Finding("list cannot be used", where, reason(error), error=True))
    for lists in found.values():
        for image, label in (lists.pairs or {}).items():
            for path in filter(None, (image, label)):
                if not path.exists():
                    where = os.path.relpath(path, root)
                    findings.append(
                        Finding("listed file missing", where, "a list names it, but it does not exist.", True)
                    )
    return sorted(found.values(), key=lambda lists: -len(lists.folder.parts)), findings


def _names(labels: Any) -> dict[int, str]:
    """Of ``{"1": "liver"}`` or ``{"liver": 1}``; no other object names labels."""
    if not isinstance(labels, Mapping):
        return {}
    names = {}
    for key, value in labels.items():
        if isinstance(value, list):
            raise InputError(f'"labels" must name one value each, got {key!r}: {value!r}; regions are not supported.')
        name, number = (value, key) if isinstance(value, str) else (key, value)
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if not str(number).isdigit() or not str(name).strip():
            raise InputError(f'"labels" must be names of whole numbers, got {key!r}: {value!r}.')
        if int(number) in names:
            raise InputError(f'"labels" must name every value once, got {number} twice.')
        names[int(number)] = str(name).strip()
    names.pop(0, None)
    return names


def _add_pairs(lists: DataList, content: Mapping[str, Any], several_channels: bool) -> None:
    sections = {name: content[name] for name in SECTIONS if isinstance(content.get(name), list) and content[name]}
    if not sections:
        return
    pairs: dict[Path, Path | None] = {}
    parts: dict[Path, str] = {}
    for section, entries in sections.items():
        for entry in entries:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
                raise InputError(f'every case of "{section}" must name one "image", got {str(entry)[:80]!r}.')
            image = _image_path(lists.folder, entry["image"], several_channels)
            label = entry.get("label")
            if label is not None and not isinstance(label, str):
                raise InputError(f'every case of "{section}" must name one "label", got {str(label)[:80]!r}.')
            if image in pairs:
                raise InputError(f"every image must be listed once, got {entry['image']!r} twice.")
            pairs[image] = _path(lists.folder, label) if label else None
            parts[image] = section
    lists.pairs, lists.parts = pairs, parts


def _path(folder: Path, text: str) -> Path:
    return Path(os.path.normpath(folder / text))


def _image_path(folder: Path, text: str, several_channels: bool) -> Path:
    """The path of an image, which nnU-Net lists without the number of its channel; of several, that of the first."""
    path = _path(folder, text)
    stem = image_stem(path.name)
    first, second = (path.with_name(f"{stem}_000{number}{path.name[len(stem) :]}") for number in (0, 1))
    if path.exists() or not first.exists():
        return path
    if second.exists() and not several_channels:
        raise InputError(
            f'an image must have one channel, {text!r} has several files; name them in "channel_names" or --channels.'
        )
    return first


def _channels(content: Mapping[str, Any]) -> list[str]:
    """Names of the channels, in the order of their numbers."""
    stated = content.get("channel_names", content.get("modality"))
    if isinstance(stated, str):
        return [stated.strip()] if stated.strip() else []
    if not isinstance(stated, Mapping) or not stated:
        return []
    if sorted(map(str, stated)) != sorted(map(str, range(len(stated)))):
        raise InputError(f'"channel_names" must have the numbers from 0 for keys, got {list(stated)}.')
    names = [str(stated[key]).strip() for key in sorted(stated, key=int)]
    if not all(names) or len({name.casefold() for name in names}) < len(names):
        raise InputError(f'"channel_names" must be different names, got {names}.')
    return names
