# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks adapters``: size of adapters, and the time to load and to switch them."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_dvpt.benchmark.machine import machine_facts
from monai_dvpt.networks.adapter import load_adapter, save_adapter, set_adapter
from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinUNETR, DVPTViT
from monai_dvpt.networks.parts import PARTS, TunableNetwork, count_parameters
from monai_dvpt.utils import InputError

from .report import cell_text, machine_line, markdown_table, write_csv

__all__ = ["NETWORKS", "add_parser", "measure_adapter_size", "measure_adapters"]

NETWORKS: dict[str, Callable[[], TunableNetwork]] = {
    "vit_b16": partial(DVPTViT, 3, 224, spatial_dims=2, num_classes=5),
    "vit_ti16": partial(DVPTViT, 3, 224, hidden_size=192, mlp_dim=768, num_heads=3, spatial_dims=2, num_classes=5),
    "unetr_b": partial(DVPTUNETR, 1, 3, (96, 96, 96), decoder_tuning="none"),
    "swin_unetr_48": partial(DVPTSwinUNETR, 1, 3, feature_size=48, decoder_tuning="none"),
    "swin_unetr_48_all": partial(DVPTSwinUNETR, 1, 3, feature_size=48, decoder_tuning="all"),
}
"""Networks to measure, by name: ViT-B/16 and ViT-Ti/16 at 224, UNETR around ViT-B at 96, and SwinUNETR with
``feature_size=48``, its decoder frozen and, in the last, trained and so a part of the adapter."""

# key of a result, what the table calls it, format
ROWS = [
    ("backbone_parameters", "backbone, parameters", ",d"),
    ("dvpt_parameters", "DVPT, parameters", ",d"),
    ("dvpt_percent", "DVPT, % of the backbone", ".2f"),
    ("adapter_parts", "parts in the adapter file", "s"),
    ("adapter_bytes", "adapter file, bytes", ",d"),
    ("full_bytes", "full model file, bytes", ",d"),
    ("saved_percent", "storage saved, %", ".2f"),
    ("full_load_seconds", "load the full model, s", ".4f"),
    ("load_adapter_seconds", "load_adapter, s", ".4f"),
    ("set_adapter_seconds", "set_adapter, s", ".4f"),
    ("switch_ratio", "set_adapter / full load", ".4f"),
    ("same_answers", "answers as after a fresh load", "s"),
]
NOTES = """\
Weights are random, which changes neither sizes nor times. full model: build the network, torch.load, load_state_dict,
from a file in the operating system's cache. load_adapter: into a network whose backbone is loaded, its check included.
set_adapter: between two adapters in memory. Times are medians of {repeats} repeats, interleaved, in one process.
Adapters are compared on one input, bit for bit, with the full model of each, loaded afresh."""


def add_parser(commands: Any) -> None:
    """
    Args:
        commands: what ``add_subparsers`` gave.
    """
    parser = commands.add_parser(
        "adapters",
        help="size of adapter and full model, time to load and to switch them",
        description="Compares adapters with full models: parameters, bytes on disk, seconds to load and to switch. "
        "Needs no data and no download: the weights are random.",
        epilog="example: python -m benchmarks adapters --networks vit_b16 --output results",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS)
    )
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="of every time measured, 7 by default")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for adapters.csv")
    parser.set_defaults(run=_run)


def measure_adapters(networks: Mapping[str, Callable[[], TunableNetwork]], repeats: int = 7) -> list[dict[str, Any]]:
    """
    Measures size, loading time and switching time of adapters on networks with random weights.

    Args:
        networks: by name, a function that builds the network.
        repeats: number of times that every loading and switching is measured, at least 1.

    Returns:
        for every network its name, and the values that ``ROWS`` names: numbers, a list of parts, a truth value.
    """
    results = []
    with tqdm(total=len(networks) * (repeats + 2), unit="step") as progress, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, build in networks.items():
            progress.set_description(name)
            with tempfile.TemporaryDirectory() as folder:
                results.append({"network": name, **_measure(build, repeats, Path(folder), progress)})
    return results


