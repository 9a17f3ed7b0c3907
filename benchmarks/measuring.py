# SPDX-License-Identifier: Apache-2.0
"""Time and memory of functions."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

__all__ = ["CPU", "interleave", "memory_growth", "spread"]

CPU = torch.device("cpu")
Key = TypeVar("Key", bound=Hashable)


def interleave(
    functions: Mapping[Key, Callable[[], Any]], rounds: int, progress: tqdm, device: torch.device = CPU
) -> dict[Key, list[float]]:
    """
    Seconds of every function, by name, in every round. A round runs each function once, in random order, so that other
    work on the machine disturbs all alike. ``progress`` moves by one for each run.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in functions}
    order, names = random.Random(0), list(functions)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            _synchronize(device)
            started = time.perf_counter()
            result = functions[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - started)
            del result  # freeing it takes no measured time
            progress.update()
    return seconds


def spread(key: str, values: Sequence[float]) -> dict[str, float]:
    """The median under ``key``, the least and the most under ``key_min`` and ``key_max``."""
    return {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}


def memory_growth(function: Callable[[], Any], device: torch.device = CPU) -> int | None:
    """
    Most bytes by which the memory of the GPU, or of this process (Linux), grows while ``function`` runs; None where the
    system does not say. Call the function once before, so that its libraries are loaded.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(AttributeError):  # glibc returns what is free to the system
        CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    except OSError:
        return None
    before = _process_memory("VmRSS")
    function()
    return max(0, _process_memory("VmHWM") - before)


def _process_memory(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
