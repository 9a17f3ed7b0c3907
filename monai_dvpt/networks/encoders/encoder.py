# SPDX-License-Identifier: Apache-2.0
"""What all encoders have in common: the loop over their layers, and what of it can be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from monai_dvpt.networks.blocks import fuse_attention

from .slot import Slot

__all__ = ["Encoder"]


class Encoder(Slot):
    """
    A transformer whose layers run in one loop, with a slot for a tuning method.

    A subclass also derives from MONAI's transformer, has its layers in ``blocks``, and calls :meth:`open_slot`.

    Attributes:
        arithmetic: what the encoder computes beyond its tensors, such as the number of heads, by name.
        outputs: layers whose states a network uses; -1 is the embedding.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        blocks: Any
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
        Makes the encoder ready for a method, and fuses its attention.

        Args:
            outputs: see the class.
            use_checkpoint: whether layers compute their activations again in the backward pass.
            arithmetic: see the class.
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

    def like(self) -> torch.Tensor:
        """A tensor on whose device and of whose type a method's are; no normalisation is ever rounded."""
        return self.blocks[0].norm1.weight

    def embedding(self) -> nn.Module:
        """The module that makes tokens of an image."""
        raise NotImplementedError

    def unused_modules(self) -> set[nn.Module]:
        """Modules that the forward pass does not use, or that belong to a head."""
        return set()

    def used_modules(self) -> list[nn.Module]:
        """All modules, at any depth, that the forward pass of the encoder uses, but for those of a method."""
        unused = {part for module in (*self.unused_modules(), self.dvpt) for part in module.modules()}
        return [module for module in self.modules() if module not in unused]

    def token_size(self, layer: int) -> list[int]:
        """Sides, in voxels of the image, of what a token stands for after a layer."""
        raise NotImplementedError

    def frozen_layers(self, name: str) -> int:
        """Index of the last layer that runs before a tensor is used; -1 for none, -2 if it is used in the embedding."""
        raise NotImplementedError

    def follow_layers(self, blocks: nn.ModuleList, block_of_layer: Sequence[int], side_path: bool = False) -> None:
        """
        Sets the modules that follow layers.

        Args:
            blocks: each maps tokens of shape (B, N, C) to such tokens.
            block_of_layer: for every layer the index of the one that follows it, -1 where none does.
            side_path: whether the layers see the outputs of each other alone, see :meth:`adapt`.
        """
        self.dvpt, self.dvpt_of_layer, self.side_path = blocks, list(block_of_layer), side_path

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Tokens of an image, as the first layer takes them, of shape (B, \\*grid, C) or (B, N, C)."""
        raise NotImplementedError

    def enter(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What comes before a layer: its input and what a side path adds to it."""
        return x, side

    def leave(
        self, x: torch.Tensor, side: torch.Tensor, adapted: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What comes after a layer and its block: what :meth:`adapt` gives, for the next layer."""
        return x, side, adapted

    def adapt(self, x: torch.Tensor, side: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The block that follows a layer, where one does.

        Args:
            x: output of the layer, of shape (B, N, C) or (B, \\*grid, C).
            side: what a side path has added to such outputs so far, of the same shape or one that broadcasts to it.
            layer: index of the layer.

        Returns:
            what the next layer sees; what the side path has added by now; and the adapted tokens. Without a side path
            the next layer sees the adapted tokens.
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
        The loop over the layers.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            prefix: what :meth:`prefix_of` gave for it; the frozen layers it stands for are then left out.
            keep: layers whose states are returned.
            wanted: layers whose outputs are returned, ascending; none after the last of them runs. Empty for none.

        Returns:
            by layer, the adapted tokens, at the end of a stage of the next stage's grid; and the outputs of the layers.
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
        What the frozen layers compute of an image before the method comes in, and with a side path also beside it.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.

        Returns:
            a tensor of shape (B, numbers), without a graph.

        Raises:
            ValueError: if a parameter of the backbone is trained, or the method changes the embedding.
        """
        if self.prefix_layers[0] < -1:
            raise ValueError(f'a prefix must come from frozen layers, and "{self.slot.name}" changes the embedding.')  # type: ignore[union-attr]
        return self.pack_prefix(*self.frozen_states(image, self.prefix_layers))

    @torch.jit.unused
    def check_frozen(self) -> None:
        """
        Raises:
            ValueError: if a parameter of the backbone is trained.
        """
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name not in self.owned and self.is_own(name):
                raise ValueError(f"a prefix must come from a frozen encoder, but {name} is trained.")

    @torch.jit.unused
    @torch.no_grad()
    def frozen_states(
        self, image: torch.Tensor, layers: Sequence[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """
        What frozen layers compute of an image without a method, for all adapters of a backbone.

        Args:
            image: of shape ``(B, in_channels, *spatial)``.
            layers: indices of the layers, ascending; none after the last of them has to run.

        Returns:
            what :meth:`pack_prefix` takes, without a graph.

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
        The part of what :meth:`frozen_states` returned, for at least ``prefix_layers``, from which the method takes
        over, of shape (B, numbers). A column of zeros for every frozen layer that ran lets the shape alone tell a
        prefix of other layers.
        """
        kept = [states[layer] for layer in self._outputs_before()] + [seen[layer] for layer in self.prefix_layers]
        layers_run = kept[-1].new_zeros(len(kept[-1]), self.prefix_layers[0] + 1)
        return torch.cat([*(tensor.flatten(1) for tensor in kept), layers_run], dim=1)

    def unpack_prefix(
        self, prefix: torch.Tensor, image: torch.Tensor
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """Of a prefix, the states and the outputs of layers."""
        states: dict[int, torch.Tensor] = {}
        seen: dict[int, torch.Tensor] = {}
        sides = list(image.shape[2:])
        outputs = self._outputs_before()
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
        Shape, but for the batch, of the tokens of an image after a layer.

        Args:
            sides: of the image.
            layer: the layer, -1 for the embedding.
            left: whether the tokens are those that :meth:`leave` gave.
        """
        raise NotImplementedError

    def is_own(self, name: str) -> bool:
        """Whether a tensor of the module belongs to the encoder, not to a head."""
        return True

    def _outputs_before(self) -> list[int]:
        layers: list[int] = []
        for layer in self.outputs:  # TorchScript has no condition in a comprehension
            if layer < self.prefix_layers[0]:
                layers.append(layer)
        return layers

    def slot_changed(self) -> None:
        """Sets the layers whose frozen tokens suffice to go on from: the last before the method, or all beside it."""
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
