# SPDX-License-Identifier: Apache-2.0
"""Measurements on a bundle and its data: ``python -m monai_dvpt.benchmark --help``."""

from __future__ import annotations

from typing import Any

from . import coverage, study
from .study import join

__all__ = ["COMMANDS", "DESCRIPTION", "add_parser"]

COMMANDS = [study, join, coverage]
DESCRIPTION = (
    "Measures what dynamic visual prompt tuning is worth on a bundle and its data, and if prediction sets hold."
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("benchmark", help="what DVPT is worth on a bundle", description=DESCRIPTION)
    measures = parser.add_subparsers(title="measures", metavar="MEASURE", required=True)
    for module in COMMANDS:
        module.add_parser(measures)
