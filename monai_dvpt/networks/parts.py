# SPDX-License-Identifier: Apache-2.0
"""The parts of a network: which are trained, and how many parameters each has."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from monai_dvpt.utils import InputError

from .encoders import Encoder, get_tensor
from .methods import Method, as_method
from .wrapped import on_network

__all__ = [
    "PARTS",
    "TunableNetwork",
    "adapter_parts",
    "check_decoder_tuning",
    "count_parameters",
    "freeze_backbone",
    "parameter_groups",
    "restart_copies",
    "tune",
]

logger = logging.getLogger(__name__)

PARTS = ("backbone", "method", "decoder", "head")
DECODER_TUNING = ("all", "norm", "none")
LARGE_SHARE = 0.05  # of a network's parameters; tuning more is no longer parameter-efficient


class TunableNetwork(nn.Module):
    """
    Base of tunable networks: an encoder with a tuning method in its slot, then a decoder, a head or both. It knows the
    part of every tensor, keeps frozen modules in eval mode, and records its constructor's arguments in ``arguments``
    for the adapter file.

    A subclass sets the class attributes, takes ``method`` and ``options`` as its last arguments, and ends its
    constructor with :meth:`start`.
    """

    ENCODER = ""  # root of the pretrained encoder's tensors; empty where the network is the encoder
    HEAD = ""  # root of the output layer's tensors
    ADAPTER_ARGUMENTS: frozenset[str] = frozenset()  # may differ between adapters on one backbone
    DECODER_ARGUMENTS: frozenset[str] = frozenset()  # those of them that shape the decoder
    # change no output in eval mode
    TRAINING_ARGUMENTS = frozenset({"dropout_rate", "save_attn", "use_checkpoint"})
    __jit_unused_properties__ = ("method",)

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        arguments: dict[str, Any]
        backbone_file: str | None
        rounding: tuple[str, str] | None  # SHA-256 of the backbone after and before round_backbone
        inflate_axis: int
        adapter_name: str
        inactive_adapters: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" not in cls.__dict__:
            return
        init: Any = cls.__init__

        @functools.wraps(init)
        def recording(self: TunableNetwork, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.arguments = {k: v for k, v in list(bound.arguments.items())[1:] if k not in ("method", "options")}
            self.record_layout()
            self.backbone_file, self.inflate_axis = None, -1
            self.rounding = None
            self.adapter_name = "default"
            self.inactive_adapters = {}

        cls.__init__ = recording  # type: ignore[assignment]

    def record_layout(self) -> None:
        """Writes the encoder's layout to ``arguments``, of networks that have one; equal layouts are written alike."""
        if "layout" in self.arguments:
            self.arguments = {**self.arguments, "layout": self.encoder().arithmetic.get("layout")}

    def start(self, method: str | Mapping[str, Any] | Method, options: Mapping[str, Any]) -> None:
        """Attaches the method that the constructor was given, see :func:`as_method`, to the encoder."""
        self.encoder().attach(as_method(method, **options))

    def encoder(self) -> Any:
        """The pretrained :class:`Encoder`; its weights are loaded and identified by their names inside it."""
        return self.get_submodule(self.ENCODER.removesuffix("."))

    @property
    def method(self) -> Method:
        """The method in the encoder's slot."""
        return self.encoder().slot

    def adapter_arguments(self) -> frozenset[str]:
        """Arguments that may differ between adapters of this network; a frozen decoder belongs to the backbone."""
        tuning = str(self.arguments.get("decoder_tuning"))
        fixed = {"none": self.DECODER_ARGUMENTS, "norm": self.DECODER_ARGUMENTS - {"norm_name"}}
        return self.ADAPTER_ARGUMENTS - fixed.get(tuning, frozenset())

    def part_of(self, name: str) -> str:
        """
        The part, "backbone", "method", "decoder" or "head", of a parameter or buffer, by its name in the network.
        Tensors of the decoder that ``decoder_tuning`` excludes belong to the backbone.
        """
        if name.startswith(self.HEAD):
            return "head"
        if name.startswith(self.ENCODER):
            return "method" if name.removeprefix(self.ENCODER) in self.encoder().owned else "backbone"
        tuning = self.arguments["decoder_tuning"]
        norm = tuning == "norm" and is_norm(self.get_submodule(name.rpartition(".")[0]))
        return "decoder" if tuning == "all" or norm else "backbone"

    def tensors(self, parts: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """
        Names and tensors, parameters and saved buffers, of some parts; shared tensors appear once. Where the method
        trains a copy of an encoder tensor, the backbone has the original under the same name.
        """
        seen = set()
        originals = self.encoder().originals if "backbone" in parts else {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            if (own := name.removeprefix(self.ENCODER)) in originals:
                yield name, originals[own]
            if id(tensor) not in seen and self.part_of(name) in parts:
                seen.add(id(tensor))
                yield name, tensor

    @torch.jit.unused
    def forward_prefix(self, image: torch.Tensor) -> torch.Tensor:
        """
        The frozen layers' outputs for an image, as far as the method does not change them. They do not depend on the
        trained tensors, so they can be kept: ``net(image, net.forward_prefix(image))`` equals ``net(image)``.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.

        Returns:
            a tensor of shape (B, numbers), without a graph.

        Raises:
            ValueError: if a parameter of the encoder is trained, or the method changes the embedding.
        """
        encoder: Encoder = self.encoder()
        return encoder.prefix_of(image)

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode; modules without trainable parameters stay in eval mode, with dropout off."""
        super().train(mode)
        _eval_frozen(self)
        return self


@on_network
def freeze_backbone(net: TunableNetwork, train: Sequence[str] | None = None) -> TunableNetwork:
    """
    Sets which parts of a network are trained; freezes the others and the backbone and puts them in eval mode. Warns if
    more than 5 % of the network's parameters are trained.

    Args:
        net: the network.
        train: parts to train, of "method", "decoder" and "head"; by default all.

    Returns:
        ``net``.

    Raises:
        ValueError: if a part is unknown, or there is nothing to train.
    """
    chosen = adapter_parts(net) if train is None else list(train)
    if set(chosen) - set(PARTS[1:]):
        raise InputError(f"train must name parts of {sorted(PARTS[1:])}, got {chosen}.")
    if not any(net.part_of(name) in chosen for name, _ in net.named_parameters()):
        raise InputError(f"train must name a part that has parameters, got {chosen}.")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(net.part_of(name) in chosen)
    counts = count_parameters(net)
    total, trainable = counts["network"]["total"], counts["network"]["trainable"]
    if trainable > LARGE_SHARE * total:
        parts = ", ".join(f"{part} {100 * counts[part]['trainable'] / total:.1f} %" for part in chosen)
        advice = "" if "decoder" not in chosen else " decoder_tuning or train can leave a pretrained decoder frozen."
        logger.warning(
            f"{100 * trainable / total:.1f} % of the network's {total:,} parameters are trained, more than "
            f"{100 * LARGE_SHARE:.0f} %: {parts}.{advice}"
        )
    return net.train(net.training)


def adapter_parts(net: TunableNetwork) -> list[str]:
    """The parts of a network except the backbone, in the order of ``PARTS``."""
    found = {net.part_of(name) for name in net.state_dict()}
    return [part for part in PARTS[1:] if part in found]


@on_network
def tune(net: TunableNetwork, method: str | Mapping[str, Any] | Method = "dvpt", **options: Any) -> TunableNetwork:
    """
    Replaces a network's tuning method and freezes the backbone; method, decoder and head are trained. Pretrained
    weights may be loaded before or afterwards.

    Args:
        net: the network.
        method: a name of :data:`monai_dvpt.networks.methods.METHODS`, or a mapping with the "name" and options.
        options: options of the method.

    Returns:
        ``net``.

    Raises:
        ValueError: if ``net`` is no network of this package or the method does not fit it; if the method or an option
            is unknown or an option is outside its range; or if there is nothing to train.

    Examples::

        >>> from monai_dvpt.networks.nets import DVPTViT
        >>> net = DVPTViT(3, 64, 16, hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2, num_classes=5)
        >>> net = tune(net, "lora", rank=4)
        >>> [name for name, tensor in net.blocks[0].named_parameters() if tensor.requires_grad]
        ['attn.qkv.lora_a', 'attn.qkv.lora_b']

    """
    if not isinstance(net, TunableNetwork):
        raise ValueError(f"net must be a network of monai_dvpt.networks.nets, got {type(net).__name__}.")
    taken = net.encoder().detach()
    try:
        net.encoder().attach(as_method(method, **options))
        return freeze_backbone(net)
    except Exception:
        if taken is not None:
            net.encoder().attach(taken.method, taken.tensors)
        raise


@on_network
def parameter_groups(
    net: TunableNetwork, learning_rates: Mapping[str, float], layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """
    The trainable parameters as groups for a ``torch.optim`` optimiser. Its weight decay acts on the weights of linear
    layers and convolutions; all others, such as scales, biases, normalisations, prompts, gates, class tokens and
    position tables, have groups with a weight decay of 0.

    Args:
        net: the network, after :func:`freeze_backbone`.
        learning_rates: learning rate of each part; those of frozen parts are ignored.
        layer_decay: factor, in ``(0, 1]``, of the learning rate from each layer of the encoder to the one before it,
            and from the first to the embedding, for the encoder's own tensors, if the method trains any; the final
            normalisation has the rate itself. Based on: "Clark et al., ELECTRA <https://arxiv.org/abs/2003.10555>", as
            "Bao et al., BEiT <https://arxiv.org/abs/2106.08254>" use it.

    Raises:
        ValueError: if a trained part has no learning rate, ``layer_decay`` is outside its range, or it is below 1 and
            the method trains none of the encoder's own tensors.
    """
    encoder: Encoder = net.encoder()
    if not 0 < layer_decay <= 1:
        raise InputError(f"layer_decay must be in (0, 1], got {layer_decay}.")
    if layer_decay < 1 and not encoder.originals:
        name = encoder.slot.name if encoder.slot else None
        raise InputError(
            f"layer_decay must be 1 with a method that trains none of the encoder's own tensors, got {layer_decay} "
            f"for {name}."
        )
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        part = net.part_of(name)
        if part not in learning_rates:
            raise InputError(f"learning_rates must have one for {part}, which is trained, got {dict(learning_rates)}.")
        own = name.removeprefix(net.ENCODER)
        layers_after = len(encoder.blocks) - 1 - encoder.frozen_layers(own) if own in encoder.originals else 0
        rate = learning_rates[part] * layer_decay**layers_after
        groups.setdefault((rate, _decays(net, name, parameter)), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, **({} if decays else {"weight_decay": 0.0})}
        for (rate, decays), parameters in groups.items()
    ]


def _decays(net: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: on what a linear layer or convolution multiplies with."""
    holder = net.get_submodule(name.rpartition(".")[0])
    return parameter.ndim > 1 and isinstance(holder, (nn.Linear, _ConvNd))


@on_network
def count_parameters(net: TunableNetwork) -> dict[str, dict[str, int]]:
    """
    Number of parameters of every part and of the whole network; shared parameters count once.

    Returns:
        for each part and for "network", the counts "total" and "trainable".
    """
    counts = {part: {"total": 0, "trainable": 0} for part in (*PARTS, "network")}
    for name, parameter in net.named_parameters():
        for part in (net.part_of(name), "network"):
            counts[part]["total"] += parameter.numel()
            counts[part]["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


@torch.no_grad()
def restart_copies(net: TunableNetwork, source: TunableNetwork) -> None:
    """Resets the copies of encoder tensors that a network's method trains to the backbone of ``source``."""
    backbone = dict(source.tensors(["backbone"]))
    for name in net.encoder().originals:
        get_tensor(net.encoder(), name).copy_(backbone[source.ENCODER + name])


def check_decoder_tuning(decoder_tuning: str, decoder: Sequence[nn.Module]) -> None:
    """
    Raises:
        ValueError: if ``decoder_tuning`` is unknown, or asks for normalisation layers that have no parameters.
    """
    if decoder_tuning not in DECODER_TUNING:
        raise ValueError(f"decoder_tuning must be one of {DECODER_TUNING}, got {decoder_tuning}.")
    norms = (module for top in decoder for module in top.modules() if is_norm(module))
    if decoder_tuning == "norm" and not any(True for module in norms for _ in module.parameters()):
        raise ValueError(
            'decoder_tuning="norm" must have normalisation layers with parameters, as of '
            'norm_name=("instance", {"affine": True}).'
        )


def _eval_frozen(module: nn.Module) -> None:
    for child in module.children():
        parameters = list(child.parameters())
        if not parameters and isinstance(module, Encoder):  # the dropout of its embedding
            parameters = list(module.embedding().parameters())
        if any(parameter.requires_grad for parameter in parameters):
            _eval_frozen(child)
        elif parameters:
            child.eval()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch, instance, group or layer normalisation."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm))
