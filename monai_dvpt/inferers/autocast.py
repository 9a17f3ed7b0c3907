# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on any device; MONAI's engines autocast only on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from monai_dvpt.utils import as_bool

__all__ = ["AutocastInferer", "bfloat16_is_fast"]


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Whether hardware multiplies matrices in bfloat16: CUDA from compute capability 8, CPU with AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("amx_bf16"))


class AutocastInferer(Inferer):
    """
    Runs another inferer under bfloat16 autocast and returns its result in float32. For speed the network gets a plain
    tensor instead of a ``MetaTensor``; the result has the same metadata again.

    Args:
        inferer: the inferer to run.
        enabled: False computes in the network's precision; also "true" or "false", as from MONAI's command line.

    Raises:
        ValueError: if ``enabled`` is something else.
    """

    def __init__(self, inferer: Inferer, enabled: bool | str = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.enabled = as_bool("enabled", enabled)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.enabled):
            outputs = self.inferer(plain, network, *args, **kwargs).float()
        return MetaTensor(outputs).copy_meta_from(inputs, copy_attr=False) if inputs is not plain else outputs
