# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app beside a PACS that is asked through it, and what it leaves running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import unittest
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import ClassVar
from urllib.parse import quote

from parameterized import parameterized
from utils_app_attacks import INFO, MODEL, first_case
from utils_data import temporary_folder
from utils_server import serve

if find_spec("monailabel") is None:
    raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")

import psutil
import requests


class Pacs(BaseHTTPRequestHandler):
    """An empty one that keeps what it was asked for."""

    asked: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_) -> None:
        pass


class TestBesideAPacs(unittest.TestCase):
    def test_only_dicomweb_is_asked_of_it_and_its_absence_is_told(self):
        folder = temporary_folder(self)
        pacs = ThreadingHTTPServer(("127.0.0.1", 0), Pacs)
        threading.Thread(target=pacs.serve_forever, daemon=True).start()
        variables = {
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        }
        conf = {"models": MODEL, "adapters": str(folder / "adapters")}
        url = f"http://127.0.0.1:{pacs.server_port}/dicom-web"
        with serve(url, folder / "server", conf, environment=variables) as server:
            Pacs.asked.clear()
            for path in ("../tools", "studies/../../tools", "./../tools", "a?b", "a#b", "a\\..\\b", "..", "//host/"):
                path = quote(path, safe="").replace(".", "%2e")
                for kind in ("wado", "qido"):
                    self.assertEqual(requests.get(f"{server.url}/proxy/dicom/{kind}/{path}").status_code, 422, path)
                    for method in ("POST", "PUT", "DELETE"):
                        found = requests.request(method, f"{server.url}/proxy/dicom/{kind}/studies")
                        self.assertEqual(found.status_code, 405)
                self.assertEqual(requests.get(f"{server.url}/proxy/dicom/{path}").status_code, 404, path)
            self.assertEqual(Pacs.asked, [])
            found = requests.get(f"{server.url}/proxy/dicom/qido/studies/1.2/series")
            self.assertEqual((found.status_code, found.json()), (200, []))
            self.assertEqual(Pacs.asked, ["/dicom-web/studies/1.2/series"])
            image, label = first_case()
            with open(image, "rb") as file:
                refused = requests.put(f"{server.url}/datastore/image?image=1.2", files={"file": file})
            self.assertEqual((refused.status_code, "PACS" in refused.text), (422, True))
            for name in ("1.2.3", "../1.2", "x"):
                self.assertEqual(requests.post(f"{server.url}/infer/{MODEL}?image={quote(name)}").status_code, 422)
                with open(label, "rb") as file:
                    refused = requests.put(f"{server.url}/datastore/label?image={quote(name)}", files={"label": file})
                self.assertEqual(refused.status_code, 422, refused.text)
            start, Pacs.status = len(server.log), 403
            for path in ("/datastore/", "/info/"):
                self.assertEqual(requests.get(f"{server.url}{path}").status_code, 502)
            pacs.shutdown()
            pacs.server_close()
            self.assertEqual(requests.get(f"{server.url}/proxy/dicom/qido/studies").status_code, 502)
            self.assertNotIn("Traceback", server.log[start:])


class TestTrainingEndsWithItsServer(unittest.TestCase):
    @parameterized.expand([("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)])
    def test_server_is(self, _, how):
        folder = temporary_folder(self)
        (folder / "studies").mkdir()
        image, label = first_case()
        shutil.copy(image, folder / "studies" / "first.nii.gz")
        variables = {"MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
        (folder / "sessions" / str(uuid.uuid1())).mkdir(parents=True)  # of a server that was killed
        (folder / "sessions" / "other").mkdir()
        with serve(folder / "studies", folder / "server", {"models": MODEL}, environment=variables) as server:
            with open(label, "rb") as file:
                data = {"params": json.dumps(INFO)}
                saved = requests.put(f"{server.url}/datastore/label?image=first", files={"label": file}, data=data)
            self.assertEqual(saved.status_code, 200, saved.text)
            asked = requests.post(f"{server.url}/train/{MODEL}", json={"max_epochs": 1000, "val_split": 0})
            self.assertEqual(asked.status_code, 200, asked.text)
            deadline, background = time.monotonic() + 300, []
            while not background or how == signal.SIGKILL and "Epoch 1 of" not in server.log:
                self.assertLess(time.monotonic(), deadline, server.log[-2000:])
                time.sleep(0.2)
                background = psutil.Process(server.process.pid).children(recursive=True)
            os.kill(server.process.pid, how)
            server.process.wait(60)
            _, alive = psutil.wait_procs(background, timeout=30)
            self.assertEqual(alive, [])
        self.assertEqual(len(list((folder / "sessions").iterdir())), 2)
