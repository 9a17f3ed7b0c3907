# SPDX-License-Identifier: Apache-2.0
"""A real PACS: Orthanc with DICOMweb, in a network of its own, since it listens on all addresses."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
import unittest
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

ORTHANC = Path("/usr/sbin/Orthanc")
PLUGINS = [Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc")]
STORESCU = Path("/usr/bin/storescu")
"""Of DCMTK: Python packages have programs of the same name."""
CLONE_NEWNET = 0x40000000
"""Of Linux: see setns(2)."""


def require_orthanc() -> Path:
    """The plugin for DICOMweb; skips the test where a part of what is needed is missing."""
    plugin = next((path for folder in PLUGINS for path in sorted(folder.glob("libOrthancDicomWeb.so*"))), None)
    missing = [
        what
        for what, there in {
            "Orthanc (Debian package orthanc)": ORTHANC.exists(),
            "its DICOMweb plugin (orthanc-dicomweb)": plugin is not None,
            "storescu (dcmtk)": STORESCU.exists(),
            "ip (iproute2)": shutil.which("ip") is not None,
            "to be run by root": os.geteuid() == 0,
        }.items()
        if not there
    ]
    if missing or plugin is None:
        raise unittest.SkipTest(f"needs {', '.join(missing)}.")
    return plugin


class Orthanc:
    """
    Attributes:
        namespace: name of its network, which has nothing but 127.0.0.1.
        port: of HTTP.
        dicom_port: for C-STORE.
        url: of DICOMweb, in its network.
        log_file: what it has written.
    """

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.port, self.dicom_port = 8042, 4242  # all are free in a network of its own
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        self.log_file = folder / "orthanc.log"

    def in_namespace(self, command: list[str]) -> list[str]:
        """A command that runs in the network of the PACS."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def store(self, folder: Path) -> None:
        """Sends all files of a folder by C-STORE."""
        files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        command = [str(STORESCU), "127.0.0.1", str(self.dicom_port), *files]
        done = subprocess.run(self.in_namespace(command), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"storescu failed: {done.stderr[-2000:]}")

    def post(self, folder: Path) -> None:
        """Stores all files of a folder by HTTP, which is faster; to be called inside its network."""
        for path in sorted(folder.iterdir()):
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}/instances", data=path.read_bytes())
            urllib.request.urlopen(request).close()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Puts this thread, and those that it starts, into the network of the PACS."""
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self.namespace}") as own:
            _enter_network(own.fileno())
            try:
                yield
            finally:
                _enter_network(before.fileno())

    def clear(self) -> None:
        """Removes all that is stored; to be called inside its network."""
        root = f"http://127.0.0.1:{self.port}/patients"
        with urllib.request.urlopen(root) as answer:
            patients = json.load(answer)
        for patient in patients:
            urllib.request.urlopen(urllib.request.Request(f"{root}/{patient}", method="DELETE")).close()

    def answers(self) -> bool:
        """Whether it listens."""
        connect = f"import socket; socket.create_connection(('127.0.0.1', {self.port}), 2)"
        return subprocess.run(self.in_namespace(["python3", "-c", connect]), capture_output=True).returncode == 0


def _enter_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """
    A running Orthanc; it and its network are removed at the end.

    Args:
        folder: for its storage, configuration and log.

    Raises:
        unittest.SkipTest: where it is not installed, or networks cannot be made.
    """
    plugin = require_orthanc()
    folder.mkdir(parents=True, exist_ok=True)
    pacs = Orthanc(f"test-{uuid.uuid4().hex[:8]}", folder)
    made = subprocess.run(["ip", "netns", "add", pacs.namespace], capture_output=True, text=True)
    if made.returncode:
        raise unittest.SkipTest(f"needs network namespaces: {made.stderr.strip()}")
    process = None
    try:
        subprocess.run(pacs.in_namespace(["ip", "link", "set", "lo", "up"]), check=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(plugin)],
            "HttpPort": pacs.port,
            "DicomPort": pacs.dicom_port,
            "DicomAlwaysAllowStore": True,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with open(pacs.log_file, "wb") as log:
            command = pacs.in_namespace([str(ORTHANC), str(folder / "orthanc.json")])
            process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not pacs.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Orthanc did not start:\n{pacs.log_file.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        yield pacs
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run(["ip", "netns", "delete", pacs.namespace], check=True)
