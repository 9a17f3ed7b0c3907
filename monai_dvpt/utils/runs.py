# SPDX-License-Identifier: Apache-2.0
"""What every run of a bundle begins with."""

from __future__ import annotations

import os
from pathlib import Path

from .command_line import check_command_line
from .errors import InputError, report_input_errors
from .files import remove_leftovers
from .locks import lock_folder

__all__ = ["prepare_run"]


def prepare_run(output_dir: str | os.PathLike, locked_as: str | None = None) -> None:
    """
    Called by the ``initialize`` of the bundles' configs, before anything else: from now on errors of input are one
    line; options of ``python -m monai.bundle`` have arrived as they were typed; ``output_dir`` is there and can be
    written; what a killed run left half written in it is gone; and, for a run that must be alone in it, no other run
    uses it.

    Args:
        output_dir: folder of the results.
        locked_as: what the run is called, such as "training", if it must be alone. Of a distributed run the first
            process takes the lock.

    Raises:
        InputError: if an option did not arrive as typed, or the folder cannot be written or is in use.
    """
    report_input_errors()
    check_command_line()
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written: permission denied.")
    if locked_as is not None and os.environ.get("RANK", "0") == "0":
        lock_folder(folder, locked_as)
    remove_leftovers(folder)
