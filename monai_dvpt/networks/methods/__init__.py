# SPDX-License-Identifier: Apache-2.0
"""Tuning methods: each says what it adds to an encoder and which of the encoder's own tensors it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from monai_dvpt.utils import InputError

from .adaptformer import AdaptFormer
from .dvpt import DVPT, Bottleneck
from .lora import LoRA
from .method import Inserted, Method
from .own_tensors import BitFit, Full, Linear
from .ssf import SSF
from .vpt import VPTDeep, VPTShallow

__all__ = [
    "DVPT",
    "METHODS",
    "SSF",
    "AdaptFormer",
    "BitFit",
    "Bottleneck",
    "Full",
    "Inserted",
    "Linear",
    "LoRA",
    "Method",
    "VPTDeep",
    "VPTShallow",
    "as_method",
]

METHODS: dict[str, type[Method]] = {
    kind.name: kind for kind in (DVPT, Bottleneck, Full, Linear, BitFit, VPTShallow, VPTDeep, AdaptFormer, LoRA, SSF)
}
"""All methods by name."""


def as_method(method: str | Mapping[str, Any] | Method, **options: Any) -> Method:
    """
    Makes a method from its configuration.

    Args:
        method: a name of ``METHODS``; a mapping with the "name" and options; or a method.
        options: further options.

    Raises:
        InputError: if the name or an option is unknown, or an option is outside its range.
    """
    if isinstance(method, Method):
        method = {"name": method.name, **method.options}
    given = {"name": method} if isinstance(method, str) else dict(method)
    name = given.pop("name", None)
    if name not in METHODS:
        raise InputError(f"method must be one of {list(METHODS)}, got {name}.")
    given |= options
    known = [field.name for field in fields(METHODS[name])]
    if unknown := sorted(given.keys() - set(known)):
        raise InputError(f'options must be of {known} for the method "{name}", got {unknown}.')
    try:
        return METHODS[name](**given)
    except ValueError as error:
        raise InputError(str(error)) from error
