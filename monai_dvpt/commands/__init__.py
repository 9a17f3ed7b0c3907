# SPDX-License-Identifier: Apache-2.0
"""The commands, each a module, and what the command lines of this package share."""

from .command_line import CommandModule, columns, printable, run_commands, say

__all__ = ["CommandModule", "columns", "printable", "run_commands", "say"]
