# SPDX-License-Identifier: Apache-2.0
"""The slot of an encoder: it takes one tuning method at a time; detaching leaves no trace."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from typing_extensions import Self

if TYPE_CHECKING:
    from monai_dvpt.networks.methods import Method

__all__ = ["Attached", "Slot", "get_tensor", "set_tensor"]


@dataclass
class Attached:
    """A detached method and the tensors that it owns, by their names in the encoder."""

    method: Method
    tensors: dict[str, torch.Tensor]


class Slot(nn.Module):
    """
    A module that a method can tune. The method owns the tensors that it adds and the copies of the module's tensors
    that it trains; everything else is the backbone and never changes.

    Attributes:
        slot: the method, or None.
        owned: names of the method's tensors.
        originals: by name, the backbone's tensors that copies replace while the method trains these.
    """

    __jit_ignored_attributes__ = ("originals", "owned", "slot")  # no part of a script

    if TYPE_CHECKING:  # TorchScript would try to compile annotations of a class
        slot: Method | None
        owned: list[str]
        originals: dict[str, nn.Parameter]

    def like(self) -> torch.Tensor:
        """A tensor with the device and type of a method's tensors."""
        raise NotImplementedError

    def slot_changed(self) -> None:
        """Called after a method was attached or detached."""

    def attach(self, method: Method, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """
        Puts a method into the slot in exchange for the present one, which stays if the new one does not fit.

        Args:
            method: the method.
            tensors: its tensors as :meth:`detach` returned them; any others are initialised.

        Raises:
            ValueError: if the method or one of its options does not fit.
        """
        taken = self.detach()
        try:
            if tensors is None:  # otherwise the method has been in such an encoder before
                method = method.for_encoder(self)  # type: ignore[arg-type]
            self._put(method, tensors or {})
        except Exception:
            self._clear()
            if taken is not None:
                self._put(taken.method, taken.tensors)
            raise

    def _put(self, method: Method, given: Mapping[str, torch.Tensor]) -> None:
        encoder: Any = self
        before, modules = self.state_dict().keys(), set(self.modules())
        for name in method.trains(encoder):
            own = self.get_parameter(name)
            own.requires_grad_(False)
            self.originals[name] = own
            set_tensor(self, name, nn.Parameter(own.detach() if name in given else own.detach().clone()))
        with torch.random.fork_rng(devices=[]) if given else nullcontext():  # given tensors need no random start
            method.attach(encoder)
        for module in set(self.modules()) - modules:
            module.training = self.training
        self.slot = method
        self.owned = [*(name for name in self.state_dict() if name not in before), *self.originals]
        moved = nn.ParameterList([given.get(name, get_tensor(self, name)) for name in self.owned])
        moved.to(self.like())  # the network may have moved since the given tensors were detached
        for name, tensor in zip(self.owned, moved, strict=True):
            set_tensor(self, name, tensor)
        self.slot_changed()

    def detach(self) -> Attached | None:
        """Takes the method out of the slot and so restores the pretrained encoder."""
        if self.slot is None:
            return None
        taken = Attached(self.slot, {name: get_tensor(self, name) for name in self.owned})
        self._clear()
        return taken

    def _clear(self) -> None:
        changed: list[Any] = [module for module in self.modules() if hasattr(module, "give_back")]
        for module in changed:
            module.give_back()
        for name, tensor in self.originals.items():
            set_tensor(self, name, tensor)
        self.slot, self.owned, self.originals = None, [], {}
        self.slot_changed()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Moves and converts ``originals`` too, which are not registered while copies of them are trained."""
        super()._apply(fn, recurse)
        moved = nn.ParameterList(self.originals.values())._apply(fn)
        self.originals = dict(zip(self.originals, moved, strict=True))
        return self

    @contextmanager
    def without_method(self) -> Iterator[None]:
        """Context in which the slot is empty, so that the encoder is the pretrained one."""
        taken = self.detach()
        try:
            yield
        finally:
            if taken is not None:
                self.attach(taken.method, taken.tensors)

    def fold(self) -> None:
        """
        Merges the method into the encoder's weights and empties the slot; outputs stay equal up to rounding.

        Raises:
            ValueError: if the method cannot be merged.
        """
        if self.slot is not None:
            self.slot.merge(self)  # type: ignore[arg-type]
            for name in self.originals:  # the trained copies are the backbone now
                get_tensor(self, name).requires_grad_(False)
            self.originals = {}
            self._clear()


def set_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replaces a parameter or buffer of a module by its name."""
    owner, _, attribute = name.rpartition(".")
    holder = module.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        setattr(holder, attribute, tensor)
    else:
        holder._buffers[attribute] = tensor


def get_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer of a module by its name."""
    return operator.attrgetter(name)(module)
