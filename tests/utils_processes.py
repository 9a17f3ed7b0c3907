# SPDX-License-Identifier: Apache-2.0
"""Other processes."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def ended_process() -> int:
    """Number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def is_running(process: int) -> bool:
    """Whether a process is there, and not only waits to be taken off the list."""
    try:
        return _stat(process)[0] != "Z"
    except OSError:
        return False


def children(process: int) -> set[int]:
    """The processes that a process, or one of its children, has started."""
    found: set[int] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if _stat(int(name))[1] == str(process):
                found |= {int(name), *children(int(name))}
    return found


def _stat(process: int) -> list[str]:
    """Its state, the number of its parent, and more."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def wait_until(condition, seconds: float) -> bool:
    """Whether a condition comes true within a time, which is a bound against waiting for ever."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
