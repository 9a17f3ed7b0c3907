# SPDX-License-Identifier: Apache-2.0
"""Checks of a file's tensor before a network takes it."""

from __future__ import annotations

import torch

from .errors import InputError

__all__ = ["check_finite", "check_type"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_type(what: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """
    Args:
        what: subject of the error: the name of the tensor.
        tensor: the tensor as read.
        dtype: type of the network's tensor; by default any real number is allowed.

    Raises:
        InputError: unless ``tensor`` has all its values in memory, as real numbers of a common type: floating-point if
            ``dtype`` is, else whole.
    """
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    if not dense or tensor.device.type != "cpu":
        kind = f"{tensor.layout}, {tensor.dtype}" if tensor.device.type == "cpu" else f"a {tensor.device.type} tensor"
        raise InputError(f"{what} must be a dense tensor with its values in the file, got {kind}.")
    if tensor.numel() * tensor.element_size() > (stored := tensor.untyped_storage().nbytes()):
        raise InputError(
            f"{what} must be a dense tensor with all its values in the file, got an expanded one, "
            f"{tensor.numel():,} values in {stored:,} bytes."
        )
    allowed = FLOATS + INTEGERS if dtype is None else FLOATS if dtype.is_floating_point else INTEGERS
    if tensor.dtype not in allowed:
        names = ", ".join(str(one).removeprefix("torch.") for one in allowed)
        raise InputError(f"{what} must have one of the types {names}, got {str(tensor.dtype).removeprefix('torch.')}.")


def check_finite(what: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """
    Args:
        what: subject of the error: the name of the tensor.
        tensor: its type passed :func:`check_type`.
        dtype: type of the network's tensor.

    Raises:
        InputError: if a value is not finite as ``dtype``, such as one of float64 beyond the range of float32.
    """
    if tensor.numel() == 0:
        return
    bounds = torch.stack(tensor.aminmax())  # NaN if a value is; casting keeps the order, so these two suffice
    if not bounds.to(dtype).isfinite().all():
        raise InputError(f"{what} must be finite as {str(dtype).removeprefix('torch.')}.")
