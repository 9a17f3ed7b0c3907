# SPDX-License-Identifier: Apache-2.0
"""What hostile requests to the MONAI Label app are made of."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from utils_data import shared_data

MODEL = "hippocampus_mri_dvpt_unetr_segmentation"
GRADE = "hippocampus_mri_dvpt_vit_classification"
VIEWER = "https://viewer.example:3000"
PATIENT = "DOE^JANE"
MAX_BYTES = 32 << 20
INFO = {"label_info": [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]}
MARK = "import os, pathlib\npathlib.Path(os.environ['ATTACK_MARK']).write_text('run')\n"
ODD = [
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "\0",
    "a\r\nb",
    "x" * 5000,
    "-1",
    "1e300",
    "9" * 5000,
    "NaN",
    "first",
]
ODD += ["[]", "{}", "true", "é#$@%", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
BODIES = ["NaN", "5", "[]", '"x"', "{", "[" * 100_000, '{"max_epochs": NaN}', '{"a": ' * 990 + "1", '{"client_id": 5}']
BODIES += ['{"\\ud800": 1}', '{"client_id": "\\ud800"}', '{"seed": ' + "9" * 5000 + "}"]
GONE = ["/reload", "/infer/wsi/x", "/infer/wsi_v2/x", "/datastore/updatelabelinfo", "/logs/gpu", "/x"]
GONE += ["/proxy/dicom/wado/studies", "/proxy/dicom/studies", f"/model/{MODEL}/x"]
NAMES = {"model": MODEL, "strategy": "entropy", "method": "entropy", "image": "first", "tag": "final", "label": "first"}
NAMES |= {"session_id": str(uuid.uuid1()), "path": "x"}

Asked = tuple[str, str, dict[str, Any]]
"""Method, path and what else is given to ``requests.request``."""


def first_case() -> tuple[Path, Path]:
    root = shared_data("msd_hippocampus")
    pair = json.loads((root / "datalist.json").read_text())["validation"][0]
    return root / pair["image"], root / pair["label"]


def listing(folder: Path) -> dict[str, int]:
    """Every file with its size; what the server keeps about its own work does not count."""
    own = (".lock", "datastore_v2.json", "entropy.json", "dice.json")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def archive(*members: tuple[str, bytes | None]) -> bytes:
    """A tar of files, and of links to / where there are no bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/"
            else:
                member.size = len(data)
            tar.addfile(member, None if data is None else io.BytesIO(data))
    return stream.getvalue()


def nrrd(*fields: str, data: bytes = b"") -> bytes:
    return "\n".join(["NRRD0004", "type: short", "dimension: 3", *fields, "", ""]).encode() + data


def odd_requests(schema: dict) -> Iterator[Asked]:
    """
    Every route with odd values for each of its parameters, and odd bodies; none of them starts a task.

    Args:
        schema: OpenAPI of the server.
    """
    for value in (*ODD, "assets", "viewer", "a/b", "//etc/passwd"):
        yield "GET", f"/ohif/{quote(value, safe='')}", {}
    for method, path in itertools.product(("GET", "POST", "PUT"), GONE):
        yield method, path, {}
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            yield from _of_route(path, method, about)


def _of_route(path: str, method: str, about: dict) -> Iterator[Asked]:
    names = [parameter["name"] for parameter in about.get("parameters", []) if parameter["in"] == "query"]
    starts = method == "post" and path.startswith(("/train", "/scoring", "/batch"))
    full = path.format_map({key: quote(value) for key, value in NAMES.items()})
    query = "&".join(f"{name}={NAMES[name]}" for name in names if name in NAMES)
    for value in ODD[2 * starts :] if "{" in path else ():  # without a name it would be of all models
        yield method, path.format_map(dict.fromkeys(NAMES, quote(value, safe=""))), {}
    if not starts:
        yield method, full, {}
        for name, value in itertools.product(names, ODD):
            if (name, value) != ("image", "first"):
                yield method, f"{full}?{query}&{name}={quote(value, safe='')}", {}
    if method in ("get", "head"):
        return
    for text, kind in itertools.product(BODIES, ("application/json", "text/plain", "multipart/form-data")):
        yield method, f"{full}?{query}", {"data": text, "headers": {"Content-Type": kind}}
    if "multipart/form-data" in about.get("requestBody", {}).get("content", {}):
        fields = [{"file": ("a.nii.gz", b"")}, {"file": ("", b"x")}, {"label": ("..", b"x")}]
        fields += [{"files": ("../..", b"x")}, {"file": ("a" * 5000, b"x")}, {"label": ("a.nii.gz", b"x")}]
        for files in fields:
            yield method, f"{full}?{query}", {"files": files}
        for text in BODIES:
            yield method, f"{full}?{query}", {"data": {"params": text}}
