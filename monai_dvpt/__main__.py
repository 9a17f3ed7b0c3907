# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from monai_dvpt import benchmark
from monai_dvpt.commands import adapter, backbone, dicom, new, report, run_commands, versions

COMMANDS = [new, report, adapter, backbone, dicom, versions, benchmark]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, see :func:`run_commands`."""
    description = "Tools around networks with dynamic visual prompt tuning. For research only."
    return run_commands("python -m monai_dvpt", description, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
