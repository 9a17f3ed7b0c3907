# SPDX-License-Identifier: Apache-2.0
"""What the names of tensors tell: which network of a file is meant where it holds several, and how deep it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from monai_dvpt.utils import MAX_TENSORS, InputError

__all__ = ["choose_network", "depth", "places"]

# parts of an autoencoder or a predictor that are built as encoders, and are none
NO_ENCODER = re.compile(r"(decoder|predictor)\w*")
TEACHER, STUDENT = "teacher", "student"


def places(states: Mapping[str, Mapping[str, torch.Tensor]], signature: str) -> list[tuple[str, str]]:
    """
    Where networks of one layout stand in a file.

    Args:
        states: the named tensors of a file, by where they stand in it.
        signature: a name that only this layout has, whatever stands before it.

    Returns:
        the key in ``states`` and the root of each network, what its names begin with, the shortest first.
    """
    ends = ("." + signature, "/" + signature)
    found = [
        (place, name.removesuffix(signature))
        for place, tensors in states.items()
        for name in tensors
        if name == signature or name.endswith(ends)
    ]
    encoders = [one for one in found if not any(map(NO_ENCODER.fullmatch, _parts(one)))]
    return sorted(encoders, key=lambda one: len(one[1]))


def choose_network(
    path: Any, states: Mapping[str, Mapping[str, torch.Tensor]], found: list[tuple[str, str]]
) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """
    The network of a file. Of two it is the teacher, where a part of its name is ``teacher`` and one of the other's is
    ``student``, as in DINO, iBOT and DINOv2: the average of the students, which these publish and evaluate.

    Args:
        path: named in errors.
        states: the named tensors of a file, by where they stand in it.
        found: what :func:`places` returned, not empty.

    Returns:
        the root of the network, the tensors beside it, its own included, and the names of those of another network.

    Raises:
        InputError: if there are several and none is the teacher; names where they stand.
    """
    teachers, students = [], []
    if len(found) > 1:
        teachers = [one for one in found if TEACHER in _parts(one)]
        students = [one for one in found if STUDENT in _parts(one)]
        if len(teachers) != 1 or len(students) != len(found) - 1:
            names = [".".join(_parts(one))[:100] or "the top" for one in found]
            raise InputError(
                f"{path}: must hold one network, or a teacher and its student, got networks under "
                f"{', '.join(names[:4])}; save the tensors of one to a file."
            )
    place, root = (teachers or found)[0]
    # all of the student's, its head included
    students_at = [re.match(rf"(.*[./])?{STUDENT}[./]", before) for where, before in students if where == place]
    drop = tuple(match[0] for match in students_at if match)
    own = {name: tensor for name, tensor in states[place].items() if not name.startswith(drop)}
    others = [name for name in states[place] if name not in own]
    for where in sorted({where for where, _ in students} - {place}):
        others += [f"{where}.{name}" for name in states[where]]
    return root, own, others


def depth(path: Any, names: Iterable[str]) -> int:
    """
    Number of blocks, by names such as ``blocks.11.norm1.weight``.

    Raises:
        InputError: if the index of a block is no whole number below the limit of tensors.
    """
    found = [name.split(".")[1] for name in names if name.startswith("blocks.")]
    for index in found:
        if not re.fullmatch("[0-9]{1,5}", index) or int(index) >= MAX_TENSORS:
            raise InputError(f"{path}: the index of a block must be below {MAX_TENSORS}, got {index[:50]!r}.")
    return 1 + max(map(int, found), default=-1)


def _parts(one: tuple[str, str]) -> list[str]:
    return [part for part in re.split("[./]", ".".join(one)) if part]
