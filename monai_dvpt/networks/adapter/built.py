# SPDX-License-Identifier: Apache-2.0
"""Builds the network that an adapter file describes, first without memory for its values."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from monai_dvpt.networks import nets
from monai_dvpt.networks.methods import METHODS, Method, as_method
from monai_dvpt.networks.parts import TunableNetwork, adapter_parts
from monai_dvpt.utils import InputError, check_bytes, naming_argument, reason

from .stored import adapter_metadata, check_fit, read_kinds

__all__ = ["blank_network", "build_network", "checked_network", "network_class", "stored_method"]

MAX_NUMBER = 65_536
MAX_LAYERS = 64
"""Limit of transformer layers, in all or per stage: each takes memory even on the meta device."""
MAX_ENTRIES = 8
MAX_SETTINGS = 16
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # so nothing that MONAI's ConfigParser would run or resolve
LAYERS = ("num_layers", "depths")
ADDED_SINCE = ("layout",)
"""Arguments that files of version 0.1.0 lack; they are None there."""


def _is_whole(value: Any, most: int = MAX_NUMBER) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_NUMBER


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and WORD.fullmatch(value) is not None


def _are_whole(value: Any, most: int = MAX_NUMBER) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ENTRIES and all(_is_whole(entry, most) for entry in value)


def _is_norm(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return _is_word(value)
    return len(value) == 2 and _is_word(value[0]) and _are_settings(value[1])


def _are_settings(value: Any, lists: bool = False) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_SETTINGS or not all(map(_is_word, value)):
        return False
    return all(
        all(map(_is_number, entry)) and len(entry) <= MAX_ENTRIES
        if lists and isinstance(entry, list)
        else type(entry) is bool or _is_number(entry)
        for entry in value.values()
    )


RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: type(value) is bool),
    "int": (f"a whole number in [0, {MAX_NUMBER}]", _is_whole),
    "float": (f"a number in [0, {MAX_NUMBER}]", _is_number),
    "str": ("a word of letters, digits and _", _is_word),
    "Sequence[int]": (f"at most {MAX_ENTRIES} whole numbers in [0, {MAX_NUMBER}]", _are_whole),
    "Sequence[int] | int": (
        f"one or at most {MAX_ENTRIES} whole numbers in [0, {MAX_NUMBER}]",
        lambda value: _is_whole(value) or _are_whole(value),
    ),
    "Mapping[str, Any]": (
        f"an object of at most {MAX_SETTINGS} words with numbers or lists of them",
        lambda value: _are_settings(value, lists=True),
    ),
    "tuple | str": (f"a word, or a word and an object of at most {MAX_SETTINGS} words with numbers", _is_norm),
}
"""Allowed values of arguments from a file, by the annotations of the networks' constructors."""


class _WithoutValues(TorchFunctionMode):
    """Answers 0 where MONAI's constructors read a number from a tensor on the meta device: stochastic depth rates."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0.0 if func is torch.Tensor.item else func(*args, **(kwargs or {}))


def network_class(metadata: Mapping[str, Any]) -> type[TunableNetwork]:
    """
    The network class of an adapter.

    Raises:
        InputError: if it is not one of this package.
    """
    if (name := metadata.get("network")) not in nets.__all__:
        raise InputError(f"network must be one of {nets.__all__}, got {name!r}.")
    return getattr(nets, name)


def blank_network(
    kind: type[TunableNetwork],
    method: Method,
    arguments: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> TunableNetwork:
    """
    A network on the meta device: its tensors have shapes and types, but neither memory nor values. ``changes`` are
    constructor arguments from the adapter file, which are checked and override ``arguments``.

    Raises:
        InputError: if an argument is unknown, missing, or not allowed by ``RULES``.
    """
    stated = list(inspect.signature(kind.__init__).parameters.items())
    parameters = {name: stated for name, stated in stated[1:] if name not in ("method", "options")}
    given = {**arguments, **changes}
    given = {name: None for name in ADDED_SINCE if name in parameters} | given
    unknown, missing = sorted(given.keys() - parameters.keys()), sorted(parameters.keys() - given.keys())
    if unknown or missing:
        raise InputError(f"arguments do not fit {kind.__name__}: unknown {unknown[:5]}, missing {missing[:5]}.")
    for key, value in changes.items():
        _check_value("arguments", key, value, parameters[key].annotation)
        if key in LAYERS and not (_is_whole(value, MAX_LAYERS) or _are_whole(value, MAX_LAYERS)):
            raise InputError(f"arguments must have {key} of at most {MAX_LAYERS}, got {_short(value)}.")
    try:
        with torch.device("meta"), _WithoutValues():
            return kind(**given, method=method)
    except Exception as error:  # with such arguments MONAI may raise anything
        raise InputError(f"arguments do not fit {kind.__name__}: {reason(error)}") from error


def stored_method(metadata: Mapping[str, Any]) -> Method:
    """
    The method of an adapter.

    Raises:
        InputError: if it or an option is unknown, or an option is not allowed by ``RULES`` or out of range.
    """
    name, options = (metadata["method"].get(key) for key in ("name", "options"))
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"method must be one of {list(METHODS)}, got {_short(name)}.")
    kind = METHODS[name]
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    if not isinstance(options, dict) or options.keys() != known.keys():
        raise InputError(f"method must have the options {sorted(known)}, got {_short(options)}.")
    for key, value in options.items():
        _check_value("method", key, value, str(known[key]))
    try:
        return as_method(kind.name, **options)
    except ValueError as error:
        raise InputError(f"method does not fit: {error}") from error


@naming_argument("path")
def checked_network(path: str | os.PathLike, metadata: Mapping[str, Any]) -> TunableNetwork:
    """
    The network of an adapter on the meta device, if every tensor of the file fits it. Reads only the file's header.

    Raises:
        InputError: see :func:`build_network`.
    """
    net = blank_network(network_class(metadata), stored_method(metadata), {}, metadata["arguments"])
    parts = metadata["parts"]
    own = adapter_parts(net)
    if not parts or parts != [part for part in own if part in parts]:
        raise InputError(f"parts must be of {own}, in this order, got {parts}.")
    check_fit(metadata, read_kinds(path), dict(net.tensors(parts)))
    return net


@naming_argument("path")
def build_network(path: str | os.PathLike) -> TunableNetwork:
    """
    Builds the network that an adapter was saved from, without its weights. It takes no memory before its arguments are
    known to be in bounds and every tensor of the file to fit.

    Args:
        path: file written by :func:`save_adapter`.

    Raises:
        InputError: if the file is no adapter, its network or an argument is unknown or out of bounds, the file's
            tensors do not fit the network, or the network takes more memory than ``max_bytes``.
    """
    metadata = adapter_metadata(path)
    blank = checked_network(path, metadata)
    tensors = {id(tensor): tensor for tensor in (*blank.state_dict().values(), *blank.buffers())}
    check_bytes("the network that it names", sum(tensor.nbytes for tensor in tensors.values()))
    try:
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
            return type(blank)(**metadata["arguments"], method=blank.method)
    except Exception as error:  # such as out of memory
        raise InputError(f"{type(blank).__name__} cannot be built: {reason(error)}") from error


def _check_value(what: str, key: str, value: Any, annotation: str) -> None:
    kind = annotation.removesuffix(" | None")
    words, fits = RULES.get(kind, ("of a known type", lambda value: False))
    if not fits(value) and not (value is None and kind != annotation):
        raise InputError(f"{what} must have {key} as {words}, got {_short(value)}.")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a longer number"
    return text if len(text) < 100 else text[:100] + "..."
