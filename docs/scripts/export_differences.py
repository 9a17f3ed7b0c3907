# SPDX-License-Identifier: Apache-2.0
"""Prints how far exported networks differ from PyTorch, and the sizes of the files, for docs/how-to/export.md."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch

from monai_dvpt.networks.nets import DVPTUNETR, DVPTSwinClassifier, DVPTSwinUNETR, DVPTViT, DVPTViTSegmenter
from monai_dvpt.networks.parts import tune

TINY = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3}
UNETR = {**TINY, "in_channels": 1, "out_channels": 3, "feature_size": 8}
SEGMENTER = {**TINY, "out_channels": 3, "decoder": "conv"}
SWIN = {"in_channels": 1, "feature_size": 24}
NETWORKS = {  # class, arguments, shape of an image
    "vit_2d": (
        DVPTViT,
        {**TINY, "in_channels": 3, "img_size": 224, "spatial_dims": 2, "num_classes": 5},
        (3, 224, 224),
    ),
    "vit_3d": (
        DVPTViT,
        {**TINY, "in_channels": 1, "img_size": (48, 64, 80), "num_classes": 5, "pooling": "both"},
        (1, 48, 64, 80),
    ),
    "unetr_2d": (DVPTUNETR, {**UNETR, "img_size": (96, 128), "spatial_dims": 2}, (1, 96, 128)),
    "unetr_3d": (DVPTUNETR, {**UNETR, "img_size": (40, 56, 40), "patch_size": 8}, (1, 40, 56, 40)),
    "segmenter_2d": (
        DVPTViTSegmenter,
        {**SEGMENTER, "in_channels": 3, "img_size": 224, "patch_size": 14, "spatial_dims": 2},
        (3, 224, 224),
    ),
    "segmenter_3d": (
        DVPTViTSegmenter,
        {**SEGMENTER, "in_channels": 1, "img_size": (112, 112, 8), "patch_size": (14, 14, 1)},
        (1, 112, 112, 8),
    ),
    "swin_classifier_2d": (DVPTSwinClassifier, {**SWIN, "num_classes": 5, "spatial_dims": 2}, (1, 96, 128)),
    "swin_classifier_3d": (DVPTSwinClassifier, {**SWIN, "num_classes": 5}, (1, 64, 64, 64)),
    "swin_unetr_2d": (DVPTSwinUNETR, {**SWIN, "out_channels": 3, "spatial_dims": 2}, (1, 96, 128)),
    "swin_unetr_3d": (DVPTSwinUNETR, {**SWIN, "out_channels": 3}, (1, 64, 64, 64)),
    "swin_unetr_3d_v2": (DVPTSwinUNETR, {**SWIN, "out_channels": 3, "use_v2": True}, (1, 64, 64, 64)),
}


def measure(name: str, enabled: bool, folder: Path) -> str:
    """One line: largest output, largest differences of TorchScript, exported program and ONNX, sizes of their files."""
    kind, arguments, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = kind(**arguments).eval()
    for parameter in net.encoder().dvpt.parameters():  # a new block does nothing
        torch.nn.init.normal_(parameter, std=0.2)
    if not enabled:
        net = tune(net, "linear").eval()
    example = torch.randn(1, *shape)
    script = torch.jit.trace(net, example) if "swin" in name else torch.jit.script(net)
    script.save(folder / "model.ts")
    program = torch.export.export(net, (example,))
    torch.export.save(program, folder / "model.pt2")
    torch.onnx.export(
        program,
        f=folder / "model.onnx",
        dynamo=True,
        external_data=False,
        input_names=["image"],
        output_names=["pred"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    scripted, loaded = torch.jit.load(folder / "model.ts"), torch.export.load(folder / "model.pt2").module()
    differences, largest = [0.0] * 3, 0.0
    for seed in (1, 2, 3):
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        expected = net(image)
        (pred,) = session.run(["pred"], {"image": image.numpy()})
        largest = max(largest, expected.abs().max().item())
        for index, output in enumerate((scripted(image), loaded(image), torch.from_numpy(pred))):
            differences[index] = max(differences[index], (output - expected).abs().max().item())
    numbers = " ".join(f"{number:8.1e}" for number in differences)
    sizes = " ".join(f"{(folder / f'model.{end}').stat().st_size / 1e6:7.1f}" for end in ("ts", "pt2", "onnx"))
    return f"{name:<20} {'on' if enabled else 'off':<4} {largest:7.1f}   {numbers}   {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    arguments = parser.parse_args()
    print("network              DVPT largest   TorchScript, exported program, ONNX   the same, MB")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in arguments.networks:
            for enabled in (True, False):
                print(measure(name, enabled, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
