# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_dvpt adapter``: shows, checks and merges an adapter file."""

from __future__ import annotations

import argparse
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from monai_dvpt.networks import nets
from monai_dvpt.networks.adapter import adapter_metadata, backbone_sha256, load_adapter, merge_full
from monai_dvpt.networks.adapter.built import checked_network, network_class
from monai_dvpt.networks.adapter.file import find_backbone, load_backbone
from monai_dvpt.networks.adapter.stored import check_intact, fitting_tensors, read_kinds, read_tensors
from monai_dvpt.networks.parts import PARTS
from monai_dvpt.utils import InputError, atomic_path, file_sha256, naming, to_json

from .command_line import printable

__all__ = ["add_parser", "adapter_facts", "check_adapter", "write_full_model"]

BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers, not parameters
BACKBONE_HELP = "file of the backbone; by default the one the adapter names, beside it or in the package's weights"


def add_parser(commands: Any) -> None:
    """See :class:`CommandModule`."""
    parser = commands.add_parser("adapter", help="look at, check or merge an adapter file")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    info = _add_action(
        actions,
        "info",
        "Says what is in an adapter file: network, labels, parts with their sizes, backbone, versions, notes. Does "
        "not check the tensors; verify does.",
        "python -m monai_dvpt adapter info adapter.safetensors",
    )
    info.add_argument("--json", action="store_true", help="print it as JSON, with all arguments of the network")
    info.set_defaults(run=_run_info)

    verify = _add_action(
        actions,
        "verify",
        "Checks an adapter file: format, SHA-256 of metadata and tensors, that the tensors are finite and fit the "
        "network, and, where the backbone is found, that it is the right one. Ends with ok, or with the reason on "
        "standard error and exit status 1.",
        "python -m monai_dvpt adapter verify adapter.safetensors --backbone backbone.safetensors",
    )
    verify.add_argument("--backbone", type=Path, metavar="FILE", help=BACKBONE_HELP)
    verify.set_defaults(run=_run_verify)

    merge = _add_action(
        actions,
        "merge-full",
        "Writes backbone and adapter as one state dict, and prints the network definition that loads it strictly.",
        "python -m monai_dvpt adapter merge-full adapter.safetensors --output model.pt",
    )
    merge.add_argument("--output", type=Path, metavar="FILE", required=True, help="file to write, such as model.pt")
    merge.add_argument("--backbone", type=Path, metavar="FILE", help=BACKBONE_HELP)
    merge.add_argument("--force", action="store_true", help="replace an existing output")
    merge.set_defaults(run=_run_merge)


def adapter_facts(path: str | os.PathLike) -> dict[str, Any]:
    """
    The metadata of an adapter file, and as "file" its "name", "bytes" and "parts", each with "parameters" and "bytes".

    Raises:
        InputError: if the file is no adapter, or its tensors do not fit the network it names.
    """
    metadata = adapter_metadata(path)
    net = checked_network(path, metadata)
    sizes: dict[str, dict[str, int]] = {}
    for name, tensor in read_kinds(path).items():
        size = sizes.setdefault(net.part_of(name), {"parameters": 0, "bytes": 0})
        size["parameters"] += 0 if name.endswith(BATCH_STATISTICS) else tensor.numel()
        size["bytes"] += tensor.nbytes
    parts = {part: sizes[part] for part in PARTS if part in sizes}
    return {**metadata, "file": {"name": Path(path).name, "bytes": Path(path).stat().st_size, "parts": parts}}


def check_adapter(path: str | os.PathLike, backbone: str | os.PathLike | None = None) -> Iterator[str]:
    """
    Checks an adapter file step by step; finds the backbone as :func:`merge_full` does.

    Yields:
        what each step checked.

    Raises:
        InputError: if a check fails.
    """
    metadata = adapter_metadata(path)
    yield f"format: version {metadata['format_version']}, SHA-256 of the metadata as recorded"
    tensors = read_tensors(path)
    with naming(path):
        check_intact(metadata, tensors)
    yield f"tensors: {len(tensors)}, all finite, SHA-256 as recorded"
    blank, parts = checked_network(path, metadata), metadata["parts"]
    fitting_tensors(path, metadata, dict(blank.tensors(parts)))
    yield f"network: {type(blank).__name__} can be built, the tensors of {', '.join(parts)} fit"
    found = find_backbone(path, metadata, backbone)
    if found is None:
        yield f"backbone: not checked; {_where_to_find(metadata)}"
    else:
        net = load_backbone(path, found)
        if (sha256 := backbone_sha256(net)) != metadata.get("backbone_sha256"):
            expected = metadata.get("backbone_sha256")
            raise InputError(f"{found}: is not the backbone of {path}: SHA-256 must be {expected}, got {sha256}.")
        load_adapter(net, path, parts=parts)
        yield f"backbone: {found.name} is the one of the adapter, SHA-256 as recorded; the adapter loads"


