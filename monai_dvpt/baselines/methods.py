# SPDX-License-Identifier: Apache-2.0
"""All methods by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monai_dvpt.networks.adapter import TunableNetwork, adapter_names

from .adaptformer import adaptformer
from .bottleneck import bottleneck, dvpt
from .insert import Inserted
from .lora import LoRALinear, lora
from .parts import bitfit, full, linear
from .ssf import ScaleShift, ssf
from .vpt import vpt_deep, vpt_shallow

__all__ = ["METHODS", "Method", "merge", "tune"]


@dataclass(frozen=True)
class Method:
    """
    A method.

    Attributes:
        apply: changes and freezes a network in place; its arguments after the network are the method's options.
        description: the method in one line.
        paper: its address; None for common practice.
    """

    apply: Callable[..., None]
    description: str
    paper: str | None


METHODS: dict[str, Method] = {
    "dvpt": Method(dvpt, "dynamic prompts in a bottleneck after the layers", "https://arxiv.org/abs/2307.09787"),
    "bottleneck": Method(bottleneck, "DVPT without prompts", "https://arxiv.org/abs/2307.09787"),
    "full": Method(full, "full fine-tuning", None),
    "linear": Method(linear, "linear probe: a frozen encoder", None),
    "bitfit": Method(bitfit, "the biases of the encoder", "https://arxiv.org/abs/2106.10199"),
    "vpt_shallow": Method(vpt_shallow, "prompts beside the tokens of the image", "https://arxiv.org/abs/2203.12119"),
    "vpt_deep": Method(vpt_deep, "prompts beside the tokens of every layer", "https://arxiv.org/abs/2203.12119"),
    "adaptformer": Method(adaptformer, "a bottleneck parallel to every MLP", "https://arxiv.org/abs/2205.13535"),
    "lora": Method(lora, "low-rank changes of query and value", "https://arxiv.org/abs/2106.09685"),
    "ssf": Method(ssf, "scale and shift after every operation", "https://arxiv.org/abs/2210.08823"),
}


def tune(net: TunableNetwork, method: str = "dvpt", **options: Any) -> TunableNetwork:
    """
    Changes and freezes a network in place for one method. Pretrained weights are loaded before. Decoder and head are
    trained with every method; DVPT blocks are removed with all but "dvpt" and "bottleneck". What a method adds belongs
    to the part "backbone" of :func:`monai_dvpt.networks.adapter.parameter_groups`.

    Args:
        net: the network, as its class made it but for its weights.
        method: a name of ``METHODS``.
        options: those of the method, the arguments of its function.

    Returns:
        ``net``.

    Raises:
        ValueError: if ``net`` is no such network, holds several adapters, was changed by a method before or cannot be
            tuned by this one; or if ``method`` or an option is unknown or an option is outside its range.

    Examples::

        >>> from monai_dvpt.networks.nets import DVPTViT
        >>> net = DVPTViT(3, 64, 16, hidden_size=48, mlp_dim=96, num_heads=3, spatial_dims=2, num_classes=5)
        >>> net = tune(net, "lora", rank=4)
        >>> [name for name, tensor in net.blocks[0].named_parameters() if tensor.requires_grad]
        ['attn.qkv.lora_a', 'attn.qkv.lora_b']

    """
    if not isinstance(net, TunableNetwork):
        raise ValueError(f"net must be a network of monai_dvpt.networks.nets, got {type(net).__name__}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {method}.")
    apply = METHODS[method].apply
    known = list(inspect.signature(apply).parameters)[1:]
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(f'options must be of {known} for the method "{method}", got {unknown}.')
    if len(names := adapter_names(net)) > 1:
        raise ValueError(f"net must have one adapter, got {names}.")
    if changed := sorted({type(module).__name__ for module in net.modules() if isinstance(module, Inserted)}):
        raise ValueError(f"net must not have been changed by a method before, got one with {changed}.")
    apply(net, **options)
    return net.train(net.training)


def merge(net: TunableNetwork) -> TunableNetwork:
    """
    Folds what "lora" or "ssf" learned into the weights of MONAI's own modules, in place: the network is again one
    without additions, with equal outputs. SSF shifts also what has no bias: query, key and value then get one, which
    ``net.arguments`` says, and so do Swin's patch mergings, for which MONAI has no argument.

    Args:
        net: network tuned by "lora" or "ssf".

    Returns:
        ``net``.

    Raises:
        ValueError: if ``net`` was not tuned by one of these methods.
    """
    modules = [module for module in net.modules() if isinstance(module, (LoRALinear, ScaleShift))]
    if not modules:
        raise ValueError('net must have been tuned by "lora" or "ssf" and not be merged yet, got one that was not.')
    if isinstance(modules[0], ScaleShift):
        net.arguments = {**net.arguments, "qkv_bias": True}
    for module in modules:
        module.merge()
    return net.train(net.training)
