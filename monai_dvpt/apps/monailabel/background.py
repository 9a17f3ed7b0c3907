# SPDX-License-Identifier: Apache-2.0
"""Ends what the server runs in the background, such as a training, with the server."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from monailabel.utils.async_tasks import utils as tasks

__all__ = ["WAITING", "end_with_server", "stop_when_server_ends", "waiting"]

SERVER_PROCESS = "MONAI_DVPT_SERVER"
"""Environment variable that tells child processes the server's process number."""
WAITING = 10
"""The most tasks of one kind that run or wait."""


def waiting(method: str) -> int:
    """How many tasks of one kind run or wait."""
    return sum(task["status"] in ("SUBMITTED", "RUNNING") for task in list(tasks.tasks(method)))


def stop_when_server_ends() -> asyncio.Task:
    """
    Returns a task in the server's event loop that stops the background tasks when the loop ends. Killing the server
    skips that; see :func:`end_with_server`.
    """
    os.environ[SERVER_PROCESS] = str(os.getpid())
    return asyncio.get_running_loop().create_task(_stop_at_the_end())


def end_with_server() -> None:
    """Ends this process, if the server started it, once the server is gone for any reason."""
    if server := os.environ.get(SERVER_PROCESS):
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
