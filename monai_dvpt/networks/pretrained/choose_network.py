# SPDX-License-Identifier: Apache-2.0
"""Chooses one of several networks in a file, and finds its depth, from the names of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from monai_dvpt.utils import MAX_TENSORS, InputError

__all__ = ["choose_network", "depth", "places"]

# parts of an autoencoder or a predictor that look like encoders
NO_ENCODER = re.compile(r"(decoder|predictor)\w*")
TEACHER, STUDENT = "teacher", "student"


def places(states: Mapping[str, Mapping[str, torch.Tensor]], signature: str) -> list[tuple[str, str]]:
    """
    Finds the networks of one layout in a file.

    Args:
        states: the named tensors of a file, by their place in it, see :func:`read_weights`.
        signature: a name that only this layout has, after any root.

    Returns:
        the place and the root of each network, the shortest root first.
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
    states: Mapping[str, Mapping[str, torch.Tensor]], found: list[tuple[str, str]]
) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """
    Chooses the network of a file. Of two it is the teacher, if parts of their names are ``teacher`` and ``student`` as
    in DINO, iBOT and DINOv2, which publish and evaluate the teacher, the average of the students.

    Args:
        states: the named tensors of a file, by their place in it.
        found: the result of :func:`places`, not empty.

    Returns:
        the root of the network, all tensors at its place without the student's, and the names of the student's.

    Raises:
        InputError: if there are several and none is the teacher; names their places.
    """
    teachers, students = [], []
    if len(found) > 1:
        teachers = [one for one in found if TEACHER in _parts(one)]
        students = [one for one in found if STUDENT in _parts(one)]
        if len(teachers) != 1 or len(students) != len(found) - 1:
            names = [".".join(_parts(one))[:100] or "the top" for one in found]
            raise InputError(
                f"must hold one network, or a teacher and its student, got networks under "
                f"{', '.join(names[:4])}; save the tensors of one to a file."
            )
    place, root = (teachers or found)[0]
    # all of the student's, including its head
    students_at = [re.match(rf"(.*[./])?{STUDENT}[./]", before) for where, before in students if where == place]
    drop = tuple(match[0] for match in students_at if match)
    own = {name: tensor for name, tensor in states[place].items() if not name.startswith(drop)}
    others = [name for name in states[place] if name not in own]
    for where in sorted({where for where, _ in students} - {place}):
        others += [f"{where}.{name}" for name in states[where]]
    return root, own, others


def depth(names: Iterable[str]) -> int:
    """
    Number of blocks, from names such as ``blocks.11.norm1.weight``.

    Raises:
        InputError: if the index of a block is not a whole number below ``MAX_TENSORS``.
    """
    found = [name.split(".")[1] for name in names if name.startswith("blocks.")]
    for index in found:
        if not re.fullmatch("[0-9]{1,5}", index) or int(index) >= MAX_TENSORS:
            raise InputError(f"the index of a block must be below {MAX_TENSORS}, got {index[:50]!r}.")
    return 1 + max(map(int, found), default=-1)


def _parts(one: tuple[str, str]) -> list[str]:
    return [part for part in re.split("[./]", ".".join(one)) if part]
