# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks adapters``: size of adapters, and the time to load and to switch them."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from monai_dvpt.networks.adapter import load_adapter, save_adapter, set_adapter
from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinUNETR, DVPTViT
from monai_dvpt.networks.parts import PARTS, TunableNetwork, count_parameters
from monai_dvpt.utils import InputError

from .measuring import interleave
from .results import Column, show_results, table_lines

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

ROWS = [
    Column("", "network"),
    Column("backbone, parameters", "backbone_parameters", ",.0f"),
    Column("DVPT, parameters", "dvpt_parameters", ",.0f"),
    Column("DVPT, % of the backbone", "dvpt_percent", ".2f"),
    Column("parts in the adapter file", "adapter_parts"),
    Column("adapter file, bytes", "adapter_bytes", ",.0f"),
    Column("full model file, bytes", "full_bytes", ",.0f"),
    Column("storage saved, %", "saved_percent", ".2f"),
    Column("load the full model, s", "full_load_seconds", ".4f"),
    Column("load_adapter, s", "load_adapter_seconds", ".4f"),
    Column("set_adapter, s", "set_adapter_seconds", ".4f"),
    Column("set_adapter / full load", "switch_ratio", ".4f"),
    Column("answers as after a fresh load", "same_answers"),
]
NOTES = """\
Weights are random, which changes neither sizes nor times. Full model: build the network, torch.load, load_state_dict,
from a file in the operating system's cache. load_adapter: into a network with a loaded backbone, checks included.
set_adapter: between two adapters in memory. Times are medians of {repeats} repeats, interleaved, in one process.
The answers of each adapter to one input are compared, bit for bit, with those of its full model, loaded afresh."""


def add_parser(commands: Any) -> None:
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
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="of each measured time, 7 by default")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for adapters.csv")
    parser.set_defaults(run=_run)


def measure_adapters(networks: Mapping[str, Callable[[], TunableNetwork]], repeats: int = 7) -> list[dict[str, Any]]:
    """
    Measures size, loading time and switching time of adapters on networks, by name, with random weights; returns the
    values of each network under the keys of ``ROWS``. Each time is measured ``repeats`` times.
    """
    results = []
    with tqdm(total=len(networks) * (3 * repeats + 2), unit="step") as progress, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, build in networks.items():
            progress.set_description(name)
            with tempfile.TemporaryDirectory() as folder:
                results.append({"network": name, **_measure(build, repeats, Path(folder), progress)})
    return results


def measure_adapter_size(net: TunableNetwork, folder: Path, name: str = "adapter") -> dict[str, Any]:
    """
    Saves the adapter and the full model of a network, as ``<name>.safetensors`` and ``<name>.pt`` in ``folder``;
    returns parameters, bytes and shares under the keys of ``ROWS``.
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
    functions: dict[str, Callable[[], Any]] = {
        "full_load_seconds": partial(_load_full, build, folder / "first.pt"),
        "load_adapter_seconds": partial(load_adapter, net, folder / "second.safetensors"),
        "set_adapter_seconds": lambda: set_adapter(net, "first" if net.adapter_name == "second" else "second"),
    }
    seconds = interleave(functions, repeats, progress)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    ratio = medians["set_adapter_seconds"] / medians["full_load_seconds"]
    return {**size, **medians, "switch_ratio": ratio, "same_answers": same}


def _randomise_adapter(net: TunableNetwork) -> None:
    """Two new adapters would give the same answers."""
    with torch.no_grad():
        for _, tensor in net.tensors(PARTS[1:]):
            if tensor.is_floating_point() and isinstance(tensor, torch.nn.Parameter):
                tensor.normal_(std=0.05)


def _same_answers(build: Callable[[], TunableNetwork], net: TunableNetwork, folder: Path) -> bool:
    """Whether each adapter, after a switch to it, answers as its full model, and the two adapters differ."""
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
    """Channels and sides of an input; of a network for any size, the second smallest sides."""
    sides = getattr(net, "img_size", None) or [2 * net.arguments["patch_size"] ** 5] * net.arguments["spatial_dims"]
    return [net.arguments["in_channels"], *sides]


def _load_full(build: Callable[[], TunableNetwork], path: Path) -> TunableNetwork:
    net = build()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def _run(arguments: argparse.Namespace) -> None:
    if arguments.repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {arguments.repeats}.")
    chosen = {name: NETWORKS[name] for name in dict.fromkeys(arguments.networks)}
    results = measure_adapters(chosen, arguments.repeats)
    lines, notes = table_lines(ROWS, results, transposed=True), NOTES.format(repeats=arguments.repeats)
    show_results(lines, notes, results, arguments.output and arguments.output / "adapters.csv")
