# SPDX-License-Identifier: Apache-2.0
"""Paths that must arrive as typed on a command line."""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import yaml
from fire.parser import DefaultParseValue

from .errors import InputError, reason, root_cause
from .typed_options import check_typed_options

__all__ = ["check_typed_paths", "is_path_key", "path_for_config", "report_input_errors", "setting_for_config"]

PATH_KEYS = ("bundle_root", "datalist", "prefix_cache", "published_model")
PATH_ENDINGS = ("_dir", "_path")
SWITCHES = ("side_path",)  # options that end like a path


def is_path_key(key: str) -> bool:
    """Whether a key of a bundle's config is a path."""
    return key in PATH_KEYS or (key.endswith(PATH_ENDINGS) and not key.endswith(SWITCHES))


def path_for_config(path: str) -> str:
    """
    Writes a path so that MONAI's config parser does not change it: the parser reads ``#`` as a separator, and a first
    ``$``, ``@`` or ``%`` as an expression, a reference or a file.
    """
    if "#" not in path and not path.startswith(("$", "@", "%")):
        return path
    text = "".join(f"\\x{ord(char):02x}" if char in '#@%$"' else ascii(char)[1:-1] for char in path)
    return f'$"{text}"'


def setting_for_config(key: str, text: str) -> Any:
    """
    Converts the text of a setting for MONAI's config parser: a path stays as it is, everything else is YAML.

    Args:
        key: key of a bundle's config.
        text: its value.

    Raises:
        InputError: if the value is not valid YAML.
    """
    if is_path_key(key) and text not in ("", "null"):
        return path_for_config(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key} must have a value in YAML, got {text}.") from error


def check_typed_paths(arguments: Sequence[str]) -> None:
    """
    Refuses paths that MONAI's command line would change: it makes numbers or lists of those that look so, and cuts off
    ``#`` and the rest.

    Args:
        arguments: the command line, such as ``--output_dir out``.

    Raises:
        InputError: if a path would not arrive as typed; says what to type instead.
    """
    for index, argument in enumerate(arguments):
        name, equals, typed = argument.lstrip("-").partition("=")
        key = name.replace("-", "_")
        if not argument.startswith("--") or not is_path_key(key):
            continue
        if not equals:
            if index + 1 == len(arguments):
                continue
            typed = arguments[index + 1]
        value = DefaultParseValue(typed)
        if value is None or _arrives(typed, value):
            continue
        wanted = typed if "#" in typed or os.path.isabs(typed) else f"./{typed}"
        raise InputError(
            f"--{name} {typed}: must arrive as typed, but MONAI's command line would change it; type "
            f"--{name} {shlex.quote(path_for_config(wanted))}"
        )


def _arrives(typed: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if typed.startswith(("$", "@", "%")):  # an expression, unless such a file exists
        return not os.path.lexists(typed)
    return "#" not in value and value in (typed, _unquoted(typed))


def _unquoted(typed: str) -> Any:
    """The value of a quoted Python literal."""
    try:
        return ast.literal_eval(typed) if typed[:1] in ("'", '"') else None
    except (SyntaxError, ValueError):
        return None


def report_input_errors(bundle_root: str | os.PathLike | None = None) -> None:
    """
    Makes an uncaught error caused by an :class:`InputError` end the process with only its message on standard error,
    instead of a traceback through MONAI's config parser. The same goes for errors of the file system, with the file's
    name. Bundles call it in ``initialize``, so it also checks the options and paths of the command line.

    Args:
        bundle_root: folder of the bundle, if it must be one: a config that was started in another folder says so.

    Raises:
        InputError: see :func:`check_typed_paths` and :func:`check_typed_options`; or if ``bundle_root`` is no bundle's.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, InputError):
            print(f"error: {reason(error)}", file=sys.stderr)
        elif isinstance(cause, OSError) and cause.filename is not None:
            print(f"error: {cause.filename}: {cause.strerror}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
    check_typed_paths(sys.argv[1:])
    check_typed_options(sys.argv)
    if bundle_root is not None and not os.path.isfile(os.path.join(bundle_root, "configs", "metadata.json")):
        raise InputError(
            f"{os.path.abspath(bundle_root)}: bundle_root must be the folder of the bundle, with "
            "configs/metadata.json; run the command in that folder, or pass --bundle_root."
        )
