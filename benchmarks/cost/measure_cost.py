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

from monai_dvpt.networks.adapter import save_adapter
from monai_dvpt.networks.parts import TunableNetwork

from .measure import Trial, count_flops, interleave, peak_bytes, saved_bytes
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
"""Keys of a result, None for what is not measured."""


def measure_cost(
    networks: Mapping[str, Network],
    methods: Sequence[str] = tuple(VARIANTS),
    rounds: int = 7,
    device: torch.device | str = "cpu",
    amp: bool = False,
    peak_memory: bool = True,
) -> tuple[list[dict[str, Any]], list[str]]:
    """
    Measures variants on networks with random weights. All ratios are to ``REFERENCE``, which is measured too; those of
    times are medians, with minimum and maximum, over the rounds, and those of the fastest steps, which what else the
    machine does disturbs least.

    Args:
        networks: by name, what to measure.
        methods: names of ``VARIANTS``.
        rounds: number of times that each step is timed.
        device: where to compute.
        amp: whether to compute in bfloat16 where autocast does.
        peak_memory: whether to measure it; on a CPU every variant then runs once in a process of its own.

    Returns:
        for every network and variant the two names, "batch", and the values that ``RESULTS`` names; and a line for
        every variant that was left out.
    """
    names = [name for name in VARIANTS if name in {REFERENCE, *methods}]
    results, left_out = [], []
    total = len(networks) * sum(_steps(name, rounds, peak_memory) for name in names)
    with tqdm(total=total, unit="step") as progress, torch.random.fork_rng(devices=[]):
        for title, network in networks.items():
            progress.set_description(title)
            run = _Run(network, torch.device(device), amp)
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
        training = {name: trial for name, trial in self.trials.items() if VARIANTS[name].trains}
        states: dict[Any, torch.Tensor] = {}
        for name, trial in training.items():
            trial.step()  # warms up
            trial.share_states(states)
            self.values[name] |= {
                "saved_bytes": saved_bytes(trial.forward, trial.held()),
                "step_flops": count_flops(trial.step),
                "kept_bytes": _kept_bytes(trial.net, VARIANTS[name].all_kept),
                **_trained(trial.net, self.template),
            }
            progress.update()
        self._add_times("step_seconds", interleave(_each(training, "step"), rounds, self.device, progress))
        if peak_memory:
            for name, trial in training.items():
                peak = peak_bytes(trial) if self.device.type == "cuda" else self._peak_alone(name)
                self.values[name]["peak_bytes"] = peak
                progress.update()
        inferring = {name: trial for name, trial in self.trials.items() if VARIANTS[name].infers}
        with torch.inference_mode():
            for name, trial in inferring.items():
                trial.net.eval()
                trial.infer()  # warms up
                self.values[name]["inference_flops"] = count_flops(trial.infer)
            self._add_times("inference_seconds", interleave(_each(inferring, "infer"), rounds, self.device, progress))

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
                f"{key}_ratio": statistics.median(ratios),
                f"{key}_ratio_min": min(ratios),
                f"{key}_ratio_max": max(ratios),
            }

    def _peak_alone(self, name: str) -> int | None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak, name, self.network, self.amp, torch.get_num_threads()).result()


def _peak(name: str, network: Network, amp: bool, threads: int) -> int | None:
    torch.set_num_threads(threads)
    run = _Run(network, torch.device("cpu"), amp)
    run.add(name)
    return peak_bytes(run.trials[name])


def _steps(name: str, rounds: int, peak_memory: bool) -> int:
    """By how much a variant moves the progress bar on."""
    return VARIANTS[name].trains * (1 + rounds + peak_memory) + VARIANTS[name].infers * rounds


def _each(trials: Mapping[str, Trial], method: str) -> dict[str, Any]:
    return {name: getattr(trial, method) for name, trial in trials.items()}


def _kept_bytes(net: nn.Module, all_kept: bool) -> int:
    """Bytes of a file of what a task adds."""
    if isinstance(net, TunableNetwork) and net.method.name == "dvpt":
        with tempfile.TemporaryDirectory() as folder:
            return save_adapter(net, Path(folder) / "adapter.safetensors").stat().st_size
    tensors = net.state_dict() if all_kept else {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def _trained(net: nn.Module, template: TunableNetwork) -> dict[str, int]:
    """Numbers of parameters trained, in the encoder with what was added to it, and in head and decoder."""
    counts = {"encoder_parameters": 0, "head_parameters": 0}
    for name, parameter in net.named_parameters():
        part = "encoder" if template.part_of(name) in ("backbone", "method") else "head"
        counts[f"{part}_parameters"] += parameter.numel() * parameter.requires_grad
    return counts
