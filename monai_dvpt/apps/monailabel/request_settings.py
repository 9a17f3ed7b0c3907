# SPDX-License-Identifier: Apache-2.0
"""All settings that a request may bring, with their bounds. Any other is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from monailabel.utils.others.generic import device_list

from monai_dvpt.utils import InputError

from .adapter_versions import AdapterVersions
from .dicom_labels import told_segments
from .infer import IN_USE, RESULT_TYPES
from .studies import check_tag
from .train import AS_START

__all__ = [
    "batch_settings",
    "checked",
    "from_json",
    "infer_settings",
    "next_settings",
    "number",
    "scoring_settings",
    "shown",
    "train_settings",
]

Rule = Callable[[str, Any], Any]
"""Takes name and value of a setting, returns the value to hand on, or raises an :class:`InputError`."""

MAX_EPOCHS = 1_000
MAX_SAMPLES = 10_000
MAX_SEGMENTS = 1_000
MAX_TEXT = 200
GPUS = re.compile(r"all|\d{1,2}(,\d{1,2}){0,15}")
SEGMENT = ("name", "idx", "color", "description", "model_name")


def shown(value: Any) -> str:
    """A value as a refusal shows it: shortened, and only the type of lists and objects."""
    return repr(value)[:80] if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def checked(what: str, given: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """
    The values of ``given`` as their rules return them, without those that are None.

    Args:
        what: subject of a refusal.
        given: values by name.
        rules: the rule of each allowed name.

    Raises:
        InputError: if another name is given, or a value breaks its rule.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{what} must be a JSON object, got {shown(given)}.")
    if unknown := [name for name in given if name not in rules]:
        raise InputError(f"{what} must be of {sorted(rules)}, got {shown(unknown[0])}.")
    return {name: rules[name](name, value) for name, value in given.items() if value is not None}


def from_json(what: str, text: str) -> Any:
    """The content of a JSON text; raises an :class:`InputError` if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} must be JSON, got {shown(text)}.") from error


def number(least: float, most: float, whole: bool = True) -> Rule:
    """A number in a closed range, or its text, as viewers send it from a field."""

    def rule(name: str, value: Any) -> float:
        try:
            found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            found = None
        if found is None or not least <= found <= most or whole and found != int(found):
            kind = "whole number" if whole else "number"
            raise InputError(f"{name} must be a {kind} from {least} to {most}, got {shown(value)}.")
        return int(found) if whole else found

    return rule


def one_of(choices: Iterable[Any]) -> Rule:
    """One of ``choices``, or a list of them, as a viewer shows choices; its first is taken."""
    known = list(choices)

    def rule(name: str, value: Any) -> Any:
        found = value if isinstance(value, list) and value else [value]
        for item in found:
            if isinstance(item, bool) or not isinstance(item, (str, int)) or item not in known:
                raise InputError(f"{name} must be one of {known}, got {shown(item)}.")
        return found[0]

    return rule


def flag(name: str, value: Any) -> bool:
    text = str(value).lower() if isinstance(value, (str, bool)) else ""
    if text not in ("true", "false"):
        raise InputError(f"{name} must be true or false, got {shown(value)}.")
    return text == "true"


def text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
        raise InputError(f"{name} must be text of at most {MAX_TEXT} characters, got {shown(value)}.")
    return value


def tag(name: str, value: Any) -> str:
    return check_tag(value)


def gpus(name: str, value: Any) -> str:
    if not isinstance(value, str) or not GPUS.fullmatch(value):
        raise InputError(f"{name} must be as in {GPUS.pattern}, got {shown(value)}.")
    return value


def segments(name: str, value: Any) -> list[Mapping[str, Any]]:
    """A viewer's description of the segments of a label, see :func:`told_segments`."""
    told = told_segments(value if isinstance(value, list) else [value])
    if len(told) > MAX_SEGMENTS:
        raise InputError(f"{name} must have at most {MAX_SEGMENTS} segments, got {len(told)}.")
    rules: dict[str, Rule] = {key: text for key in SEGMENT}
    rules |= {"idx": number(0, 65_535), "color": _color}
    return [checked(f"a segment in {name}", segment, rules) for segment in told]


def _color(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not 3 <= len(value) <= 4:
        raise InputError(f"{name} must be 3 or 4 numbers, got {shown(value)}.")
    return [number(0, 255, whole=False)(name, part) for part in value]


CLIENT: dict[str, Rule] = {"client_id": text}
"""What viewers send with every request."""
LABEL: dict[str, Rule] = {**CLIENT, "label_info": segments}
"""What they send with a label."""


def devices() -> list[str]:
    count = max(1, torch.cuda.device_count())
    return ["cpu", "cuda", *(f"cuda:{index}" for index in range(count)), *device_list()]


def infer_settings(versions: AdapterVersions) -> dict[str, Rule]:
    """Settings of one answer."""
    return {
        **CLIENT,
        "device": one_of(devices()),
        "adapter": one_of([IN_USE, *versions.names]),
        "result_extension": one_of(RESULT_TYPES),
        "result_dtype": one_of(["uint8", "uint16"]),
        "result_compress": flag,
        "restore_label_idx": flag,
        "save_label": flag,
        "label_tag": tag,
        "label_info": segments,
    }


def batch_settings(versions: AdapterVersions) -> dict[str, Rule]:
    """Settings of many answers: those of one, and what MONAI Label adds."""
    return {
        **infer_settings(versions),
        "multi_gpu": lambda name, value: flag(name, value) and torch.cuda.is_available(),
        "gpus": gpus,
        "logging": one_of(["INFO", "WARNING", "ERROR"]),
        "max_workers": number(0, 64),
        "max_batch_size": number(0, MAX_SAMPLES),
    }


def train_settings(versions: AdapterVersions, methods: Iterable[str]) -> dict[str, Rule]:
    """Settings of a training; ``methods`` are those that fit the network."""
    return {
        **CLIENT,
        "max_epochs": number(1, MAX_EPOCHS),
        "val_split": number(0, 0.9, whole=False),
        "device": one_of(devices()),
        "start_from": one_of([IN_USE, *versions.names]),
        "method": one_of([AS_START, *methods]),
        "seed": number(0, 2**32 - 1),
    }


def scoring_settings(models: Iterable[str]) -> dict[str, Rule]:
    return {**CLIENT, "model": one_of(models), "max_samples": number(1, MAX_SAMPLES)}


def next_settings(models: Iterable[str]) -> dict[str, Rule]:
    return {**CLIENT, "model": one_of(models), "label_tag": tag}
