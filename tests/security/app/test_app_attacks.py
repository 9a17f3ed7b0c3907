# SPDX-License-Identifier: Apache-2.0
"""Hostile requests to a real server of the MONAI Label app: refused with a reason, and nothing is left behind."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import shutil
import threading
import time
import unittest
import uuid
from importlib.util import find_spec
from urllib.parse import quote, urlsplit

import numpy as np
from parameterized import parameterized
from utils_app_attacks import (
    GRADE,
    INFO,
    MARK,
    MAX_BYTES,
    MODEL,
    PATIENT,
    VIEWER,
    archive,
    first_case,
    listing,
    nrrd,
    odd_requests,
)
from utils_data import entered, save_nifti, temporary_folder
from utils_headers import nifti_1
from utils_server import serve

if find_spec("monailabel") is None:
    raise unittest.SkipTest("needs the environment of MONAI Label: run .ci/monai_label")

import requests


class TestHostileRequests(unittest.TestCase):
    """One server for all; every refused request leaves its folders as they were."""

    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        cls.studies, cls.temporary = cls.folder / "studies #1", cls.folder / "temporary"
        for folder in (cls.studies, cls.temporary, cls.folder / "home"):
            folder.mkdir()
        cls.image, cls.label = first_case()
        shutil.copy(cls.image, cls.studies / "first.nii.gz")
        cls.mark = cls.folder / "mark"
        variables = {
            "HOME": str(cls.folder / "home"),
            "TMPDIR": str(cls.temporary),
            "ATTACK_MARK": str(cls.mark),
            "MONAI_DVPT_MAX_BYTES": str(MAX_BYTES),
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        }
        conf = {"models": f"{MODEL},{GRADE}", "origins": f"{VIEWER}/"}
        cls.server = entered(cls, serve(cls.studies, cls.folder / "server", conf, environment=variables))

    def setUp(self):
        self.before = self.state()

    def state(self) -> dict[str, dict[str, int]]:
        folders = (self.studies, self.temporary, self.folder / "home")
        return {folder.name: listing(folder) for folder in folders}

    def assertNothingLeft(self) -> None:
        """Files of an answer go once it was sent."""
        deadline = time.monotonic() + 10
        while self.state() != self.before and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(self.state(), self.before)

    def ask(self, method: str, path: str, **given) -> requests.Response:
        return requests.request(method, self.server.url + path, timeout=120, **given)

    def refused(self, reason: str, method: str, path: str, status: int = 422, **given) -> None:
        answer = self.ask(method, path, **given)
        self.assertEqual(answer.status_code, status, (method, path, answer.text[:500]))
        self.assertIn(reason, answer.json()["detail"])
        self.assertEqual(self.state(), self.before)

    def status_of_body(self, kind: str, size: int, declared: bool, path: str = f"/train/{MODEL}") -> int:
        """Of a request whose body is told to have a size, but does not come, or comes untold."""
        url = urlsplit(self.server.url)
        with contextlib.closing(http.client.HTTPConnection(url.hostname, url.port, timeout=60)) as connection:
            connection.putrequest("POST", path)
            connection.putheader("Content-Type", kind)
            connection.putheader(*(("Content-Length", str(size)) if declared else ("Transfer-Encoding", "chunked")))
            connection.endheaders()
            for part in () if declared else (size - 1, 1):  # the last byte is the one too many
                connection.send(b"%x\r\n%s\r\n" % (part, b" " * part))
            return connection.getresponse().status

    def test_python_that_was_sent_is_not_run(self):
        """MONAI Label's training in the background imports timeloop, and takes bundle_path for the path of Python."""
        for path in ("/datastore/image?image=timeloop", "/datastore/?image=timeloop", "/datastore/image"):
            files = {"file": ("timeloop.py", MARK)}
            self.refused("image must be a file of the type", "PUT", path, files=files)
        self.refused("cannot be", "PUT", "/datastore/image?image=timeloop", files={"file": ("a.nii.gz", MARK)})
        self.refused("cannot be", "PUT", "/datastore/image?image=timeloop", files={"file": ("a.nii", MARK)})
        label = {"label": ("timeloop.py", MARK)}
        self.refused("must be a file", "PUT", "/datastore/label?image=first", files=label)
        self.refused("must be a file", "POST", f"/infer/{MODEL}", files={"file": ("timeloop.py", MARK)})
        self.refused("must be a file", "PUT", "/session/", files={"files": ("timeloop.py", MARK)})
        evil = self.folder / "evil"
        evil.mkdir()
        (evil / "timeloop.py").write_text(MARK)
        for name in (MODEL, ""):
            for value in (str(self.studies), str(evil), [str(evil)]):
                self.refused("params must be of", "POST", f"/train/{name}", json={"bundle_path": value})
        self.refused("must be of", "POST", "/train/", json={MODEL: {"bundle_path": str(evil)}})
        self.refused("params must be of", "POST", f"/batch/infer/{MODEL}", json={"bundle_path": str(evil)})
        self.refused("params must be of", "POST", "/scoring/entropy", json={"bundle_path": str(evil)})
        answer = self.ask("POST", "/scoring/entropy", json={"client_id": "user"})  # runs in the background
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertNotIn(str(evil), json.dumps(answer.json()))
        while self.ask("GET", "/scoring/").json()["status"] in ("SUBMITTED", "RUNNING"):
            time.sleep(0.2)
        self.assertFalse(self.mark.exists())

    @parameterized.expand(
        [
            ("train", {"model": "other"}),
            ("train", {"gpus": "0"}),
            ("train", {"output_dir": "/"}),
            ("train", {"network_def#_target_": "os.system"}),
            ("train", {"method": "$__import__('os')"}),
            ("train", {"method": {"name": "lora", "rank": 10**9}}),
            ("train", {"method": "vpt_shallow"}),  # does not fit this network
            ("infer", {"image": "/etc/passwd"}),
            ("infer", {"image_path": "/etc/passwd"}),
            ("infer", {"result_write_to_file": False}),
            ("infer", {"skip_writer": "true"}),
            ("infer", {"logging": "DEBUG"}),
            ("infer", {"device": "$__import__('os')"}),
            ("infer", {"result_extension": "/../../stolen.nii.gz"}),
            ("infer", {"result_dtype": "object"}),
            ("infer", {"label_tag": "../../stolen"}),
            ("infer", {"adapter": "../v1"}),
            ("infer", {"label_info": [{"name": "anterior", "path": "/"}]}),
            ("infer", {"label_info": [["name"]]}),
            ("infer", {"label_info": [{"name": "x" * 1000}]}),
            ("activelearning", {"strategy": "other"}),
            ("activelearning", {"labels": []}),
            ("scoring", {"method": "dice"}),
            ("batch", {"images": ["/etc/passwd"]}),
            ("batch", {"gpus": "../0"}),
            ("train", ["max_epochs"]),
            ("train", 5),
            ("train", "text"),
        ]
    )
    def test_settings_are_those_of_the_how_to(self, kind, params):
        path = {"train": f"/train/{MODEL}", "infer": f"/infer/{MODEL}?image=first", "batch": f"/batch/infer/{MODEL}"}
        path |= {"activelearning": "/activelearning/entropy", "scoring": "/scoring/entropy"}
        given = {"data": {"params": json.dumps(params)}} if kind == "infer" else {"json": params}
        # the reason names the setting, or what must be a dictionary of them
        word = "valid dictionary" if not isinstance(params, dict) else next(iter(params)).split("#")[0]
        self.refused({"label_tag": "tag of a label", "label_info": "name"}.get(word, word), "POST", path[kind], **given)

    @parameterized.expand(
        [
            ("max_epochs", value)
            for value in (
                1e300,
                0,
                -1,
                1.5,
                1001,
                "1e300",
                "",
                "ten",
                True,
                [],
                {},
                float("nan"),
                float("inf"),
                10**400,
            )
        ]
        + [("val_split", value) for value in (-0.1, 1, 1e300, "nan", True)]
        + [("seed", value) for value in (-1, 2**32, 0.5, "0x10")]
    )
    def test_numbers_have_bounds(self, name, value):
        body = json.dumps({name: value})
        for query in ("", "?run_sync=true"):
            started = time.monotonic()
            self.refused(
                f"{name} must be a",
                *("POST", f"/train/{MODEL}{query}"),
                data=body,
                headers={"Content-Type": "application/json"},
            )
            self.assertLess(time.monotonic() - started, 20)

    def test_archives_are_not_unpacked(self):
        outside = self.folder / "outside"
        evil = archive(
            (f"../../{'../' * 20}{outside}", b"x"), (f"{outside}", b"x"), ("link", None), ("link/tmp/x", b"x")
        )
        for name in ("a.tar", "a.tar.gz", "a.zip"):
            files = {"files": (name, evil)}
            self.refused("uncompress must be false", "PUT", "/session/?uncompress=true", files=files)
            self.refused("must be a file of the type", "PUT", "/session/", files=files)
        self.assertFalse(outside.exists())
        several = [("files", (f"{number}.nii.gz", self.image.read_bytes())) for number in range(2)]
        self.refused("files must be one image", "PUT", "/session/", files=several)
        for expiry in (-1, 10**12):
            files = {"files": ("a.nii.gz", self.image.read_bytes())}
            self.refused("expiry must be", "PUT", f"/session/?expiry={expiry}", files=files)

    def test_a_session_is_no_path(self):
        kept = self.folder / "kept"
        kept.mkdir()
        (kept / "meta.info").write_text(json.dumps({"name": "x", "path": str(kept), "image": "/gone", "expiry": 1}))
        for name in (str(kept), "../../kept", "..", f"{uuid.uuid1()}/../../kept", "a" * 300, "\0"):
            path = f"/infer/{MODEL}?image=first&session_id={quote(name, safe='')}"
            self.refused("session_id must be a UUID", "POST", path)
            for method in ("GET", "DELETE") if name != ".." else ():  # that a client makes another path of
                self.assertIn(self.ask(method, f"/session/{quote(name, safe='')}").status_code, (404, 405, 422))
        self.assertTrue((kept / "meta.info").is_file())
        self.refused("is over", "POST", f"/infer/{MODEL}?image=first&session_id={uuid.uuid1()}", 404)

    def test_session_as_3d_slicer_uses_it(self):
        with open(self.image, "rb") as file:
            made = self.ask("PUT", "/session/", files={"files": (f"{PATIENT}.nii.gz", file)}, data={"client_id": "me"})
        self.assertEqual(made.status_code, 200, made.text)
        name = made.json()["session_id"]
        self.assertEqual(self.ask("GET", f"/session/{name}").status_code, 200)
        params = {"client_id": "me", "device": "cpu", "result_extension": ".nrrd", "result_dtype": "uint8"}
        path = f"/infer/{MODEL}?image=node&session_id={name}&output=image"
        answer = self.ask("POST", path, data={"params": json.dumps(params)})
        self.assertEqual((answer.status_code, answer.content[:4]), (200, b"NRRD"), answer.text[:300])
        self.assertEqual(self.ask("DELETE", f"/session/{name}").status_code, 200)
        self.assertNothingLeft()

    def test_other_web_pages_are_refused(self):
        own = self.server.url
        port = urlsplit(own).port
        for origin in (
            "https://evil.example",
            "http://[",
            "null",
            "http://127.0.0.1:1",
            f"http://localhost:{port}",
            f"{VIEWER}.evil",
        ):
            headers = {"Origin": origin}
            for method, path in (("GET", "/info/"), ("POST", f"/infer/{MODEL}?image=first"), ("DELETE", "/train/")):
                answer = self.ask(method, path, headers=headers)
                self.assertEqual(answer.status_code, 403, (origin, path))
                self.assertNotIn("access-control-allow-origin", answer.headers)
            answer = self.ask("OPTIONS", "/train/", headers={**headers, "Access-Control-Request-Method": "POST"})
            self.assertEqual(answer.status_code, 403)
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            self.assertEqual(self.ask("GET", "/info/", headers={"Host": host}).status_code, 403, host)
        for host in (f"localhost:{port}", "127.0.0.1", "[::1]:8000", "192.168.0.7:8000", "viewer.example:3000"):
            self.assertEqual(self.ask("GET", "/info/", headers={"Host": host}).status_code, 200, host)
        self.assertEqual(self.ask("GET", "/info/", headers={"Origin": own}).status_code, 200)
        headers = {"Origin": VIEWER, "Access-Control-Request-Method": "POST"}
        for answer in (self.ask("GET", "/info/", headers=headers), self.ask("OPTIONS", "/train/", headers=headers)):
            self.assertEqual((answer.status_code, answer.headers["access-control-allow-origin"]), (200, VIEWER))

    def test_uploads_have_limits(self):
        form, train = "multipart/form-data; boundary=x", f"/train/{MODEL}"
        for kind, path, size in (
            ("application/json", train, 1 << 20),
            (form, train, 1 << 20),  # brings no file, whatever it says
            (form, f"/infer/{MODEL}", MAX_BYTES),
        ):
            self.assertEqual(self.status_of_body(kind, size + 1, declared=True, path=path), 413, kind)
        self.assertEqual(self.status_of_body("application/json", (1 << 20) + 1, declared=False), 413)
        stated = nifti_1(b"", (1000, 1000, 1500))  # 1.5 billion values in no file
        for content, why in ((stated, "must have the size of the image"), (b"II*\0" + bytes(500), "cannot be read")):
            self.refused(why, "PUT", "/datastore/label?image=first", files={"label": ("a.nii", content)})
        bomb = gzip.compress(bytes(64 << 20))
        self.assertLess(len(bomb), 100_000)
        for method, path, field in (
            ("PUT", "/datastore/image", "file"),
            ("PUT", "/session/", "files"),
            ("PUT", "/datastore/label?image=first", "label"),
            ("POST", f"/infer/{MODEL}", "file"),
        ):
            self.refused("must take at most", method, path, files={field: ("a.nii.gz", bomb)})
            huge = nrrd("sizes: 4000 4000 4000", "encoding: raw")
            self.refused("must take at most", method, path, files={field: ("a.nrrd", huge)})

    def test_no_file_of_the_server_is_read(self):
        """An NRRD header can name another file as that of its values."""
        secret = self.folder / "secret.raw"
        secret.write_bytes(np.random.default_rng(0).integers(0, 9, 1000).astype(np.int16).tobytes())
        header = ("sizes: 10 10 10", "encoding: raw", "space: left-posterior-superior", "space origin: (0,0,0)")
        header += ("space directions: (1,0,0) (0,1,0) (0,0,1)",)
        for field in (f"data file: {secret}", f"DataFile: {secret}", f"data file: ../../{secret.name}"):
            files = {"file": ("a.nrrd", nrrd(*header, field))}
            self.refused("names another file", "PUT", "/datastore/image", files=files)
            self.refused("names another file", "POST", f"/infer/{MODEL}", files=files)
            self.refused("names another file", "PUT", "/datastore/label?image=first", files={"label": files["file"]})

    def test_labels_lie_on_their_image(self):
        path = save_nifti(self.folder / "elsewhere.nii.gz", np.ones((3, 4, 5), np.uint8))
        label = {"label": ("a.nii.gz", path.read_bytes())}
        self.refused("must have the size of the image", "PUT", "/datastore/label?image=first", files=label)
        self.refused("must be one of the studies", "PUT", "/datastore/label?image=none", 404, files=label)
        good = {"label": ("a.nii.gz", self.label.read_bytes())}
        for tag in ("../../stolen", "a/b", ".", "x" * 65):
            self.refused("tag", "PUT", f"/datastore/label?image=first&tag={quote(tag, safe='')}", files=good)
        for params, word in (
            ('{"label_info": 5}', "label_info"),
            ("{", "params"),
            ("[]", "params"),
            ('{"path": "/"}', "path"),
            ('{"label_info": [{"name": "\\ud800"}]}', "name"),
        ):
            self.refused(word, "PUT", "/datastore/label?image=first", files=good, data={"params": params})

    def test_an_image_is_not_replaced(self):
        files = {"file": ("first.nii.gz", self.image.read_bytes())}
        for path in ("/datastore/image", "/datastore/image?image=first"):
            self.refused("is there already", "PUT", path, files=files)
        for name in ("../stolen", "/tmp/stolen", ".hidden", "a\nb", "x" * 201, "a/b", "a\\b"):
            self.refused("image must be a name", "PUT", f"/datastore/image?image={quote(name, safe='')}", files=files)

    def test_logs_and_refusals_do_not_repeat_names_of_files(self):
        start = len(self.server.log)
        for ending, data in ((".py", b"x"), (".nii.gz", b"x"), (".nrrd", b"x"), (".nii", b"x")):
            for path, field in (("/datastore/image", "file"), ("/session/", "files")):
                answer = self.ask("PUT", path, files={field: (f"{PATIENT}{ending}", data)})
                self.assertEqual(answer.status_code, 422)
                self.assertNotIn("DOE", answer.text)
        answer = self.ask("POST", f"/infer/{MODEL}", files={"file": (f"{PATIENT}.nii.gz", self.image.read_bytes())})
        self.assertEqual(answer.status_code, 200)
        self.assertNotIn("DOE", self.server.log[start:])
        self.assertNothingLeft()

    def test_hash_in_a_name_trains_and_no_request_waits(self):
        """The folder of the studies has one too; a training in the server's own process leaves it answering."""
        name = "case #1 @a $b %c"
        files = {"file": ("a.nii.gz", self.image.read_bytes())}
        answer = self.ask("PUT", f"/datastore/image?image={quote(name)}", files=files)
        self.assertEqual((answer.status_code, answer.json()), (200, {"image": name}))
        label = {"label": ("a.nii.gz", self.label.read_bytes())}
        path = f"/datastore/label?image={quote(name)}"
        answer = self.ask("PUT", path, files=label, data={"params": json.dumps({"client_id": "me", **INFO})})
        self.assertEqual(answer.status_code, 200, answer.text)
        found: list[requests.Response] = []
        path, body = f"/train/{MODEL}?run_sync=true", {"max_epochs": 2, "val_split": "0", "device": ["cpu"]}
        training = threading.Thread(target=lambda: found.append(self.ask("POST", path, json=body)))
        training.start()
        waited = []
        while training.is_alive():
            started = time.monotonic()
            self.assertEqual(self.ask("GET", "/train/").status_code, 404)  # of those in the background
            self.assertEqual(self.ask("GET", "/datastore/").status_code, 200)
            waited.append(time.monotonic() - started)
            time.sleep(0.1)
        self.assertEqual(found[0].status_code, 200, found[0].text)
        self.assertEqual(found[0].json()["training_cases"], [name])
        self.assertGreater(len(waited), 5)
        self.assertLess(sorted(waited)[len(waited) // 2], 2)
        folder = self.studies / "adapters" / MODEL
        self.assertTrue((folder / "v1.safetensors").is_file())
        self.assertTrue((folder / "v1_report.json").is_file())
        self.assertFalse(list(self.folder.glob("*::*")))

    def test_batch_and_answers_of_each_kind(self):
        path = f"/infer/{GRADE}?image=first&output="
        self.refused("output must be json or all", "POST", f"{path}image")
        for output in ("json", "all"):
            self.assertEqual(self.ask("POST", f"{path}{output}").status_code, 200)
        self.refused("output must not be dicom_seg", "POST", f"/infer/{MODEL}?image=first&output=dicom_seg")
        answer = self.ask("POST", f"/batch/infer/{MODEL}?run_sync=true")
        self.assertEqual(answer.status_code, 200, answer.text)
        self.assertEqual(self.ask("GET", "/datastore/label?label=first&tag=original").status_code, 200)
        self.assertEqual(self.ask("POST", "/activelearning/first", json={"client_id": "me"}).status_code, 200)

    def test_malformed_requests_have_a_reason(self):
        """What is not stated is not there, and nothing is an error of the server."""
        asked = list(odd_requests(self.ask("GET", "/openapi.json").json()))
        self.assertGreater(len(asked), 1000)
        start, wrong = len(self.server.log), []
        for method, path, given in asked:
            answer = requests.request(method, self.server.url + path, timeout=60, allow_redirects=False, **given)
            told = answer.text or method.lower() == "head"
            if answer.status_code >= 500 or answer.status_code >= 400 and not told:
                wrong.append((method, path[:200], str(given)[:100], answer.status_code))
        self.assertEqual(wrong, [], self.server.log[start:][:8000])
        self.assertNotIn("Traceback", self.server.log[start:])
        for method in ("train", "scoring"):
            self.assertEqual(self.ask("GET", f"/{method}/?check_if_running=true").status_code, 404)
