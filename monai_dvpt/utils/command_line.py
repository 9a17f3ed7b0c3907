# SPDX-License-Identifier: Apache-2.0
"""Values of a command line that arrive as they were typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.utils import optional_import

from .errors import InputError

DefaultParseValue, _ = optional_import("fire.parser", name="DefaultParseValue")

__all__ = ["check_command_line", "is_path_key", "parse_setting"]

MONAI_BUNDLE = ("monai", "bundle", "__main__.py")
PATH_ENDINGS = ("_dir", "_path", "_root", "datalist", "published_model")
QUOTES = ("'", '"')


def is_path_key(key: str) -> bool:
    """Whether a key of a config, such as "output_dir", has a path as its value."""
    return key.endswith(PATH_ENDINGS)


def parse_setting(key: str, text: str) -> Any:
    """
    A value of a config, given as text: of a path the text as it is, else what it is in YAML.

    Args:
        key: its key.
        text: its value.

    Raises:
        InputError: if it is no path and not valid YAML.
    """
    if is_path_key(key):
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key} must have a value in YAML, got {text}.") from error


def check_command_line(argv: Sequence[str] | None = None) -> None:
    """
    Refuses options of ``python -m monai.bundle`` that arrive as something else than was typed. MONAI reads them with
    Fire, and so as Python: what stands behind a ``#`` is lost, and a folder ``2024`` or ``20240101_1200`` is a number.

    Args:
        argv: by default that of this process; of other programs nothing is checked.

    Raises:
        InputError: if there is such an option; says what to type instead.
    """
    program, *arguments = sys.argv if argv is None else argv
    if Path(program).parts[-3:] != MONAI_BUNDLE:
        return
    for key, text in _options(arguments):
        value = DefaultParseValue(text)
        kept = value == text or text.startswith(QUOTES) or value is None
        arrives = f"{text} arrives as the {type(value).__name__} {value}"
        if is_path_key(key) and not (kept and isinstance(value, str | None)):
            raise InputError(f"--{key} must be a path, but {arrives}; type --{key} ./{text}")
        if isinstance(value, str) and not kept:
            raise InputError(f"--{key} must arrive as typed, but {arrives}; type --{key} {shlex.quote(repr(text))}")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of ``--name value`` and ``--name=value``, as Fire takes them."""
    for argument, after in zip(arguments, [*arguments[1:], "--"], strict=True):
        if argument.startswith("-"):
            key, equals, text = argument.lstrip("-").partition("=")
            if equals or not after.startswith("--"):
                yield key.replace("-", "_"), text if equals else after
