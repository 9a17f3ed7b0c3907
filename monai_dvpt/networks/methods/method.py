# SPDX-License-Identifier: Apache-2.0
"""Base classes of tuning methods and of the modules that they put into MONAI's networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch.nn as nn
from typing_extensions import Self

from monai_dvpt.networks.encoders import Encoder

__all__ = ["Inserted", "Method", "check_positive"]


@dataclass(frozen=True)
class Method:
    """
    A way to tune an encoder. Its fields are its options; a subclass checks them in ``__post_init__``.

    Attributes:
        name: name in bundles, adapter files and on the command line.
        description: the method in one line.
        paper: its address; None for common practice.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    paper: ClassVar[str | None] = None

    @property
    def options(self) -> dict[str, Any]:
        """The options by name."""
        return dataclasses.asdict(self)

    @property
    def can_merge(self) -> bool:
        """Whether the method changes weights alone, see :meth:`merge`."""
        return type(self).merge is not Method.merge

    def for_encoder(self, encoder: Encoder) -> Self:
        """
        The method with defaults that depend on the encoder filled in.

        Raises:
            ValueError: if the method does not fit the encoder.
        """
        return self

    def attach(self, encoder: Encoder) -> None:
        """Adds the method's tensors to an encoder, where possible initialised so that the output does not change."""

    def trains(self, encoder: Encoder) -> list[str]:
        """Names of the encoder's own tensors that the method trains."""
        return []

    def merge(self, encoder: Encoder) -> None:
        """
        Merges the method's tensors into the encoder's own.

        Raises:
            ValueError: if the method changes more than weights.
        """
        raise ValueError(f'the method "{self.name}" cannot be merged into the weights of the encoder.')


class Inserted(nn.Module):
    """
    Base of modules that replace one of MONAI's. A subclass also derives from the class of that module and only adds
    tensors, so that the keys of pretrained weights stay MONAI's own.
    """

    if TYPE_CHECKING:  # TorchScript would try to compile it
        plain: type[nn.Module]
        before: set[str]

    @classmethod
    def take(cls, module: nn.Module) -> Self:
        """Turns ``module`` into an instance of this class; its tensors, settings and hooks stay."""
        plain, before = type(module), _names(module)
        module.__class__ = cls
        taken = cast(Self, module)
        taken.plain, taken.before = plain, before
        return taken

    def give_back(self) -> None:
        """Undoes :meth:`take` and removes what was added since."""
        plain = self.plain
        for name in _names(self) - self.before:
            delattr(self, name)
        self.__class__ = plain  # type: ignore[assignment]


def check_positive(**values: Any) -> None:
    """
    Raises:
        ValueError: if a value, an argument by name, is not a positive finite number.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}.")


def _names(module: nn.Module) -> set[str]:
    """Names of attributes, parameters, buffers and modules."""
    return {name for names in (module.__dict__, module._parameters, module._buffers, module._modules) for name in names}
