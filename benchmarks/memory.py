# SPDX-License-Identifier: Apache-2.0
"""The memory of this process."""

from __future__ import annotations

from pathlib import Path

__all__ = ["process_memory"]


def process_memory(name: str) -> int | None:
    """
    Memory of this process, in bytes; None where the system does not say.

    Args:
        name: as in Linux's ``/proc/self/status``: "VmRSS", what is in memory now, or "VmHWM", the most there was.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
