# SPDX-License-Identifier: Apache-2.0
"""Says what a file of pretrained weights is and which networks take it, without building a network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_dvpt.networks.encoders import SAMEncoder, SwinEncoder, TinyViTEncoder, check_swin_sizes, check_vit_sizes
from monai_dvpt.networks.methods import DVPT
from monai_dvpt.utils import InputError, file_sha256, naming

from .archives import opened_weights
from .backbone import POSITIONS, Backbone, backbone_of, encoder_sizes, patch_kernel, usual_heads
from .load import NEVER_USED
from .normalisation import Normalisation, read_normalisation
from .recognise import PretrainedWeights, recognise
from .resize import sincos_grid
from .shapes import one_or_each, times
from .swin_layouts import swin_sizes
from .tiny_vit_layout import STEM
from .weight_files import find_file, read_config, read_weights, shards_of

__all__ = ["Fit", "WeightFile", "WeightsDescription", "describe_weights"]

UNETR_LAYERS, UNETR_PATCHES = 12, (8, 16)
OF_A_METHOD = "dvpt."  # in a file of a whole network of this package


@dataclass(frozen=True)
class WeightFile:
    """A file, its size and its SHA-256 in hexadecimal."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Fit:
    """
    Whether a network of this package can take the weights.

    Attributes:
        network: its class, of :mod:`monai_dvpt.networks.nets`.
        fits: whether it can.
        how: what is changed for it, or why it cannot.
    """

    network: str
    fits: bool
    how: str


@dataclass(frozen=True)
class WeightsDescription:
    """
    What a file of pretrained weights is.

    Attributes:
        files: the weights, several if they are in shards, the index first.
        refused: why :func:`monai_dvpt.networks.pretrained.load_pretrained` refuses them; else "". If they are refused
            all that follows is empty.
        kind: the layout of the names.
        family: see :class:`monai_dvpt.networks.pretrained.Backbone`.
        sizes: of the encoder, by the names of the networks' arguments; a size that the file does not tell is left out.
        assumed: names of sizes that are no more than usual for such an encoder.
        parameters: number of values that the encoder computes with.
        normalisation: of its images; None if it is not known.
        normalisation_error: why what stands beside the file about it cannot be used; else "".
        fits: for each network of the encoder's kind, a ViT or a Swin transformer, whether it can take the weights.
        dvpt_parameters: number of parameters that DVPT trains in the encoder by default; None if its bottleneck is not
            narrower than the tokens, or layers lack tensors.
        beside: names of the tensors of a head and a decoder, which a network takes if they are its own.
        unused: names of all other tensors.
    """

    files: Sequence[WeightFile]
    refused: str = ""
    kind: str = ""
    family: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    assumed: Sequence[str] = ()
    parameters: int = 0
    normalisation: Normalisation | None = None
    normalisation_error: str = ""
    fits: Sequence[Fit] = ()
    dvpt_parameters: int | None = None
    beside: Sequence[str] = ()
    unused: Sequence[str] = ()

    @property
    def dvpt_share(self) -> float | None:
        """What DVPT trains as a share of the encoder's parameters."""
        return None if self.dvpt_parameters is None else self.dvpt_parameters / self.parameters


def describe_weights(source: str | os.PathLike) -> WeightsDescription:
    """
    Describes pretrained weights. Weights that are refused have a description too.

    Args:
        source: see :func:`monai_dvpt.networks.pretrained.load_pretrained`.

    Raises:
        InputError: if there is no such file, or what lies beside it cannot be read.
    """
    file = find_file(source)
    with opened_weights(file) as path, naming(path):
        return _describe(path, None if path == file else file)


