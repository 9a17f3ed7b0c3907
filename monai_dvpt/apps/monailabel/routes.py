# SPDX-License-Identifier: Apache-2.0
"""
The requests that the server answers: only those of MONAI Label that 3D Slicer, OHIF and the how-to need, each after a
check of its content.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.endpoints.user.auth import get_current_user
from monailabel.interfaces.exception import MONAILabelException
from monailabel.utils.others.generic import remove_file
from starlette.routing import Mount

from monai_dvpt.utils import InputError, reason

from . import request_settings as rules
from .background import WAITING, waiting
from .datastore import PacsDatastore
from .gate import Gate
from .request_settings import checked, from_json, shown
from .studies import check_name, check_tag
from .uploads import PICTURES, VOLUMES, check_image, check_type

if TYPE_CHECKING:
    from .app import DVPTApp

__all__ = ["UUID", "made_for_request", "served", "session_facts"]

logger = logging.getLogger(__name__)
for name in ("endpoints", "datastore", "utils.sessions"):  # they log requests and names of files unchecked
    logging.getLogger(f"monailabel.{name}").setLevel(logging.WARNING)

AT_ONCE = 24
"""The most long requests at once; the rest of the 40 threads is for short ones."""
UPLOADS_AT_ONCE = 4
"""The most requests at once that bring a file to keep: each is read as a whole."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of sessions."""
CHECKSUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]{32,128}")
DICOMWEB = re.compile(r"(?!.*(^|/)\.{1,2}(/|$))[\w.,-]+(/[\w.,-]+){0,12}/?", re.ASCII)
MAX_SESSION = 86_400
MAX_LINES = 10_000
OHIF = Path(ohif.__file__).parent / "static" / "ohif"

Values = dict[str, Any]
Check = Callable[["DVPTApp", Values], None]
"""Checks the parameters of a request, and replaces them with what MONAI Label gets."""

_made: ContextVar[list[str] | None] = ContextVar("made", default=None)


def made_for_request(path: str | None) -> None:
    """Notes a file made for the current request, to remove if the request fails."""
    files = _made.get()
    if path and files is not None:
        files.append(path)


def served(app: DVPTApp, server: FastAPI, origins: list[str]) -> FastAPI:
    """
    The API that replaces MONAI Label's ``server``, and keeps its pages.

    Args:
        app: the app.
        server: MONAI Label's own API.
        origins: origins of other web pages that may ask.
    """
    shared = {"allow_credentials": True, "allow_methods": ["*"], "allow_headers": ["*"]}
    layers = [Middleware(Gate, origins=origins, infer=f"{settings.MONAI_LABEL_API_STR}/infer/")]
    if origins:
        layers.append(Middleware(CORSMiddleware, allow_origins=origins, **shared))
    api = FastAPI(title=server.title, docs_url=None, redoc_url="/docs", middleware=layers)
    for kind in (InputError, RequestValidationError, MONAILabelException, requests.RequestException):
        api.add_exception_handler(kind, _refused)
    api.router.routes.extend(route for route in server.router.routes if isinstance(route, Mount))
    for route in server.router.routes:
        if getattr(route, "path", None) in ("/", "/favicon.ico"):
            api.add_api_route(route.path, route.endpoint, include_in_schema=False)
    api.dependency_overrides[get_current_user] = _in_thread(get_current_user)  # it may ask a token server
    turns: dict[Any, Any] = dict.fromkeys(LONG, threading.BoundedSemaphore(AT_ONCE))
    turns |= dict.fromkeys(UPLOADS, threading.BoundedSemaphore(UPLOADS_AT_ONCE))
    for methods, path, endpoint, check in _routes(app):
        answer = _checked(app, endpoint, check, turns.get(check))
        api.add_api_route(f"{settings.MONAI_LABEL_API_STR}{path}", answer, methods=methods.split())
    return api


