# SPDX-License-Identifier: Apache-2.0
"""What times and memory depend on, and the memory of this process."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import monai
import torch

from monai_dvpt import __version__

__all__ = ["machine_facts", "process_memory"]


def machine_facts() -> dict[str, Any]:
    """What the times depend on: processors, threads, versions."""
    return {
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "monai_dvpt": __version__,
    }


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
