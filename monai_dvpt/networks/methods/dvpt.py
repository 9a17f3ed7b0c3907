# SPDX-License-Identifier: Apache-2.0
"""DVPT, with and without prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from typing_extensions import Self

from monai_dvpt.networks.blocks import DVPTList
from monai_dvpt.networks.encoders import Encoder
from monai_dvpt.utils import check_counts

from .method import Method

__all__ = ["DVPT", "Bottleneck"]


@dataclass(frozen=True)
class Bottleneck(Method):
    """
    DVPT without prompts, a bottleneck after transformer layers: its difference to :class:`DVPT` is what the prompts
    contribute. The options are described there.

    Raises:
        ValueError: if an option is outside its range.
    """

    bottleneck_size: int | None = None
    share_every: int | None = None
    start_layer: int = 0
    side_path: bool = False
    norm: str = "plain"
    zero_init: str = "up"

    name = "bottleneck"
    description = "DVPT without prompts"
    paper = "https://arxiv.org/abs/2307.09787"

    def __post_init__(self) -> None:
        if self.bottleneck_size is not None:
            check_counts(bottleneck_size=self.bottleneck_size)
        if self.share_every is not None:
            check_counts(share_every=self.share_every)
        check_counts(0, start_layer=self.start_layer)
        if not isinstance(self.side_path, bool):
            raise ValueError(f"side_path must be True or False, got {self.side_path!r}.")

    def for_encoder(self, encoder: Encoder) -> Self:
        method = self._for_widths(encoder.widths())
        method.count_for(encoder.widths())  # refuses options before the encoder changes
        return method

    def count_for(self, widths: Sequence[int]) -> int:
        """
        Number of parameters that this trains in an encoder, which need not be there.

        Args:
            widths: token width ``C`` of every layer.

        Raises:
            ValueError: if an option is outside its range for these layers.
        """
        with torch.device("meta"):
            blocks = self._for_widths(widths)._blocks(widths)
        return sum(parameter.numel() for parameter in blocks.parameters())

    def _for_widths(self, widths: Sequence[int]) -> Self:
        stages = len(set(widths))
        return replace(
            self,
            bottleneck_size=(32 if stages == 1 else 16) if self.bottleneck_size is None else self.bottleneck_size,
            share_every=(3 if stages == 1 else 2) if self.share_every is None else self.share_every,
        )

    def _blocks(self, widths: Sequence[int]) -> DVPTList:
        options = {key: value for key, value in self.options.items() if key != "side_path"}
        return DVPTList(widths, **{"num_prompts": 0, **options})

    def attach(self, encoder: Encoder) -> None:
        blocks = self._blocks(encoder.widths())
        encoder.follow_layers(blocks.to(encoder.like()), blocks.block_of_layer, self.side_path)


@dataclass(frozen=True)
class DVPT(Bottleneck):
    """
    Dynamic visual prompt tuning, based on: "He et al., DVPT <https://arxiv.org/abs/2307.09787>", see
    :class:`monai_dvpt.networks.blocks.DVPTBlock`.

    Args:
        bottleneck_size: width ``R`` of a block, in ``[1, C)``; by default 32, in a transformer with several stages 16.
        num_prompts: number of prompts per block.
        share_every: number of consecutive layers of one width that share a block; by default 3, in several stages 2.
        start_layer: first layer with a block.
        side_path: a variant: the blocks read the frozen layers without changing them, and their sum reaches head and
            decoder on a side path. The frozen layers then need no backward pass, except patch merging between stages.
        norm, zero_init, aggregation: see :class:`monai_dvpt.networks.blocks.DVPTBlock`.

    Raises:
        ValueError: if an option is outside its range.
    """

    num_prompts: int = 10
    aggregation: str = "read_back"

    name = "dvpt"
    description = "dynamic prompts in a bottleneck after the layers"
