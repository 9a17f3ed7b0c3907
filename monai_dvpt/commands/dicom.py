# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt dicom list``: the DICOM series of a folder, and which can be read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.data.dicom import DicomSeries, find_series
from monai_dvpt.utils import InputError, to_json

from .command_line import columns, printable

__all__ = ["add_parser"]

HEADINGS = ("verdict", "modality", "size", "spacing, mm", "orientation", "times", "stacks", "files", "description")
MAX_NAMED = 10
"""The most set-aside files of a series that the table names; JSON names all."""


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser("dicom", help="look at folders of DICOM files")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="lists the series of a folder and says which can be read",
        description="Lists the DICOM series of a folder, at any depth, from their headers. Names no patient. "
        "Verdicts: ok; tilted (read with --dicom_reader#tilt resample); choose (read with a stack or a "
        "time_point); refused, with the reason; localizer; single (one slice); no volume.",
        epilog="example: python -m monai_dvpt dicom list studies",
    )
    listing.add_argument("folder", type=Path, metavar="FOLDER", help="folder, or one file of a series")
    listing.add_argument("--json", action="store_true", help="all facts, as JSON")
    listing.add_argument(
        "--merge-acquisitions", action="store_true", help="take slices of several acquisitions as one volume"
    )
    listing.set_defaults(run=_run_list)


def _run_list(arguments: argparse.Namespace) -> None:
    found = find_series(arguments.folder, arguments.merge_acquisitions, progress=True)
    if arguments.json:
        print(to_json([{**series.facts(), "files": len(series.files)} for series in found]))
        return
    if not found:
        raise InputError(f"{arguments.folder}: must hold DICOM files, found none.")
    for line in _table(found):
        print(printable(line))


def _table(found: Sequence[DicomSeries]) -> Iterator[str]:
    """A line for each study; below it, for each series, its row, its UID with the reason, and its set-aside files."""
    headings, *rows = columns([HEADINGS, *map(_cells, found)])
    yield headings
    study = None
    for series, row in zip(found, rows, strict=True):
        if series.study_uid != study:
            study = series.study_uid
            yield f"study {study or 'without a UID'}"
        yield row
        yield f"    series {series.series_uid or 'without a UID'}{f': {series.reason}' if series.reason else ''}"
        if series.set_aside:
            named = "; ".join(" ".join(each) for each in series.set_aside[:MAX_NAMED])
            more = f"; and {len(series.set_aside) - MAX_NAMED} more" if len(series.set_aside) > MAX_NAMED else ""
            yield f"    {len(series.set_aside)} of {len(series.files)} files are set aside: {named}{more}"


def _cells(series: DicomSeries) -> tuple[str, ...]:
    spacing = "" if series.spacing_mm is None else "x".join(f"{side:.4g}" for side in series.spacing_mm)
    size = "x".join(map(str, series.size)) if series.size[0] else ""
    counts = (str(series.time_points), str(series.stacks), str(len(series.files)))
    return series.verdict, series.modality, size, spacing, series.orientation, *counts, series.description
