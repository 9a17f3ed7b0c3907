# SPDX-License-Identifier: Apache-2.0
"""Runs a command line; bad input is one line on standard error."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, Protocol

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, progress, reason

__all__ = ["CommandModule", "columns", "printable", "run_commands", "say"]

LIBRARIES = ("torch", "monai", "numpy", "pydicom", "monailabel")  # MONAI Label where it is installed


class CommandModule(Protocol):
    """A module that holds a command."""

    def add_parser(self, commands: Any) -> None:
        """
        Adds a parser to ``commands``, the result of ``argparse.ArgumentParser.add_subparsers``. Its default ``run`` is
        a function of the parsed arguments, which prints its results or raises an :class:`InputError`.
        """


def run_commands(
    prog: str, description: str, modules: Sequence[CommandModule], argv: Sequence[str] | None = None
) -> int:
    """
    Parses a command line, by default that of the process, and runs the command.

    Returns:
        the exit status: 0, or 1 after bad input, which one line on standard error names.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="print this version and those it runs with")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in modules:
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        with _progress_on_stderr():
            arguments.run(arguments)
    except InputError as error:
        print(f"error: {printable(reason(error))}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Context in which lines of progress are on standard error, unless somebody has set up the log."""
    logger = logging.getLogger(progress.__module__)
    if logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _Version(argparse.Action):
    """Prints versions and ends; looks them up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = [f"monai_dvpt {__version__}", f"python {platform.python_version()}"]
        for name in LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.append(f"{name} {metadata.version(name)}")
        print("\n".join(found))
        parser.exit()


def say(line: Any) -> None:
    """Prints a line at once. Where nobody reads the output any more, as behind ``head``, the command still goes on."""
    try:
        print(printable(line), flush=True)
    except BrokenPipeError:  # the rest goes nowhere; else Python would name the closed pipe at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def printable(text: Any) -> str:
    """``text`` with an escape for every character that would steer a terminal or cannot be encoded."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))
