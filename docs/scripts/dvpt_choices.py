# SPDX-License-Identifier: Apache-2.0
"""
The study of ``python -m monai_dvpt.benchmark study`` with further methods, each of them DVPT with one choice made
otherwise:

    python docs/scripts/dvpt_choices.py study --bundle DIR --output OUT --methods dvpt dvpt_mean --reference dvpt ...

With the names of ``docs/explanation/dvpt.md``:

- ``dvpt_mean``: every token gets the mean of the dynamic prompts, S = mean of D over its M rows;
- ``dvpt_static``: tokens read the prompts as they are, which no sample changes, S = softmax(Z P^T / sqrt(R)) P;
- ``dvpt_prompts_only``: what the tokens read alone is projected, S instead of Z + S;
- ``dvpt_zero_gate``: the gate starts at zero, and the up-projection is drawn at random;
- ``dvpt_no_norm``: no normalisation before the bottleneck;
- ``dvpt_affine_norm``: a layer normalisation with trained scale and shift.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai_dvpt.baselines.bottleneck import dvpt

from monai_dvpt.benchmark.__main__ import main
from monai_dvpt.networks.blocks import DVPTBlock
from monai_dvpt.networks.methods import METHODS, Method
from monai_dvpt.networks.parts import TunableNetwork


class Choice(DVPTBlock):
    """A DVPT block that autograd records as it is written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.change(x))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        z = self.bottleneck(x)
        return self.gate * self.aggregate(z, torch.matmul(self.read(z), z))

    def aggregate(self, z: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
        """From tokens (B, N, R) and dynamic prompts (B, M, R) what is projected, (B, N, R)."""
        return z + self.look_up(z, dynamic)

    def look_up(self, z: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """What tokens (B, N, R) take from prompts (B, M, R) or (M, R)."""
        return torch.matmul((torch.matmul(z, prompts.transpose(-2, -1)) * self.scale).softmax(dim=-1), prompts)


class Mean(Choice):
    def aggregate(self, z: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
        return z + dynamic.mean(dim=1, keepdim=True)


class Static(Choice):
    def aggregate(self, z: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
        return z + self.look_up(z, self.prompts)


class PromptsOnly(Choice):
    def aggregate(self, z: torch.Tensor, dynamic: torch.Tensor) -> torch.Tensor:
        return self.look_up(z, dynamic)


class ZeroGate(Choice):
    def __init__(self, hidden_size: int, bottleneck_size: int, num_prompts: int) -> None:
        super().__init__(hidden_size, bottleneck_size, num_prompts)
        nn.init.zeros_(self.gate)
        self.up.reset_parameters()
        nn.init.zeros_(self.up.bias)


class NoNorm(Choice):
    def bottleneck(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.down(x))


class AffineNorm(Choice):
    def __init__(self, hidden_size: int, bottleneck_size: int, num_prompts: int) -> None:
        super().__init__(hidden_size, bottleneck_size, num_prompts)
        self.norm = nn.LayerNorm(hidden_size)

    def bottleneck(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.down(self.norm(x)))


def method(block: type[Choice]) -> Method:
    """A method that puts such blocks in the place of a network's own, with the same sizes."""

    def apply(net: TunableNetwork) -> None:
        dvpt(net)
        for index, own in enumerate(net.dvpt):
            new = block(own.hidden_size, own.down.out_features, own.num_prompts)
            net.dvpt[index] = new.to(own.down.weight)

    return Method(apply, "DVPT with one of its choices made otherwise", None)


METHODS.update(
    dvpt_mean=method(Mean),
    dvpt_static=method(Static),
    dvpt_prompts_only=method(PromptsOnly),
    dvpt_zero_gate=method(ZeroGate),
    dvpt_no_norm=method(NoNorm),
    dvpt_affine_norm=method(AffineNorm),
)

if __name__ == "__main__":
    main()
