# SPDX-License-Identifier: Apache-2.0
"""What the command lines of this package share; every command is a module beside this one."""

from .command_line import CommandModule, printable, run_commands

__all__ = ["CommandModule", "printable", "run_commands"]
