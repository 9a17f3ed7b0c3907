# SPDX-License-Identifier: Apache-2.0
"""Images whose channels, such as the sequences of an MR study, are several files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_dvpt.utils import InputError

from .kinds import VOLUMES, file_kind, image_kind, image_stem
from .nifti import nifti_size

__all__ = [
    "ChannelFiles",
    "channel_numbers",
    "files_beside",
    "group_channels",
    "is_volume_list",
    "names_problem",
    "numbers_of_files",
    "stacked_channels",
    "unnamed_problem",
]

NUMBER = re.compile(r"\d{4}")
"""What nnU-Net writes at the end of a file's name, the number of the channel from 0."""
WORD = re.compile(r"[^\W_]+")
NAME = re.compile(r"[\w .-]+")
"""Of a channel: a sign would not be seen in the name of a file."""


@dataclass(frozen=True)
class ChannelFiles:
    """
    A case whose channels are files.

    Attributes:
        place: what the case is named after: the folder of the files if their names say nothing but the channel, else
            the path of a file without the channel; it need not exist.
        files: path of each channel by name, in the order of the names that were asked for.
        unclear: files of a channel that another file has already, or whose names say two.
        key: the folder of the files, and the words of their names without the channel.
    """

    place: Path
    files: Mapping[str, Path]
    unclear: tuple[Path, ...]
    key: tuple[Path, tuple[str, ...]]

    def paths_of(self, channels: Sequence[str]) -> list[Path]:
        """
        The files of these channels, in this order.

        Raises:
            InputError: if a channel is missing, or it is not clear which file has it; names it.
        """
        if self.unclear:
            names = ", ".join(path.name for path in self.unclear)
            raise InputError(f"the name of a file must say one channel, and another than those beside it, got {names}.")
        if missing := [name for name in channels if name not in self.files]:
            raise InputError(f"must have the channels {', '.join(channels)}; without {', '.join(missing)}.")
        return [self.files[name] for name in channels]


def names_problem(names: Sequence[str]) -> str:
    """Why names of channels cannot be told apart in the names of files; "" if they can."""
    if odd := [name for name in names if not NAME.fullmatch(name) or not _words(name)]:
        return f"names of channels must be of letters, digits, spaces, _, - and ., rename them, got {odd}."
    if len({tuple(_words(name)) for name in names}) < len(names):
        return f"names of channels must differ in letters or digits, rename them, got {list(names)}."
    return ""


def numbers_of_files(paths: Iterable[Path], file_channels: Sequence[str]) -> list[str]:
    """nnU-Net's numbers in names of files, if they alone would say the channel of one; else none."""
    ends = {path: image_stem(path.name).rpartition("_") for path in paths}
    ends = {path: end for path, end in ends.items() if end[0] and NUMBER.fullmatch(end[2])}
    for path, (rest, _, number) in ends.items():
        if int(number) < len(file_channels) and not _by_name(rest, file_channels) and stacked_channels(path) == 1:
            return sorted({number for _, _, number in ends.values()})
    return []


def unnamed_problem(path: str | os.PathLike, file_channels: Sequence[str]) -> str:
    """Why a file whose name says no channel cannot be used: it must have all channels, and several; "" if it has."""
    if 1 < (count := stacked_channels(path)) == len(file_channels):
        return ""
    listed = ", ".join(file_channels)
    return f"must have the channels {listed}, or the name of one in its own, has {count} without a name."


def channel_numbers(channels: Sequence[str], file_channels: Sequence[str]) -> list[int]:
    """
    The place of each channel among those of a file.

    Args:
        channels: names, in any order.
        file_channels: names of all channels of a file, in its order.

    Raises:
        ValueError: if there is none, or a name is there twice or unknown.
    """
    for names in (channels, file_channels):
        if not names:
            raise ValueError("channels must be at least one name, got none.")
        if problem := names_problem(names):
            raise ValueError(problem)
    if unknown := [name for name in channels if name not in file_channels]:
        raise ValueError(f"channels must be of {list(file_channels)}, got {unknown}.")
    return [list(file_channels).index(name) for name in channels]


