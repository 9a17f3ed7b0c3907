# SPDX-License-Identifier: Apache-2.0
"""Hostile input, read in a process of its own under limits of memory and of time."""

from __future__ import annotations

import os
import subprocess
import sys

PRELUDE = """
import resource
import sys

import monai_dvpt.data
import monai_dvpt.networks.nets
import monai_dvpt.networks.pretrained
import monai_dvpt.transforms
from monai_dvpt.utils import InputError, reason, root_cause

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {memory_bytes},) * 2)


def attack(arguments):
{code}


try:
    print("read:", attack(sys.argv[1:]))
except Exception as error:
    if not isinstance(root_cause(error), InputError):
        raise
    print("refused:", reason(error))
"""


def attack(code: str, *arguments: object, memory_bytes: int = 1 << 30, seconds: float = 120) -> str:
    """
    Runs code in a process that may take ``memory_bytes`` beyond what importing the package takes.

    Args:
        code: body of a function of ``arguments``, a list of texts.
        arguments: become texts.
        memory_bytes: limit of the address space above that of the imports.
        seconds: limit of the time, imports included: a bound against hanging, not a measure of speed.

    Returns:
        "read: " and what the code returned, or "refused: " and the reason of the error of input.

    Raises:
        AssertionError: if the process ended in any other way; holds its standard error.
        subprocess.TimeoutExpired: if it took longer.
    """
    body = "\n".join(f"    {line}" for line in code.strip("\n").splitlines())
    script = PRELUDE.format(memory_bytes=memory_bytes, code=body)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("read: ", "refused: "))]
    if done.returncode != 0 or len(lines) != 1:
        raise AssertionError(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return lines[0]
