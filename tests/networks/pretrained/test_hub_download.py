# SPDX-License-Identifier: Apache-2.0
"""Weights from a hub: a local server that speaks the hub's protocol, and processes of their own that fetch from it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from safetensors.torch import save
from utils_data import ROOT, entered, temporary_folder
from utils_sources import timm_state

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Bytes from which the hub keeps a file apart, by its SHA-256."""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, see ``hub.files``; the first download of ``hub.interrupted`` ends half way."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/revision/(.+)", self.path):
            names = [name for repository, _, name in hub.files if repository == match[1]]
            content = json.dumps({"id": match[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
            return self.send(200, content.encode(), {}, body)
        if match := re.fullmatch(r"/lfs/(\w+)", self.path):
            return self.send_content(hub.large[match[1]], f'"{match[1]}"', body)
        match = re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", self.path)
        if match is None:
            return self.send(404, b"", {}, body)
        repository, revision, name = match.groups()
        commit = {"X-Repo-Commit": COMMIT}
        if not any(known[:2] == (repository, revision) for known in hub.files):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        content = hub.files.get((repository, revision, name))
        if content is None:
            return self.send(404, b"", {**commit, "X-Error-Code": "EntryNotFound"}, body)
        if len(content) < LARGE:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git names it
            return self.send(200, content, {**commit, "ETag": f'"{etag}"'}, body)
        sha256 = hashlib.sha256(content).hexdigest()
        hub.large.setdefault(sha256, content)
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        location = f"http://localhost:{hub.server_port}/lfs/{sha256}"  # the hub too has another host for it
        return self.send(302, b"", {**commit, **linked, "Location": location}, body)

    def send_content(self, content: bytes, etag: str, body: bool) -> None:
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if start else 200, content[start:], headers, body)

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if self.path == self.server.interrupted and status == 200:
            self.server.interrupted = ""
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


def serve(test: unittest.TestCase, files: dict[tuple[str, str, str], bytes]) -> ThreadingHTTPServer:
    """A hub on a free port of 127.0.0.1, of the files by repository, revision and name; it ends with the test."""
    hub = entered(test, ThreadingHTTPServer(("127.0.0.1", 0), Hub))
    hub.files, hub.large, hub.asked, hub.interrupted = files, {}, [], ""
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    test.addCleanup(hub.shutdown)
    return hub


def torch_file(state: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


class TestHub(unittest.TestCase):
    def setUp(self):
        self.home = temporary_folder(self)
        config = json.dumps({"num_attention_heads": 6}).encode()
        padding = {"mask_token": torch.zeros(6_000_000)}  # the client writes 10 MiB at a time
        self.first, self.second = save({**timm_state(seed=1), **padding}), save(timm_state(seed=2))
        self.hub = serve(
            self,
            {
                ("clinic/vit", "v1", "config.json"): config,
                ("clinic/vit", "v1", "model.safetensors"): self.first,
                ("clinic/vit", "main", "model.safetensors"): self.second,
                ("clinic/older", "main", "pytorch_model.bin"): torch_file(timm_state()),
            },
        )

    def info(self, *arguments: str, offline: bool = False) -> tuple[int, str, str]:
        """Exit status, output and errors of a process of its own."""
        host, port = self.hub.server_address
        variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        variables |= {"HF_ENDPOINT": f"http://{host}:{port}", "HF_HOME": str(self.home), "PYTHONPATH": str(ROOT)}
        variables |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        command = [sys.executable, "-W", "ignore", "-m", "monai_dvpt", "backbone", "info", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=self.home, timeout=300)
        return done.returncode, done.stdout, done.stderr

    def test_revision_resumed_and_then_offline(self):
        digest = hashlib.sha256(self.first).hexdigest()
        self.hub.interrupted = f"/lfs/{digest}"
        status, out, err = self.info("clinic/vit@v1", "clinic/older", "--json")
        self.assertEqual(status, 0, err)
        new, older = json.loads(out)
        self.assertEqual(new["files"][0]["sha256"], digest)  # that of the revision, not of main
        self.assertEqual(new["sizes"]["num_heads"], 6)
        self.assertIn("pytorch_model.bin", older["files"][0]["path"])
        fetched = [part for method, path, part in self.hub.asked if method == "GET" and path == f"/lfs/{digest}"]
        self.assertEqual(len(fetched), 2)
        start = int(re.fullmatch(r"bytes=(\d+)-", fetched[1])[1])
        self.assertTrue(0 < start <= len(self.first) // 2, start)

        count = len(self.hub.asked)
        status, out, err = self.info("clinic/vit@v1", "clinic/older", "--json", offline=True)
        self.assertEqual(status, 0, err)
        self.assertEqual(json.loads(out), [new, older])
        self.assertEqual(len(self.hub.asked), count)

    def test_other_content_than_the_server_says_is_refused_and_named(self):
        digest = hashlib.sha256(self.second).hexdigest()
        wrong = bytearray(self.second)
        wrong[-1] ^= 1  # of the same size
        self.hub.large[digest] = bytes(wrong)
        status, out, err = self.info("clinic/vit")
        self.assertEqual((status, out), (1, ""))
        line = err.splitlines()[-1]
        self.assertRegex(line, "^error: clinic/vit: .*model.safetensors: must have the SHA-256 that the server said")
        for value in (digest, hashlib.sha256(wrong).hexdigest()):
            self.assertIn(value, line)
        os.unlink(re.search("delete (.*) and try again", line)[1])
        self.hub.large[digest] = self.second
        status, _, err = self.info("clinic/vit")
        self.assertEqual(status, 0, err)

    def test_no_such_revision(self):
        status, _, err = self.info("clinic/vit@none")
        self.assertEqual(status, 1)
        self.assertIn("RevisionNotFoundError", err.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
