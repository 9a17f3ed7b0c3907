# SPDX-License-Identifier: Apache-2.0
"""Measures all variants of a network side by side."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn as nn
from tqdm import tqdm

from benchmarks.measuring import CPU, interleave, spread
from monai_dvpt.networks.adapter import save_adapter
from monai_dvpt.networks.parts import TunableNetwork

from .measure import Trial, count_flops, peak_bytes, saved_bytes
from .variants import REFERENCE, VARIANTS, Network, build_variant

__all__ = ["measure_cost"]

RESULTS = [
    *("step_seconds", "step_seconds_ratio", "step_seconds_ratio_min", "step_seconds_ratio_max"),
    *("step_seconds_fastest_ratio", "inference_seconds_fastest_ratio"),
    *("step_flops", "step_flops_ratio", "saved_bytes", "saved_bytes_ratio", "peak_bytes", "peak_bytes_ratio"),
    *("inference_seconds", "inference_seconds_ratio", "inference_seconds_ratio_min", "inference_seconds_ratio_max"),
    *("inference_flops", "inference_flops_ratio"),
    *("cached_bytes", "kept_bytes", "encoder_parameters", "head_parameters"),
]
"""Keys of a result; None where not measured."""


def measure_cost(
    networks: Mapping[str, Network],
    methods: Sequence[str] = tuple(VARIANTS),
    rounds: int = 7,
    device: torch.device = CPU,
    amp: bool = False,
    peak_memory: bool = True,
) -> tuple[list[dict[str, Any]], list[str]]:
    """
    Measures variants on networks with random weights. All ratios are to ``REFERENCE``, which is always measured; those
    of times are medians over the rounds, with minimum and maximum, and those of the fastest runs, which other work on
    the machine disturbs least.

    Args:
        networks: by name.
        methods: names of ``VARIANTS``.
        rounds: how often each step is timed.
        device: where to compute.
        amp: whether to use bfloat16 autocast.
        peak_memory: whether to measure it; on a CPU each variant then runs once more, in its own process.

    Returns:
        for each network and variant "network", "method", "batch" and the keys of ``RESULTS``; and a line for each
        variant that was left out.
    """
    names = [name for name in VARIANTS if name in {REFERENCE, *methods}]
    results, left_out = [], []
    total = len(networks) * sum(_steps(name, rounds, peak_memory) for name in names)
    with tqdm(total=total, unit="step") as progress, torch.random.fork_rng(devices=[]):
        for title, network in networks.items():
            progress.set_description(title)
            run = _Run(network, device, amp)
            for name in names:
                try:
                    run.add(name)
                except ValueError as error:
                    if name == REFERENCE:
                        raise
                    left_out.append(f"{title}, {name}: {error}")
                    progress.update(_steps(name, rounds, peak_memory))
            run.measure(rounds, peak_memory, progress)
            results += [{"network": title, **row} for row in run.rows()]
    return results, left_out


class _Run:
    """The variants of one network."""

    def __init__(self, network: Network, device: torch.device, amp: bool) -> None:
        torch.manual_seed(0)
        self.network, self.device, self.amp = network, device, amp
        self.template = network.dvpt().to(device)
        self.trials: dict[str, Trial] = {}
        self.values: dict[str, dict[str, Any]] = {}

    def add(self, name: str) -> None:
        net = build_variant(name, self.network, self.template)
        trial = self.trials[name] = Trial(net, self.network, VARIANTS[name].cached, self.amp)
        self.values[name] = {"method": name, "batch": self.network.batch, **dict.fromkeys(RESULTS)}
        if trial.inputs[1:]:
            self.values[name]["cached_bytes"] = sum(t.numel() * t.element_size() for t in trial.inputs[1:])

    def measure(self, rounds: int, peak_memory: bool, progress: tqdm) -> None:
        states: dict[Any, torch.Tensor] = {}
        for name, trial in self.trials.items():
            trial.step()  # warms up
            trial.share_states(states)
            self.values[name] |= {
                "saved_bytes": saved_bytes(trial.forward, trial.held()),
                "step_flops": count_flops(trial.step),
                "kept_bytes": _kept_bytes(trial.net, VARIANTS[name].all_kept),
                **_trained(trial.net, self.template),
            }
            progress.update()
        steps = {name: trial.step for name, trial in self.trials.items()}
        self._add_times("step_seconds", interleave(steps, rounds, progress, self.device))
        if peak_memory:
            for name, trial in self.trials.items():
                peak = peak_bytes(trial) if self.device.type == "cuda" else self._peak_alone(name)
                self.values[name]["peak_bytes"] = peak
                progress.update()
        inferring = {name: trial for name, trial in self.trials.items() if VARIANTS[name].infers}
        with torch.inference_mode():
            for name, trial in inferring.items():
                trial.net.eval()
                trial.infer()  # warms up
                self.values[name]["inference_flops"] = count_flops(trial.infer)
            inferences = {name: trial.infer for name, trial in inferring.items()}
            self._add_times("inference_seconds", interleave(inferences, rounds, progress, self.device))

    def rows(self) -> list[dict[str, Any]]:
        """Results with ratios."""
        for key in ("step_flops", "saved_bytes", "peak_bytes", "inference_flops"):
            base = self.values[REFERENCE][key]
            for row in self.values.values():
                row[f"{key}_ratio"] = row[key] / base if base and row[key] is not None else None
        return list(self.values.values())

    def _add_times(self, key: str, seconds: Mapping[str, Sequence[float]]) -> None:
        for name, times in seconds.items():
            ratios = [one / base for one, base in zip(times, seconds[REFERENCE], strict=True)]
            self.values[name] |= {
                key: statistics.median(times),
                f"{key}_fastest_ratio": min(times) / min(seconds[REFERENCE]),
                **spread(f"{key}_ratio", ratios),
            }

    def _peak_alone(self, name: str) -> int | None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak, name, self.network, self.amp, torch.get_num_threads()).result()


def _peak(name: str, network: Network, amp: bool, threads: int) -> int | None:
    torch.set_num_threads(threads)
    run = _Run(network, CPU, amp)
    run.add(name)
    return peak_bytes(run.trials[name])


def _steps(name: str, rounds: int, peak_memory: bool) -> int:
    """Steps of a variant in the progress bar."""
    return 1 + rounds + peak_memory + VARIANTS[name].infers * rounds


def _kept_bytes(net: nn.Module, all_kept: bool) -> int:
    """Bytes of the file that a task adds."""
    if isinstance(net, TunableNetwork) and not all_kept:
        with tempfile.TemporaryDirectory() as folder:
            return save_adapter(net, Path(folder) / "adapter.safetensors").stat().st_size
    tensors = net.state_dict() if all_kept else {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _trained(net: nn.Module, template: TunableNetwork) -> dict[str, int]:
    """Numbers of trained parameters: of encoder and method, and of head and decoder."""
    counts = {"encoder_parameters": 0, "head_parameters": 0}
    for name, parameter in net.named_parameters():
        part = "encoder" if template.part_of(name) in ("backbone", "method") else "head"
        counts[f"{part}_parameters"] += parameter.numel() * parameter.requires_grad
    return counts
