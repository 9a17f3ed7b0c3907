# SPDX-License-Identifier: Apache-2.0
"""What is done with the best network of a run when it is over."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from monai.engines import Evaluator

from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import read_torch

from .adapter_saver import AdapterSaver

__all__ = ["best_network", "note_in_adapter", "predict_logits"]


def best_network(saver: AdapterSaver) -> TunableNetwork:
    """A copy of the network with the weights of its best epoch, for evaluation."""
    network = copy.deepcopy(saver.network).eval()
    network.load_state_dict(read_torch(saver.output_dir / "model.pt"))
    return network


def note_in_adapter(saver: AdapterSaver, network: TunableNetwork, name: str, note: Any) -> None:
    """Writes a note to the best adapter, in place of one of this name; None removes it."""
    adapter = saver.output_dir / "adapter_best.safetensors"
    notes = {**adapter_metadata(adapter)["notes"], name: note}
    kept = {key: value for key, value in notes.items() if value is not None}
    save_adapter(network, adapter, labels=saver.labels, notes=kept)


@torch.no_grad()
def predict_logits(
    evaluator: Evaluator, network: TunableNetwork, batches: Iterable[Any], num_grades: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        evaluator: prepares the batches; its inferer is not used: the network sees whole images in its own precision, as
            by default in evaluation and inference.
        network: has (B, O * K) logits.
        batches: with labels of shape (B, O); at least one batch.
        num_grades: number ``K`` of grades.

    Returns:
        logits of shape (N, O, K), in double precision, and labels of shape (N, O), on the CPU.
    """
    logits, labels = [], []
    for batch in batches:
        prepared = evaluator.prepare_batch(batch, evaluator.state.device, evaluator.non_blocking)
        image, label, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        logits.append(network(image, *args, **kwargs).unflatten(1, (-1, num_grades)))
        labels.append(label)
    pair = [torch.cat(tensors).as_subclass(torch.Tensor).cpu() for tensors in (logits, labels)]
    return pair[0].double(), pair[1]
