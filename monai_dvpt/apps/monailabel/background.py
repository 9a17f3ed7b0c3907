# SPDX-License-Identifier: Apache-2.0
"""What the server runs in the background, such as a training, ends with it."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from monailabel.utils.async_tasks import utils as tasks

__all__ = ["WAITING", "end_with_server", "stop_when_server_ends", "waiting"]

SERVER = "MONAI_DVPT_SERVER"
"""Environment variable with the process of the server, for those that it starts."""
WAITING = 10
"""The most tasks of a kind that run or wait at once."""


def waiting(method: str) -> int:
    """How many tasks of a kind run or wait."""
    return sum(task["status"] in ("SUBMITTED", "RUNNING") for task in list(tasks.tasks(method)))


def stop_when_server_ends() -> asyncio.Task:
    """
    Called by the server in its event loop: the task that is returned ends with the loop, and what runs in the
    background with it. The loop of a server that is killed does not end so; see :func:`end_with_server`.
    """
    os.environ[SERVER] = str(os.getpid())
    return asyncio.get_running_loop().create_task(_stop_at_the_end())


def end_with_server() -> None:
    """Called by a process that the server started: once the server is gone, whatever ended it, this one ends too."""
    server = os.environ.get(SERVER)
    if server:
        threading.Thread(target=_watch, args=(int(server),), daemon=True, name="server is there").start()


async def _stop_at_the_end() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        for method, executor in list(tasks.background_executors.items()):
            executor.shutdown(wait=False, cancel_futures=True)
            tasks.stop_background_task(method)


def _watch(server: int) -> None:
    while os.getppid() == server:
        time.sleep(0.5)
    os._exit(1)
