# SPDX-License-Identifier: Apache-2.0
"""The network that an adapter file names, first without memory for its values."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from monai_dvpt.utils import InputError, check_bytes, reason

from .stored import adapter_metadata, check_fit, read_kinds
from .tunable import PARTS, TunableNetwork

__all__ = ["blank_network", "build_network", "checked_network", "network_class"]

MAX_NUMBER = 65_536
MAX_LAYERS = 64
"""Most transformer layers, of all or of one stage: each costs memory even where its tensors have no values."""
MAX_ENTRIES = 8
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # nothing that MONAI's ConfigParser would run or resolve
LAYERS = ("num_layers", "depths")


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
    if len(value) != 2 or not _is_word(value[0]) or not isinstance(value[1], dict) or len(value[1]) > MAX_ENTRIES:
        return False
    return all(_is_word(key) and (type(entry) is bool or _is_number(entry)) for key, entry in value[1].items())


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
    "tuple | str": (f"a word, or a word and an object of at most {MAX_ENTRIES} words with numbers", _is_norm),
}
"""What arguments from a file may be, by the types that the constructors of the networks state."""


class _WithoutValues(TorchFunctionMode):
    """MONAI asks tensors for one kind of number while it builds: the rates of stochastic depth, which have no shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0.0 if func is torch.Tensor.item else func(*args, **(kwargs or {}))


def network_class(path: str | os.PathLike, metadata: Mapping[str, Any]) -> type[TunableNetwork]:
    """
    The class of the network that an adapter was saved from.

    Raises:
        InputError: if it is none of this package.
    """
    from monai_dvpt.networks import nets  # they are built on this package

    if (name := metadata.get("network")) not in nets.__all__:
        raise InputError(f"{path}: network must be one of {nets.__all__}, got {name!r}.")
    return getattr(nets, name)


def blank_network(
    path: str | os.PathLike, kind: type[TunableNetwork], arguments: Mapping[str, Any], changes: Mapping[str, Any]
) -> TunableNetwork:
    """
    A network on the meta device: its tensors have shapes and types, but neither memory nor values.

    Args:
        path: the adapter file.
        kind: the network's class.
        arguments: those of its constructor.
        changes: those of them that come from the file, and are checked.

    Raises:
        InputError: if an argument is unknown, missing, or outside what is stated for its type.
    """
    parameters = dict(list(inspect.signature(kind.__init__).parameters.items())[1:])
    given = {**arguments, **changes}
    unknown, missing = sorted(given.keys() - parameters.keys()), sorted(parameters.keys() - given.keys())
    if unknown or missing:
        raise InputError(f"{path}: arguments do not fit {kind.__name__}: unknown {unknown[:5]}, missing {missing[:5]}.")
    for key, value in changes.items():
        words, fits = RULES.get(parameters[key].annotation, ("of a known type", lambda value: False))
        if not fits(value):
            raise InputError(f"{path}: arguments must have {key} as {words}, got {_short(value)}.")
        if key in LAYERS and not (_is_whole(value, MAX_LAYERS) or _are_whole(value, MAX_LAYERS)):
            raise InputError(f"{path}: arguments must have {key} of at most {MAX_LAYERS}, got {_short(value)}.")
    try:
        with torch.device("meta"), _WithoutValues():
            return kind(**given)
    except Exception as error:  # the arguments may be anything of their types, and so is what MONAI raises on them
        raise InputError(f"{path}: arguments do not fit {kind.__name__}: {reason(error)}") from error


def checked_network(path: str | os.PathLike, metadata: Mapping[str, Any]) -> TunableNetwork:
    """
    The network of an adapter on the meta device, if every tensor of the file fits in it; of the file the header is
    read alone.

    Args:
        path: the file.
        metadata: its metadata.

    Raises:
        InputError: see :func:`build_network`.
    """
    net = blank_network(path, network_class(path, metadata), {}, metadata["arguments"])
    parts = metadata["parts"]
    own = [part for part in PARTS[1:] if any(True for _ in net.tensors([part]))]
    if not parts or parts != [part for part in own if part in parts]:
        raise InputError(f"{path}: parts must be of {own}, in this order, got {parts}.")
    check_fit(path, metadata, read_kinds(path), dict(net.tensors(parts)))
    return net


def build_network(path: str | os.PathLike) -> TunableNetwork:
    """
    A network as the one that an adapter was saved from, without its weights. No memory is taken for it before its
    arguments are found to be in bounds and every tensor of the file to fit.

    Args:
        path: file written by :func:`save_adapter`.

    Raises:
        InputError: if the file is no adapter, its network or an argument is unknown or out of bounds, the file's
            tensors are not those of the network, or the network takes more memory than ``max_bytes``.
    """
    metadata = adapter_metadata(path)
    blank = checked_network(path, metadata)
    check_bytes(f"{path}: the network that it names", sum(tensor.nbytes for tensor in blank.state_dict().values()))
    try:
        with torch.random.fork_rng(devices=[]):  # loading a file moves nobody's random numbers
            return type(blank)(**metadata["arguments"])
    except Exception as error:  # such as too little memory
        raise InputError(f"{path}: {type(blank).__name__} cannot be built: {reason(error)}") from error


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a longer number"
    return text if len(text) < 100 else text[:100] + "..."
