# SPDX-License-Identifier: Apache-2.0
"""Facts on which times depend."""

from __future__ import annotations

import os
import platform
from typing import Any

import monai
import torch

from monai_dvpt import __version__

__all__ = ["machine_facts"]


def machine_facts() -> dict[str, Any]:
    """Processors, threads and versions."""
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
