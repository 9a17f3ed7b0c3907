# SPDX-License-Identifier: Apache-2.0
"""A real fine-tuning run that takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted, Compose

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.parts import freeze_backbone, parameter_groups, tune

LABELS = ["background", "anterior", "posterior"]
SIZE = (16, 24, 32)


def tiny_network(
    train: Sequence[str] = ("method", "decoder", "head"), seed: int = 0, method: str = "dvpt"
) -> DVPTUNETR:
    """A network with instance norm and tokens of 8 voxels, as the bundle's."""
    torch.manual_seed(seed)
    net = DVPTUNETR(
        in_channels=1,
        out_channels=len(LABELS),
        img_size=SIZE,
        feature_size=2,
        hidden_size=24,
        mlp_dim=32,
        num_heads=2,
        patch_size=8,
        bottleneck_size=5,
        num_prompts=3,
    )
    return freeze_backbone(net if method == "dvpt" else tune(net, method), train)


def dataset(cases: int) -> Dataset:
    """Noise, with the labels where it is brightest after smoothing."""
    images = torch.rand(cases, 1, *SIZE, generator=torch.Generator().manual_seed(cases))
    images = torch.nn.functional.avg_pool3d(images, 5, 1, 2)
    labels = [(image > image.quantile(0.7)).float() + (image > image.quantile(0.9)).float() for image in images]
    return Dataset([{"image": image, "label": label} for image, label in zip(images, labels, strict=True)])


class Script(Metric):
    """A key metric whose values are given, whatever the network does."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        super().__init__()

    def reset(self) -> None:
        pass

    def update(self, output: Any) -> None:
        pass

    def compute(self) -> float:
        return self.values.pop(0)


def make_evaluator(net: DVPTUNETR, scores: Sequence[float]) -> SupervisedEvaluator:
    """Validates on two cases, with the key metric ``val_score`` as given for each validation."""
    output_transform = from_engine(["pred", "label"])
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset(2), batch_size=1),
        network=net,
        postprocessing=Compose(AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=len(LABELS))),
        key_val_metric={"val_score": Script(scores)},
        additional_metrics={
            "val_dice": MeanDice(include_background=False, reduction="mean_batch", output_transform=output_transform)
        },
    )


def make_trainer(
    net: DVPTUNETR, epochs: int, evaluator: SupervisedEvaluator | None, handlers: Sequence[Any], decollate: bool = True
) -> SupervisedTrainer:
    """Trains on three cases, and validates after every epoch."""
    validation = [ValidationHandler(1, evaluator)] if evaluator is not None else []
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(dataset(3), batch_size=1),
        network=net,
        optimizer=torch.optim.AdamW(parameter_groups(net, {"method": 1e-2, "decoder": 1e-2, "head": 1e-2})),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        train_handlers=[*validation, *handlers],
        decollate=decollate,
    )
