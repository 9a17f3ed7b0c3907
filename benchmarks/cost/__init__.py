# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks cost``: a training step and an inference, compared with MONAI's own network."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import show_results
from monai_dvpt.utils import InputError, atomic_path

from .measure_cost import measure_cost
from .tables import cost_figure, cost_tables, tokens_figure, tokens_table
from .tokens import measure_tokens
from .variants import NETWORKS, REFERENCE, VARIANTS, Network

__all__ = ["add_parser"]

EXAMPLE = """\
example, which compares three methods on ViT-B/16 and writes cost.csv and cost.png:
  python -m benchmarks cost --networks vit_b16 --methods dvpt dvpt_side_cached lora --output results
methods:
""" + "\n".join(f"  {name:18}{variant.description}" for name, variant in VARIANTS.items())
NOTES = f"""\
Weights and images are random. Every method trains the decoder of a segmentation network, which counts in all columns.
/ {REFERENCE}: time over that of {REFERENCE} in the same round, median (least to most) of {{rounds}} rounds; a round
runs each method once, in random order, in one process. {REFERENCE} trains all of MONAI's network except
norm_cross_attn, which MONAI never uses. Step: forward, loss, backward, AdamW over the trained parameters (learning rate
0, so that methods can share tensors). Saved: storages that autograd keeps for the backward pass, without parameters,
buffers, images, labels and the cached prefix. Cached: that prefix, the output of the layers before the first DVPT
block; no other column has its memory or the time to load it. Peak: growth of {{memory}} within a step, gradients
included. FLOP: of matrix products and convolutions. Inference: eval and inference_mode; lora and ssf can be merged, and
then cost the same as {REFERENCE}. Kept: the file that a task adds."""
TOKEN_NOTES = """\
Forward and backward pass of one DVPTBlock(768, 32, 10) on one image, medians (least to most) of {rounds} rounds, all
sizes in random order in each. Saved: storages that autograd keeps for the backward pass, those of the next layer's
normalisation included. They grow with the number of tokens to the power of {seconds:.2f} (time), {flops:.2f} (FLOP)
and {saved_bytes:.2f} (saved), fitted to the logarithms. Time on a CPU has a step at tensors of 32 MB: glibc takes
larger ones from the system each time; MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=17179869184 in the environment
prevent that."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cost",
        help="time and memory of a training step and an inference, compared with MONAI's own networks",
        description="Compares ways to tune a network with full fine-tuning of MONAI's own: seconds, saved activations, "
        "peak memory and FLOPs of a training step, seconds and FLOPs of an inference, bytes to keep for a task. Needs "
        "no data and no download: the weights are random.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS)
    )
    methods = f"of those below, all by default; {REFERENCE} is always measured"
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=methods)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of each measured time, 7 by default")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a step, by default 8 or 16 (ViT), else 1")
    parser.add_argument("--size", type=int, metavar="N", help="sides of an image, by default 224 (ViT) and 96")
    parser.add_argument("--device", metavar="DEVICE", help="by default cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU, by default those of torch")
    parser.add_argument("--amp", action="store_true", help="use bfloat16 autocast")
    parser.add_argument(
        "--no-peak", action="store_true", help="leave out peak memory, which takes a process per method on a CPU"
    )
    parser.add_argument("--tokens", action="store_true", help="instead measure one DVPT block by number of tokens")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for table (.csv) and plot (.png)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    device = _check(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.tokens:
        results, exponents = measure_tokens(rounds=arguments.rounds, device=device, amp=arguments.amp)
        lines, notes = [*tokens_table(results), ""], TOKEN_NOTES.format(rounds=arguments.rounds, **exponents)
        name, figure = "tokens", tokens_figure(results, exponents)
    else:
        networks = {name: _network(name, arguments) for name in dict.fromkeys(arguments.networks)}
        results, left_out = measure_cost(
            networks, arguments.methods, arguments.rounds, device, arguments.amp, not arguments.no_peak
        )
        memory = "allocated GPU memory" if device.type == "cuda" else "the memory of its own process"
        lines = [*cost_tables(results), *(f"Left out: {line}" for line in left_out)]
        notes = NOTES.format(rounds=arguments.rounds, memory=memory)
        name, figure = "cost", cost_figure(results)
    facts = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    facts["precision"] = "bfloat16 autocast" if arguments.amp else "float32"
    show_results(lines, notes, results, arguments.output and arguments.output / f"{name}.csv", **facts)
    if arguments.output is not None:
        with atomic_path(arguments.output / f"{name}.png") as path:
            figure.savefig(path, dpi=130)


def _check(arguments: argparse.Namespace) -> torch.device:
    for name in ("rounds", "batch", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}.")
    if arguments.size is not None and (arguments.size < 64 or arguments.size % 32):
        raise InputError(f"--size must be a multiple of 32 and at least 64, got {arguments.size}.")
    wanted = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # as torch was built
        raise InputError(f"--device must be one of this machine, got {wanted}: {str(error).splitlines()[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, got {wanted}.")
    return device


def _network(name: str, arguments: argparse.Namespace) -> Network:
    network = NETWORKS[name]() if arguments.size is None else NETWORKS[name](size=arguments.size)
    return network if arguments.batch is None else dataclasses.replace(network, batch=arguments.batch)
