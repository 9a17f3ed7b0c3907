# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one training step on this machine, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MAX_SECONDS", "MAX_SHARE", "TIMEOUT", "MeasureSteps", "Step", "measure_steps"]

MAX_SECONDS = 3.0
"""Of a training step: 1,000 of them then take less than an hour."""
MAX_SHARE = 0.5
"""Of the memory, for a training step."""
TIMEOUT = 180
"""Seconds for all steps."""


@dataclass(frozen=True)
class Step:
    """
    One training step.

    Attributes:
        seconds: of its second run.
        share: its peak memory over that of the machine, or of its GPU.
        device: "CPU" or the name of the GPU.
    """

    seconds: float
    share: float
    device: str

    @property
    def fits(self) -> bool:
        return self.seconds <= MAX_SECONDS and self.share <= MAX_SHARE


MeasureSteps = Callable[[str, Sequence[Mapping[str, Any]], int], list[Step]]
"""As :func:`measure_steps`."""


def measure_steps(network: str, arguments: Sequence[Mapping[str, Any]], batch_size: int) -> list[Step]:
    """
    Trains networks of random weights for two steps on random images, smallest first, until one does not fit.

    Args:
        network: name of a class of :mod:`monai_dvpt.networks.nets`.
        arguments: of each network, smallest first, with "img_size", "in_channels" and "out_channels".
        batch_size: images of a step.

    Returns:
        a step for each network up to the first that took too long or too much memory; that one is missing where its
        process was ended by the system or was too slow to measure.
    """
    task = json.dumps({"network": network, "arguments": list(arguments), "batch_size": batch_size})
    command = [sys.executable, "-W", "ignore", "-m", __name__, task]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False).stdout
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    return [Step(**json.loads(line)) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def _measure(task: Mapping[str, Any]) -> None:
    from monai.losses import DiceCELoss

    import monai_dvpt.networks.nets as nets
    from monai_dvpt.networks.parts import freeze_backbone

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    for arguments in task["arguments"]:
        network = getattr(nets, task["network"])(**arguments)
        network = freeze_backbone(network, ["method", "decoder", "head"]).to(device)
        optimizer = torch.optim.AdamW([tensor for tensor in network.parameters() if tensor.requires_grad])
        size, classes = arguments["img_size"], arguments["out_channels"]
        image = torch.randn(task["batch_size"], arguments["in_channels"], *size, device=device)
        label = torch.randint(classes, (task["batch_size"], 1, *size), device=device)
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            loss(network(image), label).backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        name = torch.cuda.get_device_name() if cuda else "CPU"
        step = Step(round(seconds, 3), round(_peak_share(cuda), 4), name)
        print(json.dumps(step.__dict__), flush=True)
        if not step.fits:
            return


def _peak_share(cuda: bool) -> float:
    if cuda:
        return torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    import resource  # not on Windows

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return 1024 * kilobytes / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


if __name__ == "__main__":
    _measure(json.loads(sys.argv[1]))
