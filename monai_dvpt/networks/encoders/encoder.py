# SPDX-License-Identifier: Apache-2.0
"""What all encoders have in common: the loop over their layers, the prefix, and the slot for a tuning method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from monai_dvpt.networks.blocks import fuse_attention

if TYPE_CHECKING:
    from monai_dvpt.networks.methods import Method

__all__ = ["Attached", "Encoder", "get_tensor", "set_tensor"]


@dataclass
class Attached:
    """A method taken out of its slot, with the tensors that it owns, by their names in the encoder."""

    method: Method
    tensors: dict[str, torch.Tensor]


class Encoder(nn.Module):
    """
    A transformer whose layers run in one loop. A tuning method sits in its slot: it owns the tensors that it has added
    and those of the encoder that it trains; everything else is the backbone and never changes.

    A subclass also derives from MONAI's transformer, has its layers in ``blocks``, and calls :meth:`open_slot`.

    Attributes:
        slot: the method; None while there is none.
        owned: names of the method's tensors.
        originals: by name, the backbone's tensors in whose place the method trains copies.
        arithmetic: what the encoder computes beyond its tensors, such as the number of heads, by name.
        outputs: layers whose states a network uses; -1 is the embedding.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        blocks: Sequence[nn.Module]
        slot: Method | None
        owned: list[str]
        originals: dict[str, nn.Parameter]
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

    # what a method asks

    def widths(self) -> list[int]:
        """Token width ``C`` of every layer."""
        return [block.norm1.normalized_shape[0] for block in self.blocks]  # type: ignore[union-attr,index]

    def like(self) -> torch.Tensor:
        """A tensor on whose device and of whose type a method's are; no normalisation is ever rounded."""
        return self.blocks[0].norm1.weight  # type: ignore[union-attr,return-value]

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

    # the slot

    def attach(self, method: Method, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """
        Puts a method into the slot.

        Args:
            method: the method; one that is there is taken out before.
            tensors: its tensors as :meth:`detach` gave them; what is not among them starts anew.

        Raises:
            ValueError: if the method does not fit; the one that is there then stays.
        """
        method = method.for_encoder(self)
        taken = self.detach()
        try:
            self._insert(method, tensors or {})
        except Exception:
            self.slot = method
            self.detach()
            if taken is not None:
                self._insert(taken.method, taken.tensors)
            raise

    def _insert(self, method: Method, given: Mapping[str, torch.Tensor]) -> None:
        before = self.state_dict().keys()
        for name in method.trains(self):
            own: Any = self.get_parameter(name)
            self.originals[name] = own.requires_grad_(False)
            set_tensor(self, name, nn.Parameter(own.detach() if name in given else own.detach().clone()))
        if given:
            with torch.random.fork_rng(devices=[]):
                method.attach(self)
        else:
            method.attach(self)
        self.slot = method
        self.owned = [*(name for name in self.state_dict() if name not in before), *self.originals]
        like = self.like()
        for name in self.owned:
            tensor = given.get(name, get_tensor(self, name))
            tensor.data = tensor.data.to(like)  # what was out of the slot stayed behind when the network was moved
            set_tensor(self, name, tensor)
        self._find_prefix()

    def detach(self) -> Attached | None:
        """Takes the method out of the slot, which leaves the pretrained encoder as it was."""
        if self.slot is None:
            return None
        taken = Attached(self.slot, {name: get_tensor(self, name) for name in self.owned})
        self.follow_layers(nn.ModuleList(), [-1] * len(self.blocks))
        for module in list(self.modules()):
            if hasattr(module, "give_back"):
                module.give_back()
        for name, tensor in self.originals.items():
            if not tensor.is_meta:  # as in a network that is built for its adapter alone
                tensor.data = tensor.data.to(self.like().device)
            set_tensor(self, name, tensor)
        self.slot, self.owned, self.originals = None, [], {}
        self._find_prefix()
        return taken

    @contextmanager
    def without_method(self, restart: bool = False) -> Iterator[None]:
        """
        Within the context the slot is empty: the encoder is the pretrained one.

        Args:
            restart: whether what the method trains of the encoder itself starts anew from what it is by then.
        """
        own = list(self.originals) if restart else []
        taken = self.detach()
        try:
            yield
        finally:
            if taken is not None:
                self.attach(taken.method, {name: t for name, t in taken.tensors.items() if name not in own})

    def merge(self) -> None:
        """
        Folds what the method learned into the encoder, which then has none; the outputs stay equal up to rounding.

        Raises:
            ValueError: if the method cannot be merged.
        """
        if self.slot is not None:
            self.slot.merge(self)
            for name in self.originals:  # what was trained of the encoder is its backbone now
                get_tensor(self, name).requires_grad_(False)
            self.slot, self.owned, self.originals = None, [], {}
            self._find_prefix()

    def follow_layers(self, blocks: nn.ModuleList, block_of_layer: Sequence[int], side_path: bool = False) -> None:
        """
        Sets the modules that follow layers.

        Args:
            blocks: each maps tokens of shape (B, N, C) to such tokens.
            block_of_layer: for every layer the index of the one that follows it, -1 where none does.
            side_path: whether the layers see the outputs of each other alone, see :meth:`adapt`.
        """
        self.dvpt, self.dvpt_of_layer, self.side_path = blocks, list(block_of_layer), side_path
        self._find_prefix()

    # the loop

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

    # the prefix

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
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and name not in self.owned and self.is_own(name):
                raise ValueError(f"a prefix must come from a frozen encoder, but {name} is trained.")
        self.train(self.training)  # so that frozen dropout is off
        with self.without_method():
            return self.run(image, None, self.outputs, list(layers))

    @torch.jit.unused
    def pack_prefix(self, states: Mapping[int, torch.Tensor], seen: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """
        Of what :meth:`frozen_states` gave, for ``prefix_layers`` at least, the part that the method goes on from, of
        shape (B, numbers).
        """
        kept = [states[layer] for layer in self._outputs_before()] + [seen[layer] for layer in self.prefix_layers]
        return torch.cat([tensor.flatten(1) for tensor in kept], dim=1)

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
        sizes = [_product(shape) for shape in shapes]
        if list(prefix.shape) != [image.shape[0], sum(sizes)]:
            raise ValueError(
                f"prefix must be that of the image, of shape {[image.shape[0], sum(sizes)]}, got {list(prefix.shape)}."
            )
        parts = prefix.split(sizes, dim=1)
        for index in range(len(parts)):
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

    def _find_prefix(self) -> None:
        """Sets the layers whose frozen tokens suffice to go on from: the last before the method, or all beside it."""
        last = len(self.blocks) - 1
        frozen = [layer for layer, block in enumerate(self.dvpt_of_layer) if block >= 0][:1]
        frozen += [self.frozen_layers(name) for name in self.owned if not name.startswith("dvpt.")]
        first = min([*frozen, last])
        self.prefix_layers = list(range(first, last + 1)) if self.side_path else [first]


def set_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Puts a parameter or buffer into the place of another one, by its name in a module."""
    owner, _, attribute = name.rpartition(".")
    holder = module.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        setattr(holder, attribute, tensor)
    else:
        holder._buffers[attribute] = tensor


def get_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer by its name in a module."""
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute)


def _product(sides: list[int]) -> int:
    product = 1
    for side in sides:
        product *= side
    return product