def measure_adapter_size(net: TunableNetwork, folder: Path, name: str = "adapter") -> dict[str, Any]:
    """
    Saves the adapter and the full model of a network, and compares them.

    Args:
        net: the network.
        folder: where to save ``<name>.safetensors`` and ``<name>.pt``.
        name: name of the adapter.

    Returns:
        parameters, bytes and shares, under the keys of ``ROWS``.
    """
    counts = count_parameters(net)
    adapter, full = save_adapter(net, folder / f"{name}.safetensors"), folder / f"{name}.pt"
    torch.save(net.state_dict(), full)
    backbone, dvpt = counts["backbone"]["total"], counts["method"]["total"]
    return {
        "backbone_parameters": backbone,
        "dvpt_parameters": dvpt,
        "dvpt_percent": 100 * dvpt / backbone,
        "adapter_parts": [part for part in PARTS[1:] if counts[part]["total"]],
        "adapter_bytes": adapter.stat().st_size,
        "full_bytes": full.stat().st_size,
        "saved_percent": 100 * (1 - adapter.stat().st_size / full.stat().st_size),
    }


def _measure(build: Callable[[], TunableNetwork], repeats: int, folder: Path, progress: tqdm) -> dict[str, Any]:
    net = build().eval()
    size: dict[str, Any] = {}
    for name in ("first", "second"):
        _randomise_adapter(net)
        size = measure_adapter_size(net, folder, name)
    progress.update()
    load_adapter(net, folder / "first.safetensors", name="first")
    load_adapter(net, folder / "second.safetensors", name="second")
    same = _same_answers(build, net, folder)
    progress.update()
    seconds: dict[str, list[float]] = {"full_load": [], "load_adapter": [], "set_adapter": []}
    for _ in range(repeats):
        seconds["full_load"].append(_seconds(lambda: _load_full(build, folder / "first.pt")))
        for name in ("first", "second"):
            seconds["set_adapter"].append(_seconds(partial(set_adapter, net, name)))
        seconds["load_adapter"].append(_seconds(partial(load_adapter, net, folder / "second.safetensors")))
        progress.update()
    medians = {f"{key}_seconds": statistics.median(values) for key, values in seconds.items()}
    ratio = medians["set_adapter_seconds"] / medians["full_load_seconds"]
    return {**size, **medians, "switch_ratio": ratio, "same_answers": same}


def _randomise_adapter(net: TunableNetwork) -> None:
    """A new adapter changes nothing yet, so two of them would give the same answers."""
    with torch.no_grad():
        for _, tensor in net.tensors(PARTS[1:]):
            if tensor.is_floating_point() and isinstance(tensor, torch.nn.Parameter):
                tensor.normal_(std=0.05)


def _same_answers(build: Callable[[], TunableNetwork], net: TunableNetwork, folder: Path) -> bool:
    """Whether each adapter, switched to, answers as its full model, and the two do not answer the same."""
    image = torch.randn(1, *_input_size(net))
    answers = []
    with torch.inference_mode():
        for name in ("first", "second"):
            answer = set_adapter(net, name)(image)
            if not torch.equal(answer, _load_full(build, folder / f"{name}.pt")(image)):
                return False
            answers.append(answer)
    return not torch.equal(*answers)


def _input_size(net: TunableNetwork) -> list[int]:
    """Channels and sides of an input; where the network takes any side, the second smallest that it does."""
    sides = getattr(net, "img_size", None) or [2 * net.arguments["patch_size"] ** 5] * net.arguments["spatial_dims"]
    return [net.arguments["in_channels"], *sides]


def _load_full(build: Callable[[], TunableNetwork], path: Path) -> TunableNetwork:
    net = build()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _run(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {arguments.repeats}.")
    chosen = {name: NETWORKS[name] for name in dict.fromkeys(arguments.networks)}
    machine, results = machine_facts(), measure_adapters(chosen, arguments.repeats)
    cells = [["", *(result["network"] for result in results)]]
    cells += [[title, *(cell_text(result[key], form) for result in results)] for key, title, form in ROWS]
    print("\n".join(markdown_table(cells, [False] + [True] * len(results))))
    print(NOTES.format(repeats=arguments.repeats))
    print(machine_line(machine))
    if arguments.output is not None:
        write_csv(arguments.output / "adapters.csv", results, machine)