def group_channels(paths: Iterable[Path], file_channels: Sequence[str]) -> list[ChannelFiles]:
    """
    Groups the files of a case: files in one folder whose names differ by the channel alone, which is the first or last
    words of a name (``t1.nii.gz`` and ``flair.nii.gz``, ``case1_t1.nii.gz`` and ``case1_flair.nii.gz``), in any case,
    or nnU-Net's number (``case1_0000.nii.gz``), the place of the channel in ``file_channels``. A name that fits several
    channels has the one of most words. Files with several channels in one are no part of any group.

    Args:
        paths: of volumes, not of label maps.
        file_channels: names of all channels.

    Returns:
        a group for each case, in the order of its first file.
    """
    groups: dict[tuple[Path, tuple[str, ...]], _Group] = {}
    for path in paths:
        stem = image_stem(path.name)
        said = [*_by_number(stem, file_channels), *_by_name(stem, file_channels)]
        if not said or stacked_channels(path) > 1:
            continue
        channel, rest = said[0]
        key = (path.parent, tuple(_words(rest)))
        place = path.with_name(rest + path.name[len(stem) :]) if key[1] else path.parent
        group = groups.setdefault(key, _Group(place))
        if len(said) > 1 or channel in group.files:
            group.unclear.append(path)
        else:
            group.files[channel] = path
    return [
        ChannelFiles(
            group.place,
            {name: group.files[name] for name in file_channels if name in group.files},
            tuple(group.unclear),
            key,
        )
        for key, group in groups.items()
    ]


def files_beside(groups: Iterable[ChannelFiles], paths: Iterable[Path]) -> set[Path]:
    """The files that are of a case by their folder and the words of their names, but none of its channels."""
    groups = list(groups)
    keys = {group.key for group in groups}
    taken = {path for group in groups for path in (*group.files.values(), *group.unclear)}
    found = set()
    for path in paths:
        words = tuple(_words(image_stem(path.name)))
        parts = (part for size in range(len(words)) for part in (words[:size], words[len(words) - size :]))
        if path not in taken and any((path.parent, part) in keys for part in parts):
            found.add(path)
    return found


@dataclass
class _Group:
    """A case while its files are found."""

    place: Path
    files: dict[str, Path] = field(default_factory=dict)
    unclear: list[Path] = field(default_factory=list)


def _by_number(stem: str, file_channels: Sequence[str]) -> list[tuple[str, str]]:
    """The channel that nnU-Net's number says, and the rest of a name; none or one."""
    rest, _, number = stem.rpartition("_")
    known = rest and NUMBER.fullmatch(number) and int(number) < len(file_channels)
    return [(file_channels[int(number)], rest)] if known else []


def _by_name(stem: str, file_channels: Sequence[str]) -> list[tuple[str, str]]:
    """The channels that the last and first words say, and the rest of a name; two if they say different ones."""
    found, words = list(WORD.finditer(stem)), _words(stem)
    said: dict[str, str] = {}
    wanted = {name: _words(name) for name in file_channels}
    for at_end in (True, False):
        for name in sorted(wanted, key=lambda name: -len(wanted[name])):
            count = len(wanted[name])
            if not 0 < count <= len(words) or wanted[name] != (words[-count:] if at_end else words[:count]):
                continue
            if count == len(words):
                return [(name, "")]
            said.setdefault(name, stem[: found[-count - 1].end()] if at_end else stem[found[count].start() :])
            break
    return list(said.items())


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


def stacked_channels(path: str | os.PathLike) -> int:
    """The number of channels of a NIfTI file by its header; 1 of another file, or if it cannot be read."""
    try:
        if not file_kind(path).startswith("nifti"):
            return 1
        sizes = nifti_size(path)
    except InputError:
        return 1
    return 1 if len(sizes) == 3 else sizes[-1]


def is_volume_list(paths: str | os.PathLike | Sequence[str]) -> bool:
    """Whether these are files of volumes, one for each channel, and not those of a DICOM series or a single path."""
    return not isinstance(paths, (str, os.PathLike)) and all(image_kind(path) in VOLUMES for path in paths)
