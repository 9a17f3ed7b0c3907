# SPDX-License-Identifier: Apache-2.0
"""Options of ``python -m monai.bundle run`` that nothing uses, which MONAI takes without a word."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue, SeparateFlagArgs

from .errors import InputError

__all__ = ["check_typed_options"]

COMMANDS = ("run", "run_workflow")


def check_typed_options(command_line: Sequence[str]) -> None:
    """
    Refuses an option that would change nothing, such as a mistyped key. An option, of the command line or of its
    ``args_file``, must begin with an argument of MONAI's command, a key of the config files, or a key that another
    option or a config file refers to.

    Args:
        command_line: with the program first, as ``sys.argv``; that of another program passes.

    Raises:
        InputError: if nothing uses an option; names those that are near.
    """
    program, *words = command_line
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py") or not words or words[0] not in COMMANDS:
        return
    from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, update_kwargs
    from monai.bundle import run as run_bundle

    arguments = _arguments_of(run_bundle, create_workflow, ConfigWorkflow)
    typed, others = _options(SeparateFlagArgs(words[1:])[0], arguments)
    options = {**update_kwargs(args=typed.get("args_file")), **typed}
    if (files := options.get("config_file")) is None:
        return
    config = ConfigParser.load_config_files(files)
    keys = {*config, ConfigParser.meta_key, *_tracking_keys(options.get("tracking"))}
    values = [str(value) for name, value in options.items() if name not in arguments]
    text = " ".join([*values, str(config)])
    named = {*others, *(options.get(name) for name in ("run_id", "init_id", "final_id"))}
    for option in options:
        key = re.split("#|::", option.lstrip("+"))[0]
        if option in arguments or key in keys or key in named or re.search(rf"[@%]{re.escape(key)}\b", text):
            continue
        near = difflib.get_close_matches(key, sorted({*keys, *arguments}))
        hint = f", but --{' or --'.join(near)}" if near else ""
        rule = f"must begin with a key of {_shown(files)}, or with one that is used there"
        raise InputError(f"--{option}: {rule}; there is no {key}{hint}.")


def _arguments_of(*functions: Callable[..., Any]) -> set[str]:
    """Names of their arguments, without those of the kind ``**override``."""
    parameters = [each for function in functions for each in inspect.signature(function).parameters.values()]
    return {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}


def _options(words: Sequence[str], arguments: set[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of a command line and their values, as Python Fire reads them, and the words that are of none."""
    options: dict[str, Any] = {}
    others = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not _is_option(word):
            others.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals and left and not _is_option(left[0]):
            value = left.pop(0)
        elif not equals:
            value = "True"
            if name not in arguments and name.startswith("no"):
                name, value = name[2:], "False"
        options[name] = DefaultParseValue(value)
    return options, others


def _is_option(word: str) -> bool:
    return re.match("--|-[a-zA-Z]", word) is not None


def _tracking_keys(tracking: str | dict[str, Any] | None) -> list[str]:
    """Keys that the tracking of experiments adds to a config."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    if tracking is None:
        return []
    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        tracking = DEFAULT_EXP_MGMT_SETTINGS[tracking]
    return list(ConfigParser.load_config_files(tracking).get("configs", {}))


def _shown(files: Any) -> str:
    return " and ".join(map(str, files)) if isinstance(files, (list, tuple)) else str(files)
