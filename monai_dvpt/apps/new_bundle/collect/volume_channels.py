# SPDX-License-Identifier: Apache-2.0
"""The channels of volumes: their names, their order, and the files of each case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monai_dvpt.data.channels import (
    ChannelFiles,
    files_beside,
    group_channels,
    names_problem,
    numbers_of_files,
    stacked_channels,
    unnamed_problem,
)
from monai_dvpt.utils import InputError, reason

from ..modalities import modality_of
from .volume_lists import DataList

__all__ = ["HINT", "VolumeChannels", "choose_channels"]

HINT = "if they are channels of all cases, pass their names in their order with --channels A,B"


@dataclass
class VolumeChannels:
    """
    The channels that the volumes of a folder have.

    Attributes:
        names: of those that are taken, in their order; empty where images have one channel, and no name is asked for.
        of_files: of all, in the order of a file that has several, and of nnU-Net's numbers.
        groups: the case of each file that is one channel.
        others: files beside those of a case that are none of its channels.
        numbered: whether a list says which channel a number is.
        complete: whether any case has all that are taken.
    """

    names: list[str] = field(default_factory=list)
    of_files: list[str] = field(default_factory=list)
    groups: dict[Path, ChannelFiles] = field(default_factory=dict)
    others: set[Path] = field(default_factory=set)
    numbered: bool = True
    complete: bool = False

    @property
    def modality(self) -> str:
        """Of the first, as in DICOM; "" if its name does not say."""
        return modality_of(self.names[0]) if self.names else ""

    def find_files(self, paths: Sequence[Path]) -> None:
        """
        Groups files, which must be no label maps.

        Raises:
            InputError: if their names have nnU-Net's numbers, and no list names these.
        """
        if not self.numbered and (numbers := numbers_of_files(paths, self.of_files)):
            raise InputError(
                f"dataset.json must name the channel of every number, as in "
                f'"channel_names": {{"0": "t1", "1": "t2"}}, files have the numbers {", ".join(numbers)}.'
            )
        found = group_channels(paths, self.of_files)
        self.others = files_beside(found, paths)
        self.complete = any(1 < stacked_channels(path) == len(self.of_files) for path in paths)
        for group in found:
            self.complete |= not group.unclear and all(name in group.files for name in self.names)
            self.groups |= dict.fromkeys((*group.files.values(), *group.unclear), group)

    def files_of(self, path: Path) -> tuple[list[Path], str]:
        """The files of the case that a file is of, and why they cannot be used; no files where it is no channel."""
        if (group := self.groups.get(path)) is None:
            return [], ""
        try:
            return group.paths_of(self.names), ""
        except InputError as error:
            return [*group.files.values(), *group.unclear], f"{reason(error)} {self._hint(group)}"

    def _hint(self, group: ChannelFiles) -> str:
        """What to pass where a channel is missing."""
        if group.unclear:
            return "Rename them, or leave the case out with --leave-out." if self.complete else "Rename them."
        everywhere = [name for name in self.names if all(name in each.files for each in self.groups.values())]
        if not self.complete:
            taken = f"Take those that all cases have, --channels {','.join(everywhere)}." if everywhere else ""
            return f"No case has all. {taken}".strip()
        others = f", or take those that all cases have, --channels {','.join(everywhere)}" if everywhere else ""
        return f"Leave such cases out with --leave-out{others}."

    def problem_of(self, path: Path) -> str:
        """Why a file whose name says no channel cannot be used: it must have all channels, and several."""
        if self.names:
            return unnamed_problem(path, self.of_files)
        count = stacked_channels(path)
        return f"must be one 3D volume, has {count} channels; {HINT}." if count > 1 else ""


def choose_channels(given: Sequence[str], lists: Sequence[DataList]) -> VolumeChannels:
    """
    Args:
        given: names of the channels that the user asks for, in their order.
        lists: of the folder, which may name the channels.

    Raises:
        InputError: if lists name different channels, or the user asks for one that they do not name, or for one twice.
    """
    named = list(dict.fromkeys(tuple(each.channels) for each in lists if len(each.channels) > 1))
    if len(named) > 1:
        raise InputError(f"every dataset.json must name the same channels, got {named[0]} and {named[1]}.")
    of_files = list(named[0]) if named else list(given)
    known = {name.casefold(): name for name in of_files}
    if len({name.casefold() for name in given}) < len(given):
        raise InputError(f"--channels must name each channel once, got {','.join(given)}.")
    if problem := names_problem(of_files):
        raise InputError(f"{'dataset.json' if named else '--channels'}: {problem}")
    if unknown := [name for name in given if name.casefold() not in known]:
        raise InputError(f"--channels must be of {','.join(of_files)}, as dataset.json names them, got {unknown[0]!r}.")
    single = [[name.casefold() for name in each.channels] for each in lists]
    numbered = bool(named) or [*known] in single
    return VolumeChannels([known[name.casefold()] for name in given] or of_files, of_files, numbered=numbered)
