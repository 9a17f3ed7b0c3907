# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt report``: a page about a bundle's data and results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_dvpt.apps.report import write_report

from .command_line import printable

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser(
        "report",
        help="write a page about a bundle's data, training, evaluation and inference",
        description="Writes report.html, one file that loads nothing from elsewhere: what is known of a bundle's data, "
        "its training, evaluation with intervals and pictures, inference, and what they cost. What is not there is "
        "left out.",
        epilog="example: python -m monai_dvpt report bundles/hippocampus_mri_dvpt_unetr_segmentation",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write, by default BUNDLE/report.html")
    for name in ("train", "evaluate", "inference"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"its results, by default BUNDLE/output/{name}")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    folders = (arguments.train, arguments.evaluate, arguments.inference)
    path = write_report(arguments.bundle, arguments.output, *folders)
    print(f"wrote {printable(path)}: {path.stat().st_size:,} bytes")
