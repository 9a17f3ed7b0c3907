# SPDX-License-Identifier: Apache-2.0
"""Runs a command line: its commands, and one line for bad input."""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, reason

__all__ = ["CommandModule", "printable", "run_commands"]

LIBRARIES = ("torch", "monai", "numpy", "pydicom", "monailabel")  # those of extras where they are installed


class CommandModule(Protocol):
    """A module that holds a command."""

    def add_parser(self, commands: Any) -> None:
        """
        Args:
            commands: what ``argparse.ArgumentParser.add_subparsers`` gave. The parser that is added to it sets the
                default ``run``, a function of the parsed arguments that prints what it did or raises an InputError.
        """


def run_commands(
    prog: str, description: str, modules: Sequence[CommandModule], argv: Sequence[str] | None = None
) -> int:
    """
    Parses a command line and runs the command.

    Args:
        prog: how the program is called.
        description: what it is for.
        modules: its commands.
        argv: the arguments, by default those of the process.

    Returns:
        the exit status: 0, or 1 after bad input, which is named in one line on standard error.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="print this version and those it runs with")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in modules:
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {printable(reason(error))}", file=sys.stderr)
        return 1
    return 0


class _Version(argparse.Action):
    """Prints versions and ends; they are looked up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = [f"monai_dvpt {__version__}", f"python {platform.python_version()}"]
        for name in LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.append(f"{name} {metadata.version(name)}")
        print("\n".join(found))
        parser.exit()


def printable(text: Any) -> str:
    """``text`` with an escape for every character that would steer a terminal or cannot be encoded."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))