def write_full_model(
    path: str | os.PathLike, output: str | os.PathLike, backbone: str | os.PathLike | None = None
) -> dict[str, Any]:
    """
    Writes backbone and adapter as one state dict with ``torch.save``; finds the backbone as :func:`merge_full` does.

    Returns:
        definition, for MONAI's ``ConfigParser``, of the network that loads ``output`` strictly.

    Raises:
        InputError: if a file is missing, damaged or does not fit, or ``output`` cannot be written.
    """
    metadata = adapter_metadata(path)
    found = find_backbone(path, metadata, backbone)
    if found is None:
        raise InputError(f"{path}: needs its backbone; {_where_to_find(metadata)}.")
    for _ in check_adapter(path, found):
        pass
    net = merge_full(path, found)
    definition = json.loads(to_json({**net.arguments, "method": {"name": net.method.name, **net.method.options}}))
    # torch.save writes the name of a path, here a random one, into the file
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        torch.save(net.state_dict(), file)
    return {"_target_": f"{nets.__name__}.{type(net).__name__}", **definition}


def _add_action(actions: Any, name: str, description: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=description.split(": ")[0].split(", ")[0], description=description, epilog=f"example: {example}"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the adapter, a .safetensors file")
    return parser


def _run_info(arguments: argparse.Namespace) -> None:
    facts = adapter_facts(arguments.file)
    if arguments.json:
        print(to_json(facts))
        return
    for label, value in _info_rows(arguments.file, facts):
        print(f"{printable(label):<18} {printable(value)}".rstrip())


def _info_rows(path: Path, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "file", f"{facts['file']['name']}, {facts['file']['bytes']:,} bytes"
    yield "network", facts["network"]
    for key, value in _telling_arguments(facts).items():
        yield f"  {key}", json.dumps(value)
    yield "method", facts["method"]["name"]
    for key, value in facts["method"]["options"].items():
        yield f"  {key}", json.dumps(value)
    labels = facts.get("labels")
    yield "labels", "not given" if labels is None else _listed(labels)
    yield "parts", f"{'parameters':>12} {'bytes':>12}"
    for part, size in facts["file"]["parts"].items():
        yield f"  {part}", f"{size['parameters']:>12,} {size['bytes']:>12,}"
    yield "backbone", facts.get("backbone_file") or "no file named"
    yield "  SHA-256", facts.get("backbone_sha256")
    yield "versions", _listed(facts.get("versions"))
    if notes := facts.get("notes"):
        yield from _nested_rows("notes", notes)


def _nested_rows(label: str, value: Any, indent: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield indent + label, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return
    yield indent + label, ""
    for key, entry in value.items():
        yield from _nested_rows(key, entry, indent + "  ")


def _telling_arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The network's arguments that differ from the defaults of its class."""
    parameters = inspect.signature(network_class(facts).__init__).parameters
    known = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {k: v for k, v in facts["arguments"].items() if k not in known or v != json.loads(to_json(known[k]))}


def _run_verify(arguments: argparse.Namespace) -> None:
    for line in check_adapter(arguments.file, arguments.backbone):
        print(printable(line), flush=True)
    print("ok")


def _run_merge(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    if output.exists():
        if not arguments.force:
            raise InputError(f"{output}: exists; --force replaces it.")
        metadata = adapter_metadata(arguments.file)
        for source in (arguments.file, find_backbone(arguments.file, metadata, arguments.backbone)):
            if source is not None and output.samefile(source):
                raise InputError(f"{output}: is read, so it cannot be the output.")
    definition = write_full_model(arguments.file, output, arguments.backbone)
    print(f"wrote {printable(output)}: {output.stat().st_size:,} bytes, SHA-256 {file_sha256(output)}")
    print(yaml.safe_dump({"network_def": definition}, sort_keys=False, default_flow_style=None, width=110), end="")


def _where_to_find(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("backbone_file")
    if name is None:
        return "the adapter names no file of it, give one with --backbone"
    return f"{name} lies neither beside the adapter nor among the weights of the package, give it with --backbone"


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{index} {label}" for index, label in enumerate(value))
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
