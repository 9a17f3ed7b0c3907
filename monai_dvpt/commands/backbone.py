# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt backbone``: what pretrained weights are, and which fit a task best."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_dvpt.apps.new_bundle import BackboneComparison, check_new, data_to_compare
from monai_dvpt.apps.probe import ProbeTable
from monai_dvpt.networks.pretrained import WeightsDescription, describe_weights
from monai_dvpt.utils import InputError, to_json

from .command_line import columns, printable, say
from .new import add_data_options, data_options, look_and_say

__all__ = ["add_parser"]

NOTE = (
    "A probe tells of features as they are. Once prompts are trained, another backbone may be the better one: of those "
    "that are close here, train the first two."
)
NAMED = 3
"""Tensors that are named; JSON names all."""


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser("backbone", help="look at pretrained weights, and compare them on labelled images")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    info = actions.add_parser(
        "info",
        help="says what pretrained weights are and which networks take them",
        description="Says what pretrained weights are, without building a network: layout, sizes by the names of the "
        "networks' arguments, parameters, SHA-256, how their images were normalised, which networks take them, how "
        "much DVPT would train, and what is left over; or why they are refused, and then the exit status is 1.",
        epilog="example: python -m monai_dvpt backbone info dinov2_vits14_pretrain.pth",
    )
    info.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="file, folder, or Hugging Face repository owner/name[@revision]"
    )
    info.add_argument("--json", action="store_true", help="print it as JSON, a list with an object for each source")
    info.set_defaults(run=_run_info)
    compare = actions.add_parser(
        "compare",
        help="scores pretrained weights on labelled images by probes of their frozen features",
        description="Scores pretrained weights on a folder of labelled images, as new reads it, by probes of their "
        "frozen features: linear models, and for grades and classes nearest neighbours, in cross-validation over "
        "patients, with 95 % intervals. Cases of a test part are left out. Takes minutes. A probe tells of features as "
        "they are: once prompts are trained, another backbone may be the better one.",
        epilog="example: python -m monai_dvpt backbone compare vit.safetensors dinov2.pth --data knees",
    )
    compare.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, or Hugging Face repository owner/name[@revision]; shipped for the weights of the package",
    )
    compare.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help="folder of images and labels, or a list of them"
    )
    compare.add_argument("--output", type=Path, metavar="FOLDER", help="write scores and predictions there")
    compare.add_argument("--cases", type=_count, metavar="N", help="cases to take at most; by default 300 or 100")
    add_data_options(compare)
    compare.set_defaults(run=_run_compare)


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number above 1, got {text}")


def _run_info(arguments: argparse.Namespace) -> None:
    described = []
    for number, source in enumerate(arguments.sources):
        described.append(describe_weights(source))
        if not arguments.json:
            rows = list(_rows(described[-1]))
            for line in ([""] if number else []) + columns(rows):
                print(printable(line))
    if arguments.json:
        print(to_json([_facts(each) for each in described]))
    if refused := [str(each.files[0].path) for each in described if each.refused]:
        raise InputError(
            f"{len(refused)} of {len(described)} sources cannot be used as a backbone: {', '.join(refused)}."
        )


def _run_compare(arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        check_new(arguments.output)
    new = data_to_compare(arguments.data, data_options(arguments))
    look_and_say(new, arguments)
    comparison = BackboneComparison(new, arguments.sources, arguments.cases)
    for line in comparison.summary():
        say(line)
    table = comparison.run()
    for line in _table(table):
        say(line)
    if arguments.output is not None:
        files = comparison.write(table, arguments.output)
        say(f"written: {', '.join(map(str, files))}")


def _table(table: ProbeTable) -> Iterator[str]:
    """The scores, then the differences to the best of each probe."""
    yield f"{table.metric}, in {len(set(table.folds))} folds by patient, with 95 % intervals over patients"
    rows = [("backbone", "parameters", "seconds", *table.probes)]
    for each in table.backbones:
        size = (f"{each.parameters / 1e6:.1f} M", f"{each.seconds:.0f}")
        rows.append((each.name, *size, *(str(each.scores[probe]) for probe in table.probes)))
    yield from columns(rows)
    if len(table.backbones) > 1:
        yield "minus the best of the probe, p corrected by Holm's method"
        rows = [("backbone", *table.probes)]
        for each in table.backbones:
            rows.append((each.name, *(str(each.below_best[probe] or "the best") for probe in table.probes)))
        yield from columns(rows)
    yield NOTE


def _facts(described: WeightsDescription) -> dict[str, Any]:
    facts = asdict(described)
    facts["files"] = [{**asdict(file), "path": str(file.path)} for file in described.files]
    return {**facts, "dvpt_share": described.dvpt_share}


def _rows(described: WeightsDescription) -> Iterator[tuple[str, str]]:
    for file in described.files:
        yield "file", f"{file.path}, {file.bytes:,} bytes"
        yield "  SHA-256", file.sha256
    if described.refused:
        yield "refused", described.refused
        return
    yield "layout", described.kind
    yield "family", described.family or "not known"
    yield "encoder", f"{described.parameters:,} parameters"
    for name, value in described.sizes.items():
        hint = ", as usual for this width; the file does not say it" if name in described.assumed else ""
        yield f"  {name}", json.dumps(value).strip('"') + hint
    yield "images", _images(described)
    for fit in described.fits:
        yield "fits" if fit.fits else "does not fit", f"{fit.network}: {fit.how}"
    if described.dvpt_parameters is not None:
        share = f"{100 * (described.dvpt_share or 0):.2f} % of the encoder's parameters"
        yield "DVPT", f"trains {described.dvpt_parameters:,}, {share}"
    elif any(fit.fits for fit in described.fits):
        yield "DVPT", "needs a bottleneck_size below the width of a token"
    yield "beside", _names(described.beside) + ", for a network with the same head or decoder" * bool(described.beside)
    yield "unused", _names(described.unused)


def _images(described: WeightsDescription) -> str:
    known = described.normalisation
    if described.normalisation_error:
        return f"how they were normalised is not known: {described.normalisation_error}"
    if known is None:
        return "the file does not say how they were normalised"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (known.mean, known.std))
    return f"mean {mean}, standard deviation {std}, of values from 0 to 1; {known.origin}"


def _names(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names) or "none"
    return f"{len(names)} tensors: {', '.join(names[:NAMED])}, ..."
