# SPDX-License-Identifier: Apache-2.0
"""What all encoders share: the loop over their layers, and the prefix, which replaces the frozen layers among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

from monai_dvpt.networks.blocks import fuse_attention

from .slot import Slot

__all__ = ["Encoder"]


class Encoder(Slot):
    """
    A transformer that runs its layers in one loop and has a slot for a tuning method.

    A subclass also derives from MONAI's transformer, keeps its layers in ``blocks``, and calls :meth:`open_slot`.

    Attributes:
        arithmetic: what the encoder computes beyond its tensors, such as the number of heads, by name.
        outputs: layers whose adapted tokens the network uses; -1 is the embedding.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        blocks: Any
        img_size: list[int]
        arithmetic: dict[str, Any]
        outputs: list[int]
        never_trained: list[str]
        dvpt: nn.ModuleList
        dvpt_of_layer: list[int]
        side_path: bool
        prefix_layers: list[int]
        use_checkpoint: bool

    def open_slot(self, outputs: Sequence[int], use_checkpoint: bool, **arithmetic: Any) -> None:
        """
        Prepares the encoder for a method and fuses its attention. With ``use_checkpoint`` the layers recompute their
        activations in the backward pass; the other arguments become attributes.
        """
        fuse_attention(self)
        self.outputs, self.use_checkpoint, self.arithmetic = list(outputs), use_checkpoint, arithmetic
        unused = {id(p) for module in self.unused_modules() for p in module.parameters()}
        self.never_trained = [n for n, p in self.named_parameters() if not p.requires_grad or id(p) in unused]
        self.slot, self.owned, self.originals = None, [], {}
        self.follow_layers(nn.ModuleList(), [-1] * len(self.blocks))
        self.slot_changed()

    def widths(self) -> list[int]:
        """Token width ``C`` of every layer."""
        return [block.norm1.normalized_shape[0] for block in self.blocks]

    def attentions(self) -> list[Any]:
        """The self-attention of every layer; its linear layer ``qkv`` makes queries, keys and values."""
        return [block.attn for block in self.blocks]

    def feed_forwards(self) -> list[Any]:
        """The feed-forward part of every layer."""
        return [block.mlp for block in self.blocks]

    def like(self) -> torch.Tensor:
        """A tensor with the device and type of a method's tensors; no normalisation is ever rounded."""
        return self.blocks[0].norm1.weight

    def embedding(self) -> nn.Module:
        """The module that turns an image into tokens."""
        raise NotImplementedError

    def patch_values(self) -> int:
        """Number of image values that the first layer of the embedding combines."""
        modules = self.embedding().modules()
        return next(module.weight[0].numel() for module in modules if isinstance(module, (nn.Linear, _ConvNd)))

    def unused_modules(self) -> set[nn.Module]:
        """Modules that the encoder does not use: they belong to a head or are never computed with."""
        return set()

    def used_modules(self) -> list[nn.Module]:
        """All modules, at any depth, that the encoder's forward pass uses, except DVPT blocks."""
        unused = {part for module in (*self.unused_modules(), self.dvpt) for part in module.modules()}
        return [module for module in self.modules() if module not in unused]

    def token_size(self, layer: int) -> list[int]:
        """Sides, in voxels, of the image region that a token stands for after a layer."""
        raise NotImplementedError

    def frozen_layers(self, name: str) -> int:
        """Index of the last layer that runs before a tensor is used; -1 for none, -2 if the embedding uses it."""
        raise NotImplementedError

    def follow_layers(self, blocks: nn.ModuleList, block_of_layer: Sequence[int], side_path: bool = False) -> None:
        """
        Sets the blocks that follow layers.

        Args:
            blocks: each maps tokens of shape (B, N, C) to tokens of the same shape.
            block_of_layer: for every layer the index of the block that follows it, -1 for none.
            side_path: whether each layer sees only the output of the layer before, see :meth:`adapt`.
        """
        self.dvpt, self.dvpt_of_layer, self.side_path = blocks, list(block_of_layer), side_path

    def check_size(self, image: torch.Tensor) -> None:
        """Raises ValueError if the spatial size of an image is not ``img_size``, that of the encoder."""
        if list(image.shape[2:]) != self.img_size:
            raise ValueError(f"input must have the spatial size img_size={self.img_size}, got {list(image.shape[2:])}.")

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens of an image, the input of the first layer, of shape (B, \\*grid, C) or (B, N, C)."""
        raise NotImplementedError

    def enter(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs what comes before a layer, on its input and on what a side path adds to it."""
        return x, side

    def leave(
        self, x: torch.Tensor, side: torch.Tensor, adapted: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs what comes between a layer's block and the next layer, on what :meth:`adapt` returned."""
        return x, side, adapted

    def adapt(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Runs the block that follows a layer, if any.

        Args:
            x: output of the layer, of shape (B, N, C) or (B, \\*grid, C).
            side: sum of what the side path has added so far, of a shape that broadcasts to that of ``x``.
            layer: index of the layer.

        Returns:
            the next layer's input, which without a side path is the adapted tokens; the new ``side``; and the adapted
            tokens.
        """
        if self.dvpt_of_layer[layer] < 0:
            return x, side, x
        adapted = x + side if self.side_path else x
        adapted = adapted.flatten(1, -2)
        for index, block in enumerate(self.dvpt):  # TorchScript has no indexing of module lists
            if index == self.dvpt_of_layer[layer]:
                adapted = block(adapted)
        adapted = adapted.reshape(x.shape)
        return (x, adapted - x, adapted) if self.side_path else (adapted, side, adapted)

    def run(
        self, image: torch.Tensor, prefix: torch.Tensor | None, keep: list[int], wanted: list[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """
        Runs the layers.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            prefix: the result of :meth:`prefix_of` for it; the frozen layers that it replaces do not run.
            keep: layers whose adapted tokens to return.
            wanted: layers whose own outputs to return, ascending; layers after the last of them do not run.

        Returns:
            by layer, the adapted tokens, after the last layer of a stage on the next stage's grid; and by layer, the
            outputs.
        """
        states: dict[int, torch.Tensor] = {}
        seen: dict[int, torch.Tensor] = {}
        frozen: dict[int, torch.Tensor] = {}
        first = -1
        if prefix is None:
            x = self.embed(image)
        else:
            states, frozen = self.unpack_prefix(prefix, image)
            first = self.prefix_layers[0]
            x = frozen[first]
        if first == -1 and -1 in keep:
            states[-1] = x
        if -1 in wanted:
            seen[-1] = x
        last = wanted[-1] if len(wanted) > 0 else len(self.dvpt_of_layer) - 1
        side = torch.zeros([1], device=x.device, dtype=x.dtype)
        for layer, block in enumerate(self.blocks):
            if first <= layer and layer <= last:
                if layer > first:
                    x, side = self.enter(x, side, layer)
                if layer in frozen:
                    x = frozen[layer]
                elif not torch.jit.is_scripting() and not torch.jit.is_tracing() and self.use_checkpoint:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
                if layer in wanted:
                    seen[layer] = x
                x, side, adapted = self.adapt(x, side, layer)
                if layer in keep or layer < last:
                    x, side, adapted = self.leave(x, side, adapted, layer)
                if layer in keep:
                    states[layer] = adapted
        return states, seen

    @torch.jit.unused
    def prefix_of(self, image: torch.Tensor) -> torch.Tensor:
        """
        The frozen layers' outputs, as far as the method does not change them, for an image of shape
        ``(B, in_channels, *spatial)``: a tensor of shape (B, numbers), without a graph.

        Raises:
            ValueError: if a parameter of the backbone is trained, or the method changes the embedding.
        """
        if self.prefix_layers[0] < -1:
            raise ValueError(f'a prefix must come from frozen layers, and "{self.slot.name}" changes the embedding.')  # type: ignore[union-attr]
        return self.pack_prefix(*self.frozen_states(image, self.prefix_layers))

    @torch.jit.unused
    def check_frozen(self) -> None:
        """Raises ValueError if a parameter of the backbone is trained."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name not in self.owned and self.is_own(name):
                raise ValueError(f"a prefix must come from a frozen encoder, but {name} is trained.")

    @torch.jit.unused
    @torch.no_grad()
    def frozen_states(
        self, image: torch.Tensor, layers: Sequence[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """
        Runs frozen layers on an image without a method; the result serves all adapters of a backbone.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            layers: indices of the layers, ascending; layers after the last of them do not run.

        Returns:
            the arguments of :meth:`pack_prefix`, without a graph.

        Raises:
            ValueError: if a parameter of the backbone is trained.
        """
        self.check_frozen()
        with self.without_method():
            modes = [(module, module.training) for module in self.modules()]
            self.eval()  # so that dropout is off
            try:
                return self.run(image, None, self.outputs, list(layers))
            finally:
                for module, mode in modes:
                    module.training = mode

    @torch.jit.unused
    def pack_prefix(self, states: Mapping[int, torch.Tensor], seen: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """
        Packs the tokens that the method needs into a tensor of shape (B, numbers). The arguments are the result of
        :meth:`frozen_states` for at least ``prefix_layers``. Every layer up to the first of ``prefix_layers`` adds a
        column of zeros, so that the shape alone tells a prefix of other layers.
        """
        kept = [states[layer] for layer in self.outputs_before()] + [seen[layer] for layer in self.prefix_layers]
        layers_run = kept[-1].new_zeros(len(kept[-1]), self.prefix_layers[0] + 1)
        return torch.cat([*(tensor.flatten(1) for tensor in kept), layers_run], dim=1)

    def unpack_prefix(
        self, prefix: torch.Tensor, image: torch.Tensor
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """The inverse of :meth:`pack_prefix`."""
        states: dict[int, torch.Tensor] = {}
        seen: dict[int, torch.Tensor] = {}
        sides = list(image.shape[2:])
        outputs = self.outputs_before()
        shapes = [self.token_shape(sides, layer, True) for layer in outputs]
        shapes += [self.token_shape(sides, layer, False) for layer in self.prefix_layers]
        sizes = [_product(shape) for shape in shapes] + [self.prefix_layers[0] + 1]
        if list(prefix.shape) != [image.shape[0], sum(sizes)]:
            raise ValueError(
                f"prefix must come from this image and the layers before the method, of shape "
                f"{[image.shape[0], sum(sizes)]}, got {list(prefix.shape)}."
            )
        parts = prefix.split(sizes, dim=1)
        for index in range(len(shapes)):
            tensor = parts[index].reshape([image.shape[0]] + shapes[index])
            if index < len(outputs):
                states[outputs[index]] = tensor
            else:
                seen[self.prefix_layers[index - len(outputs)]] = tensor
        return states, seen

    def token_shape(self, sides: list[int], layer: int, left: bool) -> list[int]:
        """
        Shape, without the batch, of the tokens after a layer.

        Args:
            sides: spatial size of the image.
            layer: the layer, -1 for the embedding.
            left: whether after :meth:`leave` too.
        """
        raise NotImplementedError

    def is_own(self, name: str) -> bool:
        """Whether a tensor of the module belongs to the encoder, not to a head."""
        return True

    def outputs_before(self) -> list[int]:
        """The layers of ``outputs`` before the first of ``prefix_layers``, whose tokens a prefix contains."""
        layers: list[int] = []
        for layer in self.outputs:  # TorchScript has no condition in a comprehension
            if layer < self.prefix_layers[0]:
                layers.append(layer)
        return layers

    def slot_changed(self) -> None:
        """Sets ``prefix_layers``: the last frozen layer before the method, with a side path all layers from there."""
        if self.slot is None and len(self.dvpt):
            self.follow_layers(nn.ModuleList(), [-1] * len(self.blocks))
        last = len(self.blocks) - 1
        frozen = [layer for layer, block in enumerate(self.dvpt_of_layer) if block >= 0][:1]
        frozen += [self.frozen_layers(name) for name in self.owned if not name.startswith("dvpt.")]
        first = min([*frozen, last])
        self.prefix_layers = list(range(first, last + 1)) if self.side_path else [first]


def _product(sides: list[int]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product