def _describe(path: Path, archive: Path | None) -> WeightsDescription:
    """Describes the weights at ``path``, which may be out of an archive."""
    config = read_config(path)
    try:
        found = recognise(read_weights(path), config)
        files = _files([archive] if archive else [path, *shards_of(path)])
    except InputError as error:
        return WeightsDescription(_files([archive or path]), refused=str(error).removeprefix(f"{path}: "))
    beside = [*found.outside, *(found.head_name + name for name in found.head)]
    of_a_method = {name for name in (*found.encoder, *beside) if name.startswith(OF_A_METHOD)}
    found.encoder = {name: each for name, each in found.encoder.items() if name not in of_a_method}
    try:
        sizes, assumed = _sizes(found, backbone_of(path, found, config))
    except (LookupError, RuntimeError, ArithmeticError) as error:
        return WeightsDescription(files, refused=f"has tensors of shapes that no {found.kind} has: {error}")
    missing = _missing_tensor(found.encoder, sizes.get("num_layers", 0))
    normalisation, problem = None, ""
    try:
        normalisation = read_normalisation(path, config, found.family)
    except InputError as error:
        problem = str(error)
    return WeightsDescription(
        files,
        kind=found.kind,
        family=found.family,
        sizes=sizes,
        assumed=assumed,
        parameters=sum(each.numel() for name, each in found.encoder.items() if not NEVER_USED.search(name)),
        normalisation=normalisation,
        normalisation_error=problem,
        fits=list(_fits(found, sizes, missing)),
        dvpt_parameters=None if missing else _dvpt_parameters(_widths(sizes)),
        beside=[name for name in beside if name not in of_a_method],
        unused=[*found.unused, *sorted(of_a_method)],
    )


def _files(paths: Sequence[Path]) -> list[WeightFile]:
    return [WeightFile(path, path.stat().st_size, file_sha256(path)) for path in paths]


def _sizes(found: PretrainedWeights, told: Backbone | None) -> tuple[dict[str, Any], list[str]]:
    """The sizes of an encoder, and the names of those that are assumed."""
    if found.encoder_type is SwinEncoder:
        return swin_sizes(found.encoder), []
    if found.encoder_type is TinyViTEncoder:
        return {"spatial_dims": 2, "in_channels": found.encoder[STEM].shape[1], **found.stated}, []
    return _vit_sizes(found, told)


def _vit_sizes(found: PretrainedWeights, told: Backbone | None) -> tuple[dict[str, Any], list[str]]:
    """The sizes of a ViT, and the names of those that are assumed."""
    kernel, positions = patch_kernel(found), found.encoder.get(POSITIONS)
    sizes: dict[str, Any] = {}
    if kernel is not None and kernel.ndim in (4, 5):
        patch = list(kernel.shape[2:])
        sizes |= {"spatial_dims": len(patch), "in_channels": kernel.shape[1], "patch_size": one_or_each(patch)}
        if told is not None and told.img_size is not None:
            sizes["img_size"] = told.img_size
        elif positions is not None and (grid := sincos_grid(positions, len(patch))) is not None:
            sizes["img_size"] = one_or_each([tokens * side for tokens, side in zip(grid, patch, strict=True)])
    sizes |= {name: value for name, value in encoder_sizes(found).items() if value is not None}
    assumed = []
    usual = usual_heads(sizes.get("hidden_size"), found.family)
    if "num_heads" not in sizes and usual:
        sizes["num_heads"] = usual
        assumed.append("num_heads")
    sizes["qkv_bias"] = "blocks.0.attn.qkv.bias" in found.encoder
    sizes["class_token"] = "cls_token" in found.encoder
    stated = {"layer_norm_eps": found.layer_norm_eps, "activation": found.activation}
    sizes |= {name: value for name, value in stated.items() if value is not None}
    sizes["pre_norm"] = found.pre_norm
    if found.layout:
        sizes["layout"] = found.layout
    return sizes, assumed


def _missing_tensor(encoder: Mapping[str, Any], num_layers: int) -> str:
    """The first tensor that one layer of a ViT lacks and another has; "" if all layers have the same."""
    of_layer: dict[int, set[str]] = {}
    for name in encoder:
        if match := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            of_layer.setdefault(int(match[1]), set()).add(match[2])
    whole = set().union(*of_layer.values())
    lacking = (
        f"blocks.{layer}.{name}" for layer in range(num_layers) for name in sorted(whole - of_layer.get(layer, set()))
    )
    return next(lacking, "")