def _routes(app: DVPTApp) -> list[tuple[str, str, Any, Check | None]]:
    """Methods, path, MONAI Label's endpoint, and its check."""
    found: list[tuple[str, str, Any, Check | None]] = [
        ("GET", "/info/", info.api_app_info, _listed),
        ("GET", "/model/info/{model}", model.api_model_info, None),
        ("GET", "/model/{model}", model.api_download_model, None),
        ("POST", "/infer/{model}", infer.api_run_inference, _infer),
        ("GET", "/batch/infer", batch_infer.api_status, None),
        ("POST", "/batch/infer/{model}", batch_infer.api_run, _batch),
        ("DELETE", "/batch/infer", batch_infer.api_stop, None),
        ("GET", "/train/", train.api_status, None),
        ("POST", "/train/", train.api_run, _train_all),
        ("POST", "/train/{model}", train.api_run_model, _train),
        ("DELETE", "/train/", train.api_stop, None),
        ("POST", "/activelearning/{strategy}", activelearning.api_sample, _next),
        ("GET", "/scoring/", scoring.api_status, None),
        ("POST", "/scoring/{method}", scoring.api_run_method, _score),
        ("DELETE", "/scoring/", scoring.api_stop, None),
        ("GET", "/datastore/", datastore.api_datastore, _listed),
        ("PUT", "/datastore/", datastore.api_add_image, _add_image),
        ("PUT", "/datastore/image", datastore.api_add_image, _add_image),
        ("HEAD", "/datastore/image", datastore.api_check_image, _image),
        ("GET", "/datastore/image", datastore.api_download_image, _image),
        ("GET", "/datastore/image/info", datastore.api_get_image_info, _image),
        ("PUT", "/datastore/label", datastore.api_save_label, _save_label),
        ("HEAD", "/datastore/label", datastore.api_check_label, _label),
        ("GET", "/datastore/label", datastore.api_download_label, _label),
        ("GET", "/datastore/label/info", datastore.api_get_label_info, _label),
        ("GET", "/logs/", logs.api_get_logs, _logs),
        ("GET", "/ohif/{path:path}", ohif.api_get_ohif, _ohif),
    ]
    if app.sessions() is not None:
        found += [
            ("PUT", "/session/", session.api_create_session, _add_session),
            ("GET", "/session/{session_id}", session.api_get_session, _session),
            ("DELETE", "/session/{session_id}", session.api_remove_session, _session),
        ]
    if _has_pacs(app):
        found += [
            ("GET", "/proxy/dicom/wado/{path:path}", proxy.proxy_wado, _dicomweb),
            ("GET", "/proxy/dicom/qido/{path:path}", proxy.proxy_qido, _dicomweb),
        ]
    if settings.MONAI_LABEL_AUTH_ENABLE:
        found += [
            ("GET", "/auth/", login.auth_enabled, None),
            ("POST", "/auth/token", login.access_token, None),
            ("GET", "/auth/token/valid", login.valid_token, None),
        ]
    return found


def _in_thread(endpoint: Any) -> Callable[..., Any]:
    """A function of a coroutine of MONAI Label, which would block the server; a function runs in a thread."""

    def answer(**values: Any) -> Any:
        return asyncio.run(endpoint(**values))

    answer.__name__ = endpoint.__name__
    answer.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return answer


def _checked(app: DVPTApp, endpoint: Any, check: Check | None, turns: threading.Semaphore | None) -> Callable[..., Any]:
    """An endpoint in a thread, after its check; removes its files if it fails."""
    run = _in_thread(endpoint)

    def answer(**values: Any) -> Any:
        with _turn(turns) if turns else nullcontext():
            files: list[str] = []
            _made.set(files)
            try:
                if check is not None:
                    check(app, values)
                found = run(**values)
            except BaseException:
                for task in getattr(values.get("background_tasks"), "tasks", []):
                    task.func(*task.args, **task.kwargs)  # all of them remove files
                for file in files:
                    remove_file(file)
                raise
            if isinstance(found, FileResponse) and values.get("output") == infer.ResultType.dicom_seg:
                values["background_tasks"].add_task(remove_file, str(found.path))
            return found

    answer.__name__, answer.__signature__ = run.__name__, inspect.signature(run)  # type: ignore[attr-defined]
    return answer


