# SPDX-License-Identifier: Apache-2.0
"""A real MONAI Label server on 127.0.0.1, and what it tells."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from utils_data import ROOT

APP = ROOT / "monai_dvpt" / "apps" / "monailabel"
WATCH_SOCKETS = """
import os, sys
def tell(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["SOCKET_LOG"], "a") as file:
            file.write(f"{event} {arguments!r}\\n")
sys.addaudithook(tell)
with open(os.environ["SOCKET_LOG"], "a") as file:
    file.write("watched\\n")
"""
"""Run at the start of every Python process of the server: writes where it connects to and which names it looks up."""


def require_monai_label() -> None:
    """Skips a test in an environment without MONAI Label, which needs one of its own."""
    if find_spec("monailabel") is None:
        raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """
    Attributes:
        url: of the server.
        log: what it has written.
        sockets: file with a line for every connection that one of its processes tried.
        process: of the server.
    """

    process: subprocess.Popen

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.log_file = folder / "server.log"
        self.sockets = folder / "sockets.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str, method: str = "GET", token: str | None = None) -> tuple[int, bytes]:
        """Status and body of a request, also of one that is refused."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def info(self) -> dict:
        status, body = self.get("/info/")
        assert status == 200, (status, body)
        return json.loads(body)


@contextlib.contextmanager
def serve(
    studies: Path | str,
    folder: Path,
    conf: dict[str, str] | None = None,
    app: Path = APP,
    environment: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    ready: str = "/info/",
) -> Iterator[Server]:
    """
    Args:
        studies: folder of images, or address of a PACS.
        folder: for logs.
        conf: settings of the app.
        app: folder of the app.
        environment: further variables.
        prefix: of the command, such as that of a network namespace; then the port is not looked for from outside.
        ready: what is asked for until the server answers.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(f"http://127.0.0.1:{port}", folder)
    watch = folder / "watch"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH_SOCKETS)
    server.sockets.touch()
    settings = [text for name, value in (conf or {}).items() for text in ("--conf", name, value)]
    command = [*prefix, sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port), *settings]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(watch), str(ROOT)]),
        "SOCKET_LOG": str(server.sockets),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
        **(environment or {}),
    }
    with open(server.log_file, "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=folder, start_new_session=True)
    server.process = process
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                if server.get(ready)[0] < 500:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{server.log[-4000:]}")
            time.sleep(0.5)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # with what it has in the background
        process.wait(30)


def sample_app(name: str, folder: Path) -> Path:
    """A copy of one of MONAI Label's own apps."""
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / name, folder)
    return folder
