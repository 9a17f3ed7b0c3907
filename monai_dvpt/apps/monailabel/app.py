# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app: serves the bundles and trains their adapters."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.endpoints import infer as infer_endpoint
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from monai_dvpt import __version__
from monai_dvpt.utils import InputError, atomic_path

from .activelearning import MostUncertain
from .adapter_versions import AdapterVersions
from .background import end_with_server, stop_when_server_ends, waiting
from .bundles import find_bundles
from .datastore import PacsDatastore, check_uid
from .dicom_labels import SegConverter
from .gate import check_origins
from .infer import AdapterInferTask
from .labels import ModelLabels
from .request_settings import shown
from .routes import UUID, made_for_request, served, session_facts
from .scoring import DiceScoring, EntropyScoring
from .studies import StudiesDatastore
from .train import AdapterTrainTask

__all__ = ["DVPTApp"]

logger = logging.getLogger(__name__)

SERVER_MODULE = "monailabel.app"
"""Module that the server imports, and a process in the background does not."""
DEFAULT_FILTER = {"Modality": "CT"}
"""MONAI Label's default filter for the series of a PACS."""
UNFINISHED = 600
"""Seconds that making a session can take."""
UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\.\w+)*")
"""Names that the server gives to files that come with a request."""


class DVPTApp(MONAILabelApp):
    """
    Settings (``--conf NAME VALUE``):

    - ``bundles``: folder of the bundles, or one bundle; by default the app's folder ``model``, as in MONAI Label's own
      app, if it contains any, else the bundles of this repository.
    - ``models``: names of the bundles to serve, separated by commas; by default all that have their weights.
    - ``adapters``: folder for the versions of the adapters; by default ``adapters`` in the folder of the studies, or,
      for a PACS, of the app.
    - ``origins``: other web pages that may ask, separated by commas, beside MONAI_LABEL_CORS_ORIGINS.
    - ``BUNDLE#KEY``: value for a key of a bundle's ``configs/inference.yaml``, such as ``backbone_path``.

    Args:
        app_dir: folder of the app.
        studies: folder of the images, or DICOMweb address of a PACS.
        conf: the settings.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        conf = dict(conf or {})
        if SERVER_MODULE not in sys.modules:
            end_with_server()
        told = conf.get("origins", "").split(",")
        self.origins = check_origins([*told, *map(str, settings.MONAI_LABEL_CORS_ORIGINS)])
        names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        self.bundles = find_bundles(_bundles_folder(Path(app_dir), conf), names, conf)
        folder = Path(conf.get("adapters") or _adapters_folder(Path(app_dir), studies))
        self.versions = {n: AdapterVersions(folder / n, b.adapter_path) for n, b in self.bundles.items()}
        self.segmentations = [name for name, bundle in self.bundles.items() if bundle.is_segmentation]
        self._labels = [self.bundles[name].labels for name in self.segmentations]
        # MONAI Label's own function pairs names with the present label values by order
        infer_endpoint.nifti_to_dicom_seg = SegConverter(self._labels)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="monai_dvpt",
            description="Frozen transformers, adapted by dynamic visual prompt tuning",
            version=__version__,
        )

    def init_datastore(self) -> Datastore:
        if _is_address(self.studies):
            return self._pacs()
        return StudiesDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            writes=SERVER_MODULE in sys.modules and not settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {n: AdapterInferTask(b, self.versions[n], self._dicom_seg) for n, b in self.bundles.items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {name: AdapterTrainTask(self.bundles[name], self.versions[name]) for name in self.segmentations}

    def init_strategies(self) -> dict[str, Strategy]:
        versions = {name: self.versions[name] for name in self.segmentations}
        uncertain = {"entropy": MostUncertain(versions)} if versions else {}
        return {**uncertain, "first": First(), "random": Random()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        tasks = {name: self._infers[name] for name in self.segmentations}
        return {"dice": DiceScoring(tasks), "entropy": EntropyScoring(tasks)} if tasks else {}

    def on_init_complete(self) -> None:
        """
        Loads every network, so that the server does not start with wrong weights, and lets :func:`served` answer all
        requests from now on.

        Raises:
            InputError: if a file of weights is missing, damaged, or does not fit the others.
        """
        for name, task in self._infers.items():
            task.loaded.get(self.versions[name].active, "cpu")
        server = sys.modules[SERVER_MODULE].app
        server.middleware_stack = served(self, server, self.origins)
        self._ending = stop_when_server_ends()
        super().on_init_complete()

    def cleanup_sessions(self) -> None:
        """Removes sessions that are over, and remains of sessions that a killed server was making."""
        sessions, now = self.sessions(), time.time()
        for folder in Path(sessions.store_path).glob("*") if sessions is not None else ():
            if not UUID.fullmatch(folder.name):
                continue
            facts = session_facts(sessions, folder.name)
            if facts is None and not folder.exists():
                continue
            last, most = (facts.last_access_ts, facts.expiry) if facts else (folder.stat().st_mtime, UNFINISHED)
            if now - last > most:
                sessions.remove_session(folder.name)

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Scores by a method, or the entropy that chooses the next image; not if a scoring already waits."""
        if self._server_mode and waiting("scoring") > 1:
            return {}
        return super().async_scoring(method or "entropy", params) if method or self.segmentations else {}

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """
        Raises:
            HTTPException: status 404, if the image is not one of the studies.
            InputError: if the image or the label is refused.
        """
        store, image = datastore or self.datastore(), request.get("image")
        path = self._path_of(image, store)
        # MONAI Label takes an existing path as it is, and does not look for an image of that name
        result = super().infer({**request, "image": path}, store)
        made_for_request(result["file"])
        if str(request.get("save_label", False)).lower() == "true" and result["file"] and path != image:
            segments = self.bundles[request["model"]].labels.label_info
            info = {"model": request["model"], "params": result["params"], "label_info": segments}
            tag = request.get("label_tag", DefaultLabelTag.ORIGINAL)
            result["label"] = store.save_label(image, result["file"], tag, info)
        return result

    def check_image(self, image: Any) -> None:
        """
        Raises:
            HTTPException: status 404, if ``image`` is not the name of one of the studies.
            InputError: if it cannot be the UID of a series in a PACS.
        """
        store = self.datastore()
        if isinstance(store, PacsDatastore):
            check_uid(image)
        elif not isinstance(image, str) or image not in store.list_images():
            raise HTTPException(404, detail=f"image must be one of the studies, got {shown(image)}.")

    def bundle_path(self, model: str | None) -> str:
        """The path that MONAI Label adds to Python's for a process in the background; never from a request."""
        return self.app_dir

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """A copy of the adapter in use, to download."""
        if model not in self._infers or not validate:
            return None
        versions = self.versions[model]
        file = versions.file_of(versions.active)
        copy = versions.folder / "download" / file.name
        with atomic_path(copy) as path:
            shutil.copyfile(file, path)
        return str(copy)

    def _local_request(self, url: str, params: Any, action: str) -> Any:
        """A request of a process in the background; the server may listen elsewhere, or want a token."""
        try:
            return super()._local_request(url, params, action)
        except requests.RequestException as error:
            logger.warning(f"{action} was not started: {type(error).__name__}")
            return None

    def _path_of(self, image: Any, datastore: Datastore) -> str:
        """Path of an image that came with the request, or of one of the studies by its name; refuses any other."""
        if isinstance(image, str) and _is_upload(Path(image), self.sessions()):
            return image
        self.check_image(image)
        return datastore.get_image_uri(image)

    def _dicom_seg(self, image: str, label: str, labels: ModelLabels) -> str:
        """Writes a model's label map as DICOM SEG of the image's series; path of a new file."""
        name = os.path.basename(image).removesuffix(".nii.gz")
        folder = Path(image) if os.path.isdir(image) else self.datastore().series_folder(name)
        if folder is None:
            raise InputError(f"{name}: must be a DICOM series, which a DICOM SEG refers to.")
        return SegConverter([labels])(folder, label, None)

    def _pacs(self) -> PacsDatastore:
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=self.studies.rstrip("/"),
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        wanted = dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
        modalities = {bundle.modality for bundle in self.bundles.values()}
        if wanted == DEFAULT_FILTER and len(modalities) == 1:
            wanted = {"Modality": modalities.pop()}
        return PacsDatastore(
            client,
            wanted,
            settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None,
            settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            models=self._labels,
        )


def _bundles_folder(app_dir: Path, conf: Mapping[str, str]) -> Path:
    folders = [app_dir / "model", Path(__file__).parents[3] / "bundles"]
    found = next((folder for folder in folders if any(folder.glob("*/configs/inference.yaml"))), folders[0])
    return Path(conf.get("bundles") or found)


def _is_address(studies: str) -> bool:
    return studies.startswith(("http://", "https://"))


def _adapters_folder(app_dir: Path, studies: str) -> Path:
    if _is_address(studies):
        return app_dir / "adapters" / hashlib.sha256(studies.encode()).hexdigest()[:12]
    return Path(studies) / "adapters"


def _is_upload(path: Path, sessions: Any) -> bool:
    """Whether the server wrote a file for a request or a session."""
    if path.parent == Path(tempfile.gettempdir()) and UPLOAD.fullmatch(path.name):
        return True
    return bool(sessions) and path.resolve().is_relative_to(Path(sessions.store_path).resolve())