@contextmanager
def _turn(turns: threading.Semaphore) -> Iterator[None]:
    """One of the turns; refuses the request if none is left."""
    if not turns.acquire(blocking=False):
        raise HTTPException(429, detail="the server works on as many such requests as it may; ask again later.")
    try:
        yield
    finally:
        turns.release()


def _refused(request: Request, error: Exception) -> JSONResponse:
    """Answers an error with a status and a reason, which repeats at most a short value of the request."""
    status = 422
    if isinstance(error, RequestValidationError):
        told = ("{}: {}".format(" ".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
        detail = "; ".join(told)[:1000]
    elif isinstance(error, MONAILabelException):
        detail = error.msg
    elif isinstance(error, requests.RequestException):
        logger.error(f"the PACS does not answer: {type(error).__name__}")
        status, detail = 502, "the PACS, or the server of tokens, does not answer as it must."
    else:
        detail = reason(error)
        logger.error(detail)
    return JSONResponse({"detail": detail}, status)


def _known(name: str, values: Values, choices: Mapping[str, Any]) -> None:
    if values[name] not in choices:
        raise HTTPException(404, detail=f"{name} must be one of {list(choices)}, got {shown(values[name])}.")


def _check_params(values: Values, rules_of: Mapping[str, rules.Rule]) -> dict[str, Any]:
    """Checks the settings in "params", a JSON object or its text, and returns them."""
    given = values["params"] or {}
    found = checked("params", from_json("params", given) if isinstance(given, str) else given, rules_of)
    values["params"] = json.dumps(found) if isinstance(given, str) else found
    return found


def _has_pacs(app: DVPTApp) -> bool:
    return isinstance(app.datastore(), PacsDatastore)


def _room(method: str) -> None:
    if waiting(method) >= WAITING:
        raise HTTPException(429, detail=f"{WAITING} tasks of this kind run or wait; ask again later.")


def _infer(app: DVPTApp, values: Values) -> None:
    _known("model", values, app._infers)
    asked = _check_params(values, rules.infer_settings(app.versions[values["model"]]))
    kinds, is_segmentation = infer.ResultType, values["model"] in app.segmentations
    if values["output"] == kinds.dicom_seg and not (is_segmentation and asked.get("label_info") and _has_pacs(app)):
        raise InputError("output must not be dicom_seg but of a segmentation beside a PACS, with label_info in params.")
    if values["output"] == kinds.image and not is_segmentation:
        raise InputError("output must be json or all for a model that grades.")
    if values["label"]:
        raise InputError("label must not be sent: no model takes one.")
    if values["file"]:
        check_type(values["file"], "image", [*VOLUMES, *PICTURES])
        values["session_id"] = ""
    elif values["session_id"]:
        _session(app, values)
    else:
        app.check_image(values["image"])


def session_facts(sessions: Any, session_id: str) -> Any:
    """MONAI Label's facts of a session; None if there is none, or a killed server left it half written."""
    try:
        return sessions.get_session(session_id, update_ts=False, fetch_cache=False)
    except (OSError, ValueError, KeyError):
        return None


def _listed(app: DVPTApp, values: Values) -> None:
    """Nothing to check; but the server asks the PACS, which may take long."""


def _batch(app: DVPTApp, values: Values) -> None:
    _known("model", values, app._infers)
    _room("batch_infer")
    given = _check_params(values, rules.batch_settings(app.versions[values["model"]]))
    values["params"] = {"multi_gpu": False, **given}


def _train(app: DVPTApp, values: Values) -> None:
    _known("model", values, app._trainers)
    _room("train")
    _check_params(values, _train_settings(app, values["model"]))


def _train_all(app: DVPTApp, values: Values) -> None:
    _room("train")

    def of_model(name: str, given: Any) -> dict[str, Any]:
        return checked(name, given, _train_settings(app, name))

    _check_params(values, {**rules.CLIENT, **dict.fromkeys(app._trainers, of_model)})


def _train_settings(app: DVPTApp, model: str) -> Mapping[str, rules.Rule]:
    return rules.train_settings(app.versions[model], app.bundles[model].methods)


def _next(app: DVPTApp, values: Values) -> None:
    _known("strategy", values, app._strategies)
    _check_params(values, rules.next_settings(app.segmentations))


def _score(app: DVPTApp, values: Values) -> None:
    _known("method", values, app._scoring_methods)
    _check_params(values, rules.scoring_settings(app.segmentations))


def _image(app: DVPTApp, values: Values) -> None:
    app.check_image(values["image"])
    if (checksum := values.get("check_sum")) and not CHECKSUM.fullmatch(checksum):
        raise InputError(f"check_sum must be as in SHA256:0123..., got {shown(checksum)}.")


def _label(app: DVPTApp, values: Values) -> None:
    rules.text("label", values.get("label", values.get("image")))
    check_tag(values["tag"])


def _add_image(app: DVPTApp, values: Values) -> None:
    _check_params(values, rules.CLIENT)
    file = values["file"]
    given = values["image"] or re.split(r"[/\\]", file.filename or "")[-1]
    check_image(file, {task.dimension for task in app._infers.values()})
    ending = next((e for e in (*VOLUMES, *PICTURES) if not values["image"] and given.lower().endswith(e)), "")
    values["image"] = check_name("image", given[: len(given) - len(ending)])


def _save_label(app: DVPTApp, values: Values) -> None:
    values["tag"] = check_tag(values["tag"] or "final")
    app.check_image(values["image"])
    _check_params(values, rules.LABEL)
    # beside a PACS also the bytes of the voxels, from OHIF; the datastore checks that the label lies on its image
    check_type(values["label"], "label", [*VOLUMES, *([".bin"] if _has_pacs(app) else [])])


def _add_session(app: DVPTApp, values: Values) -> None:
    if values["uncompress"]:
        raise InputError("uncompress must be false: a session is of one image, which is not unpacked.")
    values["expiry"] = rules.number(0, MAX_SESSION)("expiry", values["expiry"])
    if len(values["files"]) != 1:
        raise InputError(f"files must be one image, got {len(values['files'])}.")
    check_image(values["files"][0], {task.dimension for task in app._infers.values()})


def _session(app: DVPTApp, values: Values) -> None:
    if app.sessions() is None:
        raise HTTPException(404, detail="sessions are switched off.")
    if not UUID.fullmatch(values["session_id"]):
        raise InputError(f"session_id must be a UUID, got {shown(values['session_id'])}.")
    if session_facts(app.sessions(), values["session_id"]) is None:
        raise HTTPException(404, detail="the session of session_id is over, or never was.")


def _logs(app: DVPTApp, values: Values) -> None:
    for name, most in (("lines", MAX_LINES), ("refresh", 3600)):
        values[name] = rules.number(0, most)(name, values[name] or 0)


def _ohif(app: DVPTApp, values: Values) -> None:
    path = values["path"]
    if not re.fullmatch(r"[\w.@-]{1,200}", path, re.ASCII) or not (OHIF / path).is_file():
        values["path"] = ""  # a page of the viewer


def _dicomweb(app: DVPTApp, values: Values) -> None:
    if not DICOMWEB.fullmatch(values["path"]):
        raise InputError(f"path must be one of DICOMweb, got {shown(values['path'])}.")


LONG = (_infer, _batch, _train, _train_all, _next, _score, _listed, _image, _label, _dicomweb)
"""Checks of requests that may take long."""
UPLOADS = (_add_image, _save_label, _add_session)
"""Checks of requests that bring a file to keep."""
