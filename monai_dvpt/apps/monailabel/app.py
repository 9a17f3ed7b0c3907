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

SERVER = "monailabel.app"
"""Module that only the server imports, and no process in the background."""
ORIGINAL = DefaultLabelTag.ORIGINAL
DEFAULT_FILTER = {"Modality": "CT"}
"""Which series of a PACS MONAI Label offers if it is not told."""
UNFINISHED = 600
"""Seconds after which a session without its facts is none that is being made."""
UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\.\w+)*")
"""Name that the server gives to a file that comes with a request."""


class DVPTApp(MONAILabelApp):
    """
    Settings (``--conf NAME VALUE``):

    - ``bundles``: folder of the bundles; by default ``model`` in the folder of the app if it holds any, as in MONAI
      Label's own app, else the bundles of this repository.
    - ``models``: names of the bundles to serve, separated by commas; by default all that have their weights.
    - ``adapters``: folder for the versions of the adapters; by default ``adapters`` in the folder of the studies, for a
      PACS in that of the app.
    - ``origins``: web pages that may ask, beside those of the server and MONAI_LABEL_CORS_ORIGINS, separated by commas.
    - ``BUNDLE#KEY``: value for a key of a bundle's ``configs/inference.yaml``, such as ``backbone_path``.

    Args:
        app_dir: folder of the app.
        studies: folder of the images, or address of a PACS with DICOMweb.
        conf: the settings.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        conf = dict(conf or {})
        if SERVER not in sys.modules:
            end_with_server()
        self.origins = check_origins(
            [*conf.get("origins", "").split(","), *map(str, settings.MONAI_LABEL_CORS_ORIGINS)]
        )
        names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        self.bundles = find_bundles(_bundles_folder(Path(app_dir), conf), names, conf)
        folder = Path(conf.get("adapters") or _adapters_folder(Path(app_dir), studies))
        self.versions = {n: AdapterVersions(folder / n, b.adapter_path) for n, b in self.bundles.items()}
        self.segmentations = [name for name, bundle in self.bundles.items() if bundle.is_segmentation]
        # MONAI Label's own function pairs label values with names by the order of those that are present
        infer_endpoint.nifti_to_dicom_seg = SegConverter(self._models())
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="monai_dvpt",
            description="Frozen transformers, adapted by dynamic visual prompt tuning",
            version=__version__,
        )

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return self._pacs()
        return StudiesDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            writes=SERVER in sys.modules and not settings.MONAI_LABEL_DATASTORE_READ_ONLY,
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
        Loads every network, so that a wrong or missing file of weights keeps the server from starting. From now on
        :func:`served` answers all requests.

        Raises:
            InputError: if one is missing or damaged, or does not belong to the others.
        """
        for name, task in self._infers.items():
            task.loaded.get(self.versions[name].active, "cpu")
        server = sys.modules[SERVER].app
        server.middleware_stack = served(self, server, self.origins)
        self._ending = stop_when_server_ends()
        super().on_init_complete()

    def cleanup_sessions(self) -> None:
        """Removes sessions that are over, and what is left of those whose server was killed before they were there."""
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
        """
        As MONAI Label does; what it scores by itself are the images without a label, for the next to be chosen, unless
        that waits to be done already.
        """
        if self._server_mode and waiting("scoring") > 1:
            return {}
        return super().async_scoring(method or "entropy", params) if method or self.segmentations else {}

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """
        Raises:
            HTTPException: status 404, if the image is none of the studies.
            InputError: if the image or the label is refused.
        """
        store, image = datastore or self.datastore(), request.get("image")
        path = self._path_of(image, store)
        # where a text is an existing path MONAI Label takes it as it is, and does not look for the image of that name
        result = super().infer({**request, "image": path}, store)
        made_for_request(result["file"])
        if str(request.get("save_label", False)).lower() == "true" and result["file"] and path != image:
            names = self.bundles[request["model"]].labels.names[1:]
            told = [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]
            info = {"model": request["model"], "params": result["params"], "label_info": told}
            result["label"] = store.save_label(image, result["file"], request.get("label_tag", ORIGINAL), info)
        return result

    def check_image(self, image: Any) -> None:
        """
        Raises:
            HTTPException: status 404, if it is the name of no image of the studies.
            InputError: if it cannot be that of a series of a PACS.
        """
        store = self.datastore()
        if isinstance(store, PacsDatastore):
            check_uid(image)
        elif not isinstance(image, str) or image not in store.list_images():
            raise HTTPException(404, detail=f"image must be one of the studies, got {shown(image)}.")

    def bundle_path(self, model: str | None) -> str:
        """What MONAI Label adds to the paths of Python for a process in the background; never a value of a request."""
        return self.app_dir

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """A copy of the adapter in use, to be downloaded."""
        if model not in self._infers or not validate:
            return None
        file = Path(self._infers[model].get_path())
        copy = self.versions[model].folder / "download" / file.name
        with atomic_path(copy) as path:
            shutil.copyfile(file, path)
        return str(copy)

    def _local_request(self, url: str, params: Any, action: str) -> Any:
        """What a process in the background asks the server for; the server may listen elsewhere, or want a token."""
        try:
            return super()._local_request(url, params, action)
        except requests.RequestException as error:
            logger.warning(f"{action} was not started: {type(error).__name__}")
            return None

    def _path_of(self, image: Any, datastore: Datastore) -> str:
        """
        Path of an image of the studies, by its name, or of one that came with the request.

        Raises:
            HTTPException: status 404, if it is neither.
        """
        if isinstance(image, str) and _is_upload(Path(image), self.sessions()):
            return image
        self.check_image(image)
        return datastore.get_image_uri(image)

    def _models(self) -> list[ModelLabels]:
        return [self.bundles[name].labels for name in self.segmentations]

    def _dicom_seg(self, image: str, label: str, labels: ModelLabels) -> str:
        """A label map of a model, written as DICOM SEG for the series that an image is of; path of a new file."""
        name = os.path.basename(image).removesuffix(".nii.gz")
        folder = Path(image) if os.path.isdir(image) else self.datastore().series_folder(name)
        if folder is None:
            raise InputError(f"{name}: must be a DICOM series, to which a DICOM SEG refers.")
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
            models=self._models(),
        )


def _bundles_folder(app_dir: Path, conf: Mapping[str, str]) -> Path:
    folders = [app_dir / "model", Path(__file__).parents[3] / "bundles"]
    found = next((folder for folder in folders if any(folder.glob("*/configs/inference.yaml"))), folders[0])
    return Path(conf.get("bundles") or found)


def _adapters_folder(app_dir: Path, studies: str) -> Path:
    if studies.startswith(("http://", "https://")):
        return app_dir / "adapters" / hashlib.sha256(studies.encode()).hexdigest()[:12]
    return Path(studies) / "adapters"


def _is_upload(path: Path, sessions: Any) -> bool:
    """Whether a file is one that the server itself wrote for a request or a session."""
    if path.parent == Path(tempfile.gettempdir()) and UPLOAD.fullmatch(path.name):
        return True
    return bool(sessions) and path.resolve().is_relative_to(Path(sessions.store_path).resolve())
