# SPDX-License-Identifier: Apache-2.0
"""
Draws the pictures of ``docs/how-to/see_the_prompts.md`` and prints the numbers on that page:

    python docs/scripts/prompt_attention.py hippocampus --data DIR --output OUT
    python docs/scripts/prompt_attention.py fundus --data DIR --weights FILE --output OUT

It needs the repository, for the hippocampus bundle. ``--data`` is

- for hippocampus Task04_Hippocampus of the Decathlon, ``imagesTr`` and ``labelsTr``;
- for fundus CHASE DB1; read are ``Image_01L.jpg`` to ``Image_10R.jpg``, and the vessels as the first observer drew
  them, ``Image_01L_1stHO.png`` and so on. ``--weights`` is a ViT-Ti/16 in timm's layout.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.transforms import ResampleToMatch
from monai.utils import set_determinism
from PIL import Image
from tqdm import tqdm

from monai_dvpt.networks.nets import DVPTUNETR
from monai_dvpt.networks.parts import freeze_backbone, parameter_groups
from monai_dvpt.networks.pretrained import load_pretrained
from monai_dvpt.visualize import plot_prompt_attention, prompt_attention_maps

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_dvpt_unetr_segmentation"

SIDE = 288  # pixels of a photograph as the network takes it
STEPS = 300
HELD_BACK = 4  # photographs, the last ones
LAYERS = (3, 6, 9, 12)  # each is the last that its DVPT block serves
DRAWN_LAYER = 6
DARK = 40  # of 255; the retina is brighter

Photograph = tuple[torch.Tensor, torch.Tensor]  # of shape (3, y, x) in -1 to 1, and its vessels, (1, y, x), 0 or 1


def hippocampus(data: Path, output: Path) -> None:
    config = ConfigParser()
    config.read_config([BUNDLE / "configs" / name for name in ("train.yaml", "evaluate.yaml")])
    config.update({"bundle_root": str(BUNDLE), "dataset_dir": str(data), "device": "$torch.device('cpu')"})
    net, inferer = config.get_parsed_content("network"), config.get_parsed_content("validate#inferer")
    cases = config.get_parsed_content("validate#dataset")
    for layer in (3, 12):
        values, factors, peaks, shares, correlations = [], [], [], [], []
        for number, case in enumerate(tqdm(cases, f"layer {layer}")):
            image = case["image"]
            maps = prompt_attention_maps(net, image[None], layer - 1, inferer)[0]
            if layer == 12 and number == 0:
                name = Path(image.meta["filename_or_obj"]).name.removesuffix(".nii.gz")
                save(plot_prompt_attention(image, maps, f"{name}: attention of the prompts"), output, "hippocampus", 68)
            inside = ResampleToMatch(mode="nearest")(case["label"], image)[0].numpy().ravel() > 0  # (V,)
            flat = maps.flatten(1).numpy()  # (M, V)
            values.append(flat.ravel())
            factors.append(flat[:, inside].mean(1) / flat.mean(1))
            peaks.append(inside[flat.argmax(1)])
            shares.append(inside.mean())
            correlations.append(np.abs(np.corrcoef(flat)[np.triu_indices(len(flat), 1)]))
        everything = np.concatenate(values)
        even = np.mean((everything > 0.8) & (everything < 1.25))
        print(f"after layer {layer}, {len(cases)} cases")
        print(f"  values               {everything.min():.2f} to {everything.max():.2f}")
        print(f"  from 0.8 to 1.25     {even:.1%}")
        print(f"  hippocampus / image  {row(np.mean(factors, axis=0))}")
        print(f"  peaks in hippocampus {np.mean(peaks):.1%}; it takes {np.mean(shares):.1%} of the image")
        print(f"  median |correlation| {np.median(correlations):.2f}")


def fundus(data: Path, weights: Path, output: Path) -> None:
    names = [f"{child:02}{eye}" for child in range(1, 11) for eye in "LR"]
    photographs = [read_photograph(data, name) for name in tqdm(names, "reading")]
    training, held_back = photographs[:-HELD_BACK], photographs[-HELD_BACK:]
    before = [contrasts(make_network(weights, seed), held_back, layer)[0] for seed in range(3) for layer in LAYERS]

    net = make_network(weights, seed=0)
    train(net, training)
    with torch.no_grad():
        dice = [compute_dice(net(image[None]).argmax(1, keepdim=True), label[None]) for image, label in held_back]
    print(f"Dice {row(torch.cat(dice).ravel())}")
    print(f"vessels / rest of the retina, before training: {np.min(before):.2f} to {np.max(before):.2f}")
    for layer in LAYERS:
        vessels, black = contrasts(net, held_back, layer)
        print(f"after layer {layer}")
        print(f"  vessels / rest of the retina  {row(vessels)}")
        print(f"  black / rest of the retina    {row(black)}")

    image = held_back[0][0]
    maps = prompt_attention_maps(net, image[None], DRAWN_LAYER - 1)[0]
    title = f"CHASE DB1 {names[-HELD_BACK]}, after layer {DRAWN_LAYER}"
    save(plot_prompt_attention(image.mT, maps.mT, title), output, "fundus", 80)  # drawn as (C, x, y)


def read_photograph(data: Path, name: str) -> Photograph:
    size = (SIDE, SIDE)
    image = np.array(Image.open(data / f"Image_{name}.jpg").convert("RGB").resize(size, Image.Resampling.BILINEAR))
    label = np.array(Image.open(data / f"Image_{name}_1stHO.png").convert("L").resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(image).float().permute(2, 0, 1) / 127.5 - 1, torch.from_numpy(label > 127).float()[None]


def make_network(weights: Path, seed: int) -> DVPTUNETR:
    set_determinism(seed)
    vit_tiny = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "qkv_bias": True}
    net = DVPTUNETR(3, 2, (SIDE, SIDE), feature_size=8, spatial_dims=2, **vit_tiny)
    return load_pretrained(net, weights, verbose=False).network.eval()


def train(net: DVPTUNETR, photographs: list[Photograph]) -> None:
    freeze_backbone(net)
    optimizer = torch.optim.AdamW(parameter_groups(net, {"dvpt": 1e-3, "decoder": 4e-3, "head": 4e-3}))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    net.train()
    steps = tqdm(range(STEPS), "training")
    for _ in steps:
        images, labels = (torch.stack(batch) for batch in zip(*random.sample(photographs, 2), strict=True))
        flipped = [axis for axis in (2, 3) if random.random() < 0.5]
        images, labels = images.flip(flipped), labels.flip(flipped)
        if random.random() < 0.5:
            images, labels = images.mT, labels.mT
        loss = loss_function(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        steps.set_postfix(loss=f"{loss.item():.3f}")
    net.eval()


def contrasts(net: DVPTUNETR, photographs: list[Photograph], layer: int) -> np.ndarray:
    """
    Of each prompt the mean attention on vessels, and that on the black around the retina, over that on the rest of the
    retina; means of the photographs, of shape (2, M).
    """
    factors = []
    for image, label in photographs:
        maps = prompt_attention_maps(net, image[None], layer - 1)[0].numpy()  # (M, y, x)
        vessels = label[0].numpy() > 0
        black = (image.amax(0).numpy() <= DARK / 127.5 - 1) & ~vessels
        rest = maps[:, ~vessels & ~black].mean(1)
        factors.append([maps[:, vessels].mean(1) / rest, maps[:, black].mean(1) / rest])
    return np.mean(factors, axis=0)


def row(values: np.ndarray | torch.Tensor) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def save(figure: Figure, output: Path, name: str, dpi: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    figure.savefig(output / f"{name}_prompts.jpg", dpi=dpi, pil_kwargs={"quality": 90})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["hippocampus", "fundus"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the images")
    parser.add_argument("--weights", type=Path, help="ViT-Ti/16 in timm's layout, for fundus")
    parser.add_argument("--output", type=Path, required=True, help="folder for the picture")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.error(f"--data must be a folder, got {arguments.data}.")
    if arguments.task == "hippocampus":
        hippocampus(arguments.data, arguments.output)
    elif arguments.weights is None:
        parser.error("fundus needs --weights.")
    else:
        fundus(arguments.data, arguments.weights, arguments.output)


if __name__ == "__main__":
    main()
