# SPDX-License-Identifier: Apache-2.0
"""Compares backbones on data as :class:`NewBundle` reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from monai_dvpt.apps.probe import ProbeTable, probe_backbones
from monai_dvpt.networks.pretrained import find_weights
from monai_dvpt.utils import InputError

from .collect.volume_lists import NAMES
from .model import Options
from .new import NewBundle
from .state import STATE, read_state
from .trials import SHIPPED, Probing, backbone_names, count_drawn

__all__ = ["BackboneComparison", "data_to_compare"]

LEFT_OUT = "test"
"""Part whose cases no choice may depend on."""


def data_to_compare(data: str | os.PathLike, options: Options) -> NewBundle:
    """
    The data to compare backbones on, not yet looked at.

    Args:
        data: a folder of images and labels; or a list of them, whose paths are relative to its folder or, if ``new``
            wrote it into a bundle, to the folder of data of that bundle.
        options: what the user says about them.

    Raises:
        InputError: if there is neither, or a list and ``options.table``.
    """
    path = Path(data)
    if not path.is_file():
        return NewBundle(path, options)
    if options.table:
        raise InputError(f"{path}: is a list already, so --table must not be given.")
    is_volume_list = path.name in NAMES
    if (path.parent / STATE.name).is_file():
        known, state = read_state(path.absolute().parent.parent)
        if is_volume_list:
            return NewBundle(state["data"], known, before=state["parts"])
        return NewBundle(state["data"], replace(options, table=os.path.abspath(path)))
    return NewBundle(path.parent, options if is_volume_list else replace(options, table=path.name))


class BackboneComparison:
    """
    Probes of several backbones on the cases of a folder, without those of its test part.

    Args:
        new: the data, looked at.
        sources: files, folders or Hugging Face repositories of weights; "shipped" for those of the package.
        most: how many cases to take at most; None for as many as ``new`` takes to choose a backbone.

    Raises:
        InputError: if a source is there twice or cannot be used, or there are too few patients.
    """

    def __init__(self, new: NewBundle, sources: Sequence[str], most: int | None = None) -> None:
        files = [None if source == SHIPPED else find_weights(source) for source in sources]
        short = iter(backbone_names(files))  # refuses a file that is there twice
        names = [
            name if file is None or Path(source).exists() else source
            for source, file, name in zip(sources, files, short, strict=True)
        ]
        self.collection = new.collection
        indices = sorted(index for part, cases in new.parts.items() if part != LEFT_OUT for index in cases)
        count = count_drawn(self.collection, indices) if most is None else most
        self.probing = Probing(self.collection, new.measured, indices, files, names, count)

    def summary(self) -> Iterator[str]:
        """What is compared, before it is."""
        names, patients = self.probing.names, self.probing.patients
        backbones = f"{len(names)} backbone{'s' * (len(names) > 1)}"
        yield f"compare {backbones} on {len(patients)} cases of {len(set(patients))} patients"

    def run(self) -> ProbeTable:
        """
        Raises:
            InputError: if a backbone cannot be used on these cases, or no score is defined.
        """
        with self.probing.naming_backbone():
            return probe_backbones(self.probing.candidates(), self.probing.labels, self.probing.patients)

    def write(self, table: ProbeTable, folder: str | os.PathLike) -> list[Path]:
        """See :meth:`ProbeTable.write`."""
        return table.write(folder, self.probing.labels, self.collection.outputs)
