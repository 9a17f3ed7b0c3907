# SPDX-License-Identifier: Apache-2.0
"""Several adapters, each with its own method, decoder and head, on one frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from monai_dvpt.networks.encoders import Attached
from monai_dvpt.networks.methods import Method, as_method
from monai_dvpt.networks.parts import PARTS, TunableNetwork, restart_copies
from monai_dvpt.networks.wrapped import on_network, unwrap

__all__ = ["adapter_names", "add_adapter", "delete_adapter", "disable_adapter", "predict_adapters", "set_adapter"]


@dataclass
class _Inactive:
    """An adapter that is not active."""

    method: Attached
    modules: dict[str, nn.Module]  # of decoder and head, by their names in the network
    arguments: dict[str, Any]


@on_network
def adapter_names(net: TunableNetwork) -> list[str]:
    """Names of the adapters of a network, the active one first; a new network has one, named "default"."""
    return [net.adapter_name, *net.inactive_adapters]


@on_network
def add_adapter(
    net: TunableNetwork, name: str, method: str | Mapping[str, Any] | Method | None = None, **arguments: Any
) -> TunableNetwork:
    """
    Adds a new, untrained adapter on the same backbone and makes it the active one.

    Args:
        net: the network.
        name: a new name.
        method: its tuning method; by default that of the active adapter, with the same options.
        arguments: options of the method, and new values for ``net.adapter_arguments()``, such as the number of classes,
            and the shape of a trained decoder.

    Returns:
        ``net``.

    Raises:
        ValueError: if the name is taken, or an argument would change the backbone or is outside its range.
    """
    if not name or name in adapter_names(net):
        raise ValueError(f"name must be a new one, not of {adapter_names(net)} and not empty, got {name!r}.")
    own = {key: arguments.pop(key) for key in net.adapter_arguments() & arguments.keys()}
    if fixed := sorted(arguments.keys() & net.arguments.keys()):
        raise ValueError(f"arguments of an adapter must be of {sorted(net.adapter_arguments())}, got {fixed}.")
    chosen = as_method(net.method if method is None else method, **arguments)
    donor = type(net)(**{**net.arguments, **own}, method=chosen)
    return adopt_adapter(net, name, donor, restart=True)


def adopt_adapter(net: TunableNetwork, name: str, donor: TunableNetwork, restart: bool = False) -> TunableNetwork:
    """
    Moves the adapter of ``donor``, a network of the same class, into ``net`` as the active one named ``name``,
    replacing one of that name. The parts trained in ``net`` are trained in it. With ``restart``, the copies of encoder
    tensors that its method trains start from the encoder of ``net``.
    """
    shapes = [{k: v.shape for k, v in each.tensors(["backbone"])} for each in (net, donor)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"arguments of {name} must not change the backbone, which includes a frozen decoder.")
    trained = {net.part_of(key) for key, parameter in net.named_parameters() if parameter.requires_grad}
    if trained:  # parts that the network lacks are trained too, such as the method of a linear probe
        trained |= set(PARTS) - {net.part_of(key) for key, _ in net.named_parameters()}
    for key, parameter in donor.named_parameters():
        parameter.requires_grad_(donor.part_of(key) in trained)
    if restart:
        restart_copies(donor, net)
    net.inactive_adapters[name] = _inactive(donor)
    if name == net.adapter_name:
        net.adapter_name = ""  # drops the active adapter
    return set_adapter(net, name)


@on_network
def set_adapter(net: TunableNetwork, name: str) -> TunableNetwork:
    """
    Makes another adapter the active one, which the network uses, trains and saves. The backbone does not change. An
    existing optimiser has the parameters of the former adapter: make a new one.

    Args:
        net: the network.
        name: one of its :func:`adapter_names`.

    Returns:
        ``net``.

    Raises:
        ValueError: if there is no adapter of that name.
    """
    if name == net.adapter_name:
        return net
    _check_known(net, name)
    chosen = net.inactive_adapters[name]
    for module in chosen.modules.values():
        module.to(net.encoder().like())  # the network may have moved since
    own = _inactive(net)
    try:
        net.encoder().attach(chosen.method.method, chosen.method.tensors)
    except Exception:  # such as out of memory
        net.encoder().attach(own.method.method, own.method.tensors)
        raise
    del net.inactive_adapters[name]
    if net.adapter_name:
        net.inactive_adapters[net.adapter_name] = own
    for key in own.modules.keys() - chosen.modules.keys():
        owner, _, attribute = key.rpartition(".")
        delattr(net.get_submodule(owner), attribute)
    for key, module in chosen.modules.items():
        net.set_submodule(key, module)
    net.arguments = {**net.arguments, **{key: chosen.arguments[key] for key in net.ADAPTER_ARGUMENTS}}
    net.adapter_name = name
    return net.train(net.training)


@on_network
def delete_adapter(net: TunableNetwork, name: str) -> TunableNetwork:
    """
    Deletes an adapter that is not active.

    Args:
        net: the network.
        name: one of its :func:`adapter_names`, not the active one.

    Returns:
        ``net``.

    Raises:
        ValueError: if there is no adapter of that name, or it is active.
    """
    _check_known(net, name)
    if name == net.adapter_name:
        raise ValueError(f"name must be that of an adapter not in use, got {name}; set another one before.")
    del net.inactive_adapters[name]
    return net


@on_network
def predict_adapters(
    net: TunableNetwork, image: torch.Tensor, names: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """
    Outputs of several adapters for one image. The frozen layers before all methods run once, then each adapter runs the
    rest; if a method changes the embedding, every adapter runs all layers.

    Args:
        net: the network, its encoder frozen.
        image: of shape ``(B, in_channels, *spatial)``.
        names: of the adapters, by default all.

    Returns:
        the network's output with each adapter, by name, with a graph where autograd records.

    Raises:
        ValueError: if there is no adapter of a name, or a parameter of the encoder is trained.
    """
    active, chosen = net.adapter_name, adapter_names(net) if names is None else list(names)
    if not chosen:
        return {}
    try:
        layers = {layer for name in chosen for layer in set_adapter(net, name).encoder().prefix_layers}
        states = net.encoder().frozen_states(image, sorted(layers)) if min(layers) >= -1 else None
        answers = {}
        for name in chosen:
            set_adapter(net, name)
            answers[name] = net(image, None if states is None else net.encoder().pack_prefix(*states))
    finally:
        set_adapter(net, active)
    return answers


@contextmanager
def disable_adapter(net: TunableNetwork) -> Iterator[TunableNetwork]:
    """
    Context without the method: the pretrained encoder, followed by the present decoder and head. Afterwards the method
    returns with the same tensors.
    """
    with unwrap(net).encoder().without_method():
        yield net


def _inactive(net: TunableNetwork) -> _Inactive:
    """Detaches the active adapter from a network."""
    modules = _adapter_modules(net)
    return _Inactive(net.encoder().detach(), modules, net.arguments)


def _check_known(net: TunableNetwork, name: str) -> None:
    if name not in adapter_names(net):
        raise ValueError(f"name must be one of {adapter_names(net)}, got {name}.")


def _adapter_modules(net: TunableNetwork) -> dict[str, nn.Module]:
    """By name, the largest modules whose tensors all belong to decoder and head."""
    # names of the modules that contain, at any depth, tensors of the backbone and tensors of the adapter
    backbone: set[str] = set()
    adapter: set[str] = {net.HEAD.removesuffix("."), "decoder"}  # even without tensors
    for name in net.state_dict():
        steps = name.split(".")
        owners = adapter if net.part_of(name) in ("decoder", "head") else backbone
        owners.update(".".join(steps[:depth]) for depth in range(1, len(steps)))
    found: dict[str, nn.Module] = {}

    def collect(root: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            key = root + name
            if key in adapter and key in backbone:
                collect(key + ".", child)
            elif key in adapter:
                found[key] = child

    collect("", net)
    return found
