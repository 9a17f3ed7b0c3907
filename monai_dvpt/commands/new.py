# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt new``: looks at a folder of data and writes a bundle for it."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai_dvpt.apps.new_bundle import SHIPPED, NewBundle, Options, check_new, new_secret, update_bundle
from monai_dvpt.apps.new_bundle.collect import TASKS
from monai_dvpt.apps.new_bundle.model import Finding
from monai_dvpt.utils import InputError

from .command_line import columns, say

__all__ = ["add_data_options", "add_parser", "data_options", "look_and_say"]

OPTIONS = (
    *("backbone", "search", "task", "table", "outputs", "grades", "columns"),
    *("labels", "label_names", "ignore", "drawn", "channels", "patient_pattern"),
)
"""What a user says about the data."""
MOST = 5
"""Findings of one rule that are listed."""


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser(
        "new",
        help="write a bundle for a folder of data",
        description="Looks at a folder of images with segmentations, or with a table of grades or classes, lists what "
        "is odd, and writes a complete bundle that monai.bundle trains. Reads NIfTI, NRRD, MetaImage, DICOM, PNG and "
        "JPEG; segmentations also as DICOM SEG, RTSTRUCT and 3D Slicer's NRRD. Names no patient. Writes nothing while "
        "there is an error.",
        epilog="example: python -m monai_dvpt new studies --output liver; then, in the folder liver: "
        "python -m monai.bundle run --config_file configs/train.yaml",
    )
    parser.add_argument("data", type=Path, metavar="DATA", nargs="?", help="folder of images and labels, any depth")
    parser.add_argument("--output", type=Path, metavar="BUNDLE", help="folder to write; it must not exist")
    parser.add_argument("--update", type=Path, metavar="BUNDLE", help="bring a bundle up to date with its data")
    parser.add_argument("--check", action="store_true", help="only look, and write nothing")
    parser.add_argument(
        "--backbone",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="pretrained weights; pictures need them; of several, of which shipped stands for those of the package, a "
        "linear probe on the training cases chooses one",
    )
    parser.add_argument(
        "--search", type=_minutes, metavar="MINUTES", help="search the rates by short trainings on the training cases"
    )
    add_data_options(parser)
    parser.set_defaults(run=_run)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds what a user says about a folder of data, see :func:`data_options` and :func:`look_and_say`."""
    parser.add_argument("--leave-out", action="store_true", help="leave out cases with errors")
    parser.add_argument("--all", action="store_true", help="list every finding, not the first of a kind alone")
    parser.add_argument("--task", choices=TASKS, default="", help="where the labels fit several")
    parser.add_argument("--table", default="", metavar="FILE", help="table of grades, classes or masks; else searched")
    parser.add_argument("--outputs", type=_names, default=(), metavar="A,B", help="columns with what is graded")
    parser.add_argument("--grades", type=_names, default=(), metavar="A,B", help="grades in order, or classes")
    parser.add_argument(
        "--columns", type=_pairs, default={}, metavar="OURS=THEIRS,...", help="the table's image, patient, split, mask"
    )
    parser.add_argument("--labels", type=_names, default=(), metavar="A,B", help="labels to segment, in their order")
    parser.add_argument(
        "--label-names",
        type=_pairs,
        default={},
        metavar="1=A,2=B",
        help="names of label values, or of colours as ff0000",
    )
    parser.add_argument("--ignore", type=_names, default=(), metavar="A,B", help="labels whose voxels train nothing")
    parser.add_argument(
        "--drawn",
        type=_names,
        default=(),
        metavar="A,B",
        help="what of the label maps was drawn: all; labels, those that a case has; sagittal, coronal or axial, planes "
        "with a label; voxels, those with a label, as in scribbles",
    )
    parser.add_argument(
        "--channels", type=_names, default=(), metavar="A,B", help="channels of volumes to take, in their order"
    )
    parser.add_argument("--patient-pattern", default="", metavar="REGEX", help="finds the patient in an image's path")


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (minutes := float(text)) < math.inf:
            return minutes
    raise argparse.ArgumentTypeError(f"must be a number of minutes above 0, got {text}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(text: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(equals and key.strip() and value.strip() for key, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, separated by commas, got {text!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _label_value(text: str) -> int:
    """A number, or a colour in hexadecimal digits, perhaps after 0x."""
    return int(text) if text.isdecimal() else int(text, 16)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.update is not None:
        if arguments.data is not None or arguments.output is not None:
            raise InputError("--update must stand without DATA and --output: the bundle knows its folder of data.")
        if given := [name for name in OPTIONS if getattr(arguments, name)]:
            rule = "--update must stand alone, with --check, --leave-out or --all at most: the bundle keeps its options"
            raise InputError(f"{rule}, got --{given[0].replace('_', '-')}.")
        new = update_bundle(arguments.update)
    else:
        if arguments.data is None:
            hint = ", before --backbone, which takes all names that follow it" if arguments.backbone else ""
            raise InputError(f"DATA must be given, the folder of images and labels{hint}.")
        if arguments.output is None and not arguments.check:
            raise InputError("--output must be given, the folder of the new bundle; or --check, to look only.")
        if arguments.output is not None and not arguments.check:
            check_new(arguments.output)
        if arguments.check and arguments.search is not None:
            raise InputError("--search must stand without --check, which only looks.")
        backbone = _backbone(arguments.backbone or [])
        new = NewBundle(arguments.data, data_options(arguments), backbone, search_minutes=arguments.search)
    look_and_say(new, arguments, to_write=arguments.update is None and not arguments.check)
    if arguments.check:
        return
    output = arguments.update or arguments.output
    for line in new.write(output):
        say(line)


def look_and_say(new: NewBundle, arguments: argparse.Namespace, to_write: bool = False) -> None:
    """
    Looks at the data, and says what they are and what is odd; ``to_write`` as in :meth:`NewBundle.look`.

    Raises:
        InputError: if there is an error in them.
    """
    new.look(leave_out=arguments.leave_out, to_write=to_write)
    for line in (*new.summary(), *_findings(new.findings, MOST if not arguments.all else len(new.findings))):
        say(line)
    if errors := sum(finding.error for finding in new.findings):
        hint = "mend the data" + ", or leave cases with errors out with --leave-out" * new.can_leave_out()
        raise InputError(f"{errors} error{'s' * (errors > 1)} in the data, nothing is written; {hint}.")


def _backbone(files: Sequence[Path]) -> Path | None | list[Path | None]:
    """One file of weights or several, None for those of the package."""
    found = [None if str(file) == SHIPPED else file for file in files] or [None]
    return found[0] if len(found) == 1 else found


def data_options(arguments: argparse.Namespace) -> Options:
    """The options that a user gave, with a key of their own."""
    try:
        names = {_label_value(value): name for value, name in arguments.label_names.items()}
    except ValueError:
        rule = "--label-names must give a name to whole numbers, or to colours such as ff0000"
        raise InputError(f"{rule}, got {arguments.label_names}.") from None
    return Options(
        task=arguments.task,
        table=arguments.table,
        outputs=arguments.outputs,
        columns=arguments.columns,
        grades=arguments.grades,
        labels=arguments.labels,
        label_names=names,
        ignored=arguments.ignore,
        channels=arguments.channels,
        drawn=arguments.drawn,
        patient_pattern=arguments.patient_pattern,
        secret=new_secret(),
    )


def _findings(findings: Sequence[Finding], most: int) -> Iterator[str]:
    """A line for each finding, errors first, and how many of a kind are not listed."""
    if not findings:
        yield "nothing is odd"
        return
    listed: Counter[tuple[bool, str]] = Counter()
    rows = []
    more: Counter[tuple[bool, str]] = Counter()
    for finding in sorted(findings, key=lambda each: not each.error):
        kind = (finding.error, finding.rule)
        listed[kind] += 1
        if listed[kind] > most:
            more[kind] += 1
            continue
        where = f"{finding.where}: " if finding.where else ""
        rows.append(("error" if finding.error else "note", finding.rule, where + finding.message))
    yield from columns(rows)
    for (error, rule), count in more.items():
        yield f"{'error' if error else 'note'}  {rule}: {count} more (--all lists them)"