def _widths(sizes: Mapping[str, Any]) -> list[int]:
    """Token width of every layer."""
    if "embed_dims" in sizes:  # the first stage is of convolutions
        stages = zip(sizes["embed_dims"][1:], sizes["depths"][1:], strict=True)
        return [width for width, depth in stages for _ in range(depth)]
    if "depths" in sizes:
        return [sizes["feature_size"] * 2**stage for stage, depth in enumerate(sizes["depths"]) for _ in range(depth)]
    return [sizes.get("hidden_size", 0)] * sizes.get("num_layers", 0)


def _dvpt_parameters(widths: Sequence[int]) -> int | None:
    try:
        return DVPT().count_for(widths) if widths else None
    except ValueError:  # tokens narrower than the bottleneck
        return None


def _fits(found: PretrainedWeights, sizes: Mapping[str, Any], missing: str) -> Iterator[Fit]:
    if found.encoder_type is SwinEncoder:
        yield from _swin_fits(sizes, found)
    elif found.encoder_type is TinyViTEncoder:
        yield Fit("DVPTTinyViTSegmenter", True, "in 2D")
    elif found.encoder_type is SAMEncoder:
        problem = f"the file lacks {missing}" if missing else ""
        for name in ("DVPTSAMSegmenter", "DVPTSAMClassifier"):
            yield Fit(name, not problem, problem or f"in {sizes['spatial_dims']}D")
    else:
        yield from _vit_fits(sizes, missing)


def _vit_fits(sizes: Mapping[str, Any], missing_tensor: str) -> Iterator[Fit]:
    untold = [name for name in ("hidden_size", "mlp_dim", "num_layers") if not sizes.get(name)]
    if untold:
        problem = f"the file does not tell {', '.join(untold)}"
    elif missing_tensor:
        problem = f"the file lacks {missing_tensor}"
    else:
        heads = sizes.get("num_heads", 1)
        problem = _problem(check_vit_sizes, sizes.get("spatial_dims", 3), sizes["hidden_size"], sizes["mlp_dim"], heads)
    dims = sizes.get("spatial_dims")
    into = {2: "in 2D; in 3D, inflated along an axis", 3: "in 3D"}.get(
        dims or 0, "as the file does not tell its patches, in 2D or 3D"
    )
    yield Fit("DVPTViT", not problem, problem or into)
    yield Fit("DVPTViTSegmenter", not problem, problem or into)
    layers, patch = sizes.get("num_layers"), sizes.get("patch_size")
    if not problem and layers != UNETR_LAYERS:
        yield Fit("DVPTUNETR", False, f"num_layers must be {UNETR_LAYERS}, got {layers}")
        return
    without = "; without the class token" * sizes["class_token"]
    resized = "" if patch in UNETR_PATCHES or patch is None else f"; patches of {times(patch)} resized to 8 or 16"
    yield Fit("DVPTUNETR", not problem, problem or into + without + resized)


def _swin_fits(sizes: Mapping[str, Any], found: PretrainedWeights) -> Iterator[Fit]:
    names = ("spatial_dims", "in_channels", "patch_size", "depths", "num_heads", "window_size", "feature_size")
    values = [sizes.get(name, 1 if name == "window_size" else None) for name in names]
    problem = _problem(check_swin_sizes, *values)
    into = f"in {sizes['spatial_dims']}D"
    width = sizes["feature_size"]
    narrow = "" if width % 12 == 0 else f"feature_size must be a multiple of 12, got {width}"
    if found.swin_sizes:  # of photographs
        narrow = "they merge no tokens after the last stage, and its decoder reads merged ones"
        into += ", with final_norm=True"
    yield Fit("DVPTSwinUNETR", not (problem or narrow), problem or narrow or into)
    yield Fit("DVPTSwinClassifier", not problem, problem or into)


def _problem(check: Any, *values: Any) -> str:
    try:
        check(*values)
    except ValueError as error:
        return str(error).removesuffix(".")
    return ""
