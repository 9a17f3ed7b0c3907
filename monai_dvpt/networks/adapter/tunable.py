# SPDX-License-Identifier: Apache-2.0
"""The parts of a network: which of them are trained, and how much that is."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.networks.blocks import TransformerBlock
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import Self

from monai_dvpt.networks.blocks import DVPTList

from .wrapped import on_network

__all__ = [
    "PARTS",
    "TunableNetwork",
    "check_decoder_tuning",
    "count_parameters",
    "freeze_backbone",
    "parameter_groups",
]

logger = logging.getLogger(__name__)

PARTS = ("backbone", "dvpt", "decoder", "head")
DECODER_TUNING = ("all", "norm", "none")
LARGE_SHARE = 0.05  # of a network's parameters; tuning more than that is no longer parameter-efficient


class TunableNetwork(nn.Module):
    """
    Base of the networks that can be tuned. It knows the part of every tensor, keeps frozen modules in eval mode, and
    records in ``arguments`` what a network was built with, so that an adapter file can say it.

    A subclass sets the class attributes, has its DVPT blocks in the list ``dvpt``, and sets ``dvpt_enabled``.
    """

    ENCODER = ""  # prefix of the names of the pretrained encoder's tensors; empty where the network is the encoder
    HEAD = ""  # prefix of the names of the output layer's tensors
    SKIP_LAYERS: tuple[int, ...] = ()  # layers whose tokens are used beside those of the last one
    # arguments that may differ between adapters on one backbone, and those that change no output in eval mode
    ADAPTER_ARGUMENTS = frozenset({"bottleneck_size", "num_prompts", "share_every", "start_layer", "side_path"})
    DECODER_ARGUMENTS: frozenset = frozenset()  # of those, what the decoder is built with
    TRAINING_ARGUMENTS = frozenset({"dropout_rate", "save_attn", "use_checkpoint"})

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        arguments: dict[str, Any]
        fixed: list[str]
        backbone_file: str | None
        rounding: tuple[str, str] | None  # SHA-256 of the backbone after and before round_backbone
        inflate_axis: int
        adapter_name: str
        inactive_adapters: dict[str, Any]
        dvpt: DVPTList
        dvpt_of_layer: list[int]
        side_path: bool
        dvpt_enabled: bool
        prefix_layers: list[int]

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
            self.arguments = dict(list(bound.arguments.items())[1:])
            self.fixed = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
            self.backbone_file, self.inflate_axis = None, -1
            self.rounding = None
            self.adapter_name = "default"
            self.inactive_adapters = {}

        cls.__init__ = recording  # type: ignore[assignment]

    def encoder(self) -> Any:
        """The pretrained encoder, a module under whose own names its weights are loaded and identified."""
        return self.get_submodule(self.ENCODER.removesuffix("."))

    def adapter_arguments(self) -> frozenset[str]:
        """Arguments that may differ between the adapters of this network: a frozen decoder is that of the backbone."""
        tuning = str(self.arguments.get("decoder_tuning"))
        fixed = {"none": self.DECODER_ARGUMENTS, "norm": self.DECODER_ARGUMENTS - {"norm_name"}}
        return self.ADAPTER_ARGUMENTS - fixed.get(tuning, frozenset())

    def part_of(self, name: str) -> str:
        """
        The part, of "backbone", "dvpt", "decoder" and "head", to which a parameter or buffer belongs. What of the
        decoder is never tuned (``decoder_tuning``) belongs to the backbone.

        Args:
            name: its name in the network.
        """
        if name.startswith("dvpt."):
            return "dvpt"
        if name.startswith(self.HEAD):
            return "head"
        if name.startswith(self.ENCODER):
            return "backbone"
        tuning = self.arguments["decoder_tuning"]
        norm = tuning == "norm" and is_norm(self.get_submodule(name.rpartition(".")[0]))
        return "decoder" if tuning == "all" or norm else "backbone"

    def tensors(self, parts: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors, parameters and saved buffers, of some parts; what is shared is named once."""
        seen = set()
        for name, tensor in self.state_dict(keep_vars=True).items():
            if id(tensor) not in seen and self.part_of(name) in parts:
                seen.add(id(tensor))
                yield name, tensor

    def adapt(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The DVPT block that follows a transformer layer, where one does and DVPT is on.

        Args:
            x: output of the layer, of shape (B, N, C).
            side: what a side path has added to such outputs so far, of the same shape or one that broadcasts to it.
            layer: index of the layer.

        Returns:
            what the next layer sees; what the side path has added by now; and the adapted tokens. Without a side path
            the next layer sees the adapted tokens.
        """
        if not self.dvpt_enabled or self.dvpt_of_layer[layer] < 0:
            return x, side, x
        adapted = x + side if self.side_path else x
        for index, block in enumerate(self.dvpt):  # TorchScript has no indexing of module lists
            if index == self.dvpt_of_layer[layer]:
                adapted = block(adapted)
        return (x, adapted - x, adapted) if self.side_path else (adapted, side, adapted)

    def use_dvpt(self, dvpt: DVPTList, side_path: bool = False) -> None:
        """
        Registers the list of DVPT blocks.

        Args:
            dvpt: the list.
            side_path: whether the transformer layers see the outputs of each other alone, see :meth:`adapt`.

        Raises:
            ValueError: if ``side_path`` is no truth value.
        """
        if not isinstance(side_path, bool):
            raise ValueError(f"side_path must be True or False, got {side_path!r}.")
        self.dvpt = dvpt
        self.dvpt_of_layer = dvpt.block_of_layer
        self.side_path = side_path
        last = len(self.dvpt_of_layer) - 1
        first = next((layer for layer, block in enumerate(self.dvpt_of_layer) if block >= 0), last)
        # layers whose frozen tokens suffice to go on from: those before DVPT, and with a side path those beside it too
        skips = [layer for layer in self.SKIP_LAYERS if layer < first]
        self.prefix_layers = [*skips, *range(first, last + 1 if side_path else first + 1)]

    @torch.jit.unused
    def forward_prefix(self, image: torch.Tensor) -> torch.Tensor:
        """
        What the frozen layers compute of an image before DVPT comes in, and with a side path also beside it. It does
        not depend on what is trained, so it can be kept: ``net(image, net.forward_prefix(image))`` is ``net(image)``.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.

        Returns:
            a tensor whose first dimension is B, without a graph.

        Raises:
            ValueError: if a parameter of the encoder is trained.
        """
        return self.pack_prefix(self.frozen_states(image, self.prefix_layers))

    def frozen_states(self, image: torch.Tensor, layers: Sequence[int]) -> Any:
        """
        What frozen layers compute of an image without DVPT, for all adapters of a backbone.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            layers: indices of the layers, ascending; none after the last of them has to run.

        Returns:
            what :meth:`pack_prefix` takes, without a graph.

        Raises:
            ValueError: if a parameter of the encoder is trained.
        """
        raise NotImplementedError

    def pack_prefix(self, states: Any) -> torch.Tensor:
        """
        Of what :meth:`frozen_states` gave, for ``prefix_layers`` at least, the part that this network goes on from, as
        one tensor whose first dimension is B.
        """
        raise NotImplementedError

    @torch.jit.unused
    def check_frozen(self) -> None:
        """
        Raises:
            ValueError: if a parameter of the encoder is trained.
        """
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name.startswith(self.ENCODER) and self.part_of(name) == "backbone":
                raise ValueError(f"a prefix must come from a frozen encoder, but {name} is trained.")

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode; a module without a trainable parameter stays in eval mode, so its dropout is off."""
        super().train(mode)
        _eval_frozen(self)
        return self


@on_network
def freeze_backbone(net: TunableNetwork, train: Sequence[str] | None = None) -> TunableNetwork:
    """
    Sets which parts of a network are trained; all others, by default the backbone, are frozen and put in eval mode.
    Says so where more than 5 % of the network's parameters are trained.

    Args:
        net: the network.
        train: names of the parts to train, of "backbone", "dvpt", "decoder" and "head"; by default all but the
            backbone. All but "dvpt" is full fine-tuning; without "backbone" and "dvpt" it is a frozen encoder.

    Returns:
        ``net``.

    Raises:
        ValueError: if a name is unknown or the network has no such part.
    """
    known = [part for part in PARTS if part != "decoder" or "decoder_tuning" in net.arguments]
    chosen = known[1:] if train is None else train
    if set(chosen) - set(known) or not chosen:
        raise ValueError(f"train must name parts of {sorted(known)}, got {list(chosen)}.")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(net.part_of(name) in chosen and name not in net.fixed)
    for module in net.modules():  # never used without cross-attention, and DDP rejects what gets no gradient
        if isinstance(module, TransformerBlock) and not module.with_cross_attention:
            module.norm_cross_attn.requires_grad_(False)
    counts = count_parameters(net)
    if not counts["network"]["trainable"]:
        raise ValueError(f"train must name a part that has parameters, got {list(chosen)}.")
    total, trainable = counts["network"]["total"], counts["network"]["trainable"]
    if trainable > LARGE_SHARE * total:
        parts = ", ".join(f"{part} {100 * counts[part]['trainable'] / total:.1f} %" for part in chosen)
        advice = "" if "decoder" not in chosen else " decoder_tuning or train can leave a pretrained decoder frozen."
        logger.warning(
            f"{100 * trainable / total:.1f} % of the network's {total:,} parameters are trained, more than "
            f"{100 * LARGE_SHARE:.0f} %: {parts}.{advice}"
        )
    return net.train(net.training)


@on_network
def parameter_groups(net: TunableNetwork, learning_rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """
    The trainable parameters, each once, as groups for a ``torch.optim`` optimiser, one for each part.

    Args:
        net: network, its parts frozen or not by :func:`freeze_backbone`.
        learning_rates: learning rate of each part; those of frozen parts are not used.

    Raises:
        ValueError: if a part that is trained has no learning rate.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(net.part_of(name), []).append(parameter)
    if missing := sorted(groups.keys() - learning_rates.keys()):
        raise ValueError(
            f"learning_rates must have one for {missing[0]}, which is trained, got {dict(learning_rates)}."
        )
    return [{"params": parameters, "lr": learning_rates[part]} for part, parameters in groups.items()]


@on_network
def count_parameters(net: TunableNetwork) -> dict[str, dict[str, int]]:
    """
    Parameters of every part and of the whole network, each counted once.

    Returns:
        for each part and for "network", the counts "total" and "trainable".
    """
    counts = {part: {"total": 0, "trainable": 0} for part in (*PARTS, "network")}
    for name, parameter in net.named_parameters():
        for part in (net.part_of(name), "network"):
            counts[part]["total"] += parameter.numel()
            counts[part]["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


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
        if any(parameter.requires_grad for parameter in child.parameters()):
            _eval_frozen(child)
        elif any(True for _ in child.parameters()):
            child.eval()


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch, instance, group or layer normalisation."""
    return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm))
