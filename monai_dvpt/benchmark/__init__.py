# SPDX-License-Identifier: Apache-2.0
"""What the method costs and saves, measured on the machine at hand: ``python -m monai_dvpt.benchmark --help``."""

from __future__ import annotations

from typing import Any

from . import adapters, cost, dicom, study

__all__ = ["COMMANDS", "DESCRIPTION", "add_parser"]

COMMANDS = [adapters, cost, study, dicom]
DESCRIPTION = "Measures on this machine what dynamic visual prompt tuning costs and saves."


def add_parser(commands: Any) -> None:
    """
    Args:
        commands: what ``add_subparsers`` gave.
    """
    parser = commands.add_parser("benchmark", help="what DVPT costs and saves on this machine", description=DESCRIPTION)
    measures = parser.add_subparsers(title="measures", metavar="MEASURE", required=True)
    for module in COMMANDS:
        module.add_parser(measures)
