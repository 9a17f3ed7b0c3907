# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt versions``: the adapters that MONAI Label trained for a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_dvpt.apps.monailabel.adapter_versions import SHIPPED, AdapterVersions
from monai_dvpt.networks.adapter import adapter_metadata, merge_full, save_adapter
from monai_dvpt.utils import InputError, to_json

from .adapter import BACKBONE_HELP
from .command_line import columns, printable

__all__ = ["add_parser"]

HEADINGS = ("", "version", "created", "method", "score", "before", "scored on", "cases", "epochs", "seconds", "bytes")


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser(
        "versions",
        help="list the adapters that MONAI Label trained, choose one, or export one",
        description="Lists the versions of a bundle's adapter that the MONAI Label app trained, and marks the one in "
        'use. "before" is the score on the same cases of the version that was in use then.',
        epilog="example: python -m monai_dvpt versions studies/adapters/BUNDLE --use v1",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the bundle's versions")
    parser.add_argument("--json", action="store_true", help="all facts, as JSON")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--use", metavar="NAME", help=f'put this version in use; "{SHIPPED}" is what the bundle came with'
    )
    action.add_argument(
        "--export", metavar="NAME", help="write this version with all its parts, for the bundle's configs"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write, .safetensors")
    parser.add_argument("--backbone", type=Path, metavar="FILE", help=BACKBONE_HELP)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    versions = AdapterVersions.open(arguments.folder)
    if not arguments.export and (arguments.output or arguments.backbone):
        raise InputError("--output and --backbone must come with --export.")
    if arguments.export:
        _export(versions, arguments.export, arguments.output, arguments.backbone)
        return
    if arguments.use:
        versions.use(arguments.use)
    if arguments.json:
        print(to_json({"in_use": versions.active, "versions": versions.records()}))
        return
    for line in columns(list(_rows(versions))):
        print(printable(line))


def _export(versions: AdapterVersions, name: str, output: Path | None, backbone: Path | None) -> None:
    if output is None:
        raise InputError("--output must be given with --export.")
    if output.exists():
        raise InputError(f"{output}: must not exist.")
    labels = adapter_metadata(versions.shipped)["labels"]
    network = versions.load(merge_full(versions.shipped, backbone), name, labels)
    notes = {**adapter_metadata(versions.file_of(name))["notes"], "version": name}
    save_adapter(network, output, labels=labels, notes=notes)
    print(f"wrote {output}: {output.stat().st_size:,} bytes, {name} with all its parts")


def _rows(versions: AdapterVersions) -> Iterator[tuple[str, ...]]:
    yield HEADINGS
    active = versions.active
    yield ("*" if active == SHIPPED else "", SHIPPED, *[""] * (len(HEADINGS) - 2))
    for record in versions.records():
        method, scored_on, epochs, seconds = (
            str(record.get(key, "")) for key in ("method", "scored_on", "epochs", "seconds")
        )
        scores = ("" if record.get(key) is None else f"{record[key]:.4f}" for key in ("score", "score_in_use_before"))
        cases = f"{len(record.get('training_cases', []))} + {len(record.get('validation_cases', []))}"
        name, size = record["name"], f"{record['bytes']:,}"
        mark = "*" if name == active else ""
        yield (mark, name, record["created"], method, *scores, scored_on, cases, epochs, seconds, size)
