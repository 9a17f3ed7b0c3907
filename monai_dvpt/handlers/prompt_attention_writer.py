# SPDX-License-Identifier: Apache-2.0
"""Attention of the prompts in every case of an inference run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ignite.engine import Engine
from monai.data import MetaTensor, decollate_batch
from monai.engines import Evaluator, IterationEvents
from monai.inferers import Inferer
from monai.transforms import Invertd, InvertibleTransform

from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.networks.parts import TunableNetwork
from monai_dvpt.utils import atomic_path
from monai_dvpt.visualize import PromptAttention, plot_prompt_attention, prompt_attention_maps

__all__ = ["PromptAttentionWriter"]


class PromptAttentionWriter:
    """
    Writes, for every case, ``<name>_prompts.nii.gz``, the attention of the prompts over the image (float32, one map per
    prompt along the fourth axis, 1 where attention is uniform; see :class:`monai_dvpt.visualize.PromptAttention`) in
    the grid of the input, and ``<name>_prompts.png``; for 2D images only the picture. The network runs a second time
    over each image.

    Args:
        output_dir: folder for the files.
        network: the network of the evaluator.
        inferer: the inferer of the evaluator.
        preprocessing: transforms of the image; their inverse, with linear interpolation, carries the maps back.
        layer: index of the transformer layer after which the prompts read, negative from the last one.

    Raises:
        ValueError: if the network has no prompts after that layer.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: TunableNetwork,
        inferer: Inferer,
        preprocessing: InvertibleTransform,
        layer: int = -1,
    ) -> None:
        PromptAttention(network, layer)  # refuses before the first case
        self.output_dir = Path(output_dir)
        self.network = network
        self.inferer = inferer
        self.layer = layer
        # the image comes last, since its inversion removes the history
        self.invert = Invertd(["maps", "image"], preprocessing, orig_keys="image", nearest_interp=False)

    def attach(self, engine: Evaluator) -> None:
        """
        Args:
            engine: evaluator whose cases have a "name" and an "image" with the history of ``preprocessing``.
        """
        # before the postprocessing inverts the image
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        image: MetaTensor = engine.state.output["image"]
        maps = prompt_attention_maps(self.network, image, self.layer, self.inferer)
        cases = decollate_batch({"image": image.cpu().clone(), "maps": maps.cpu(), "name": engine.state.batch["name"]})
        for case in cases:
            name, inverted = case["name"], self.invert(case)
            maps = inverted["maps"]
            with atomic_path(self.output_dir / f"{name}_prompts.png") as path:
                title = f"{name}: attention of the prompts"
                plot_prompt_attention(inverted["image"], maps, title).savefig(path, dpi=110)
            if maps.ndim == 4:
                array = np.ascontiguousarray(np.moveaxis(maps.numpy(), 0, -1), dtype=np.float32)  # (x, y, z, M)
                save_nifti(self.output_dir / f"{name}_prompts.nii.gz", array, maps.affine.numpy())
