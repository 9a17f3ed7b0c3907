# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import adapters, cost, dicom_series
from monai_dvpt.commands import run_commands

DESCRIPTION = "Measures on this machine what dynamic visual prompt tuning costs and saves."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_commands("python -m benchmarks", DESCRIPTION, [adapters, cost, dicom_series], argv)


if __name__ == "__main__":
    sys.exit(main())
