# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt.benchmark COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from monai_dvpt.benchmark import COMMANDS, DESCRIPTION
from monai_dvpt.commands import run_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_commands("python -m monai_dvpt.benchmark", DESCRIPTION, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
