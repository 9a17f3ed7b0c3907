# SPDX-License-Identifier: Apache-2.0
"""The app in a real MONAI Label server, asked by MONAI Label's own client."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import unittest
from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from safetensors.torch import load_file, save_file
from utils_bundles import REPOSITORY, workflow
from utils_data import dice, entered, shared_data, temporary_folder
from utils_server import require_monai_label, sample_app, serve

from monai_dvpt.networks.adapter import adapter_metadata, save_adapter
from monai_dvpt.networks.pretrained import MRI_VIT_TINY, load_pretrained

# MONAI Label's client leaves its connections to be closed by the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SEGMENTATION = "hippocampus_mri_dvpt_unetr_segmentation"
RADIOGRAPHS = "xray_dvpt_vit_classification"
GRADE = "hippocampus_mri_dvpt_vit_classification"
INFO = [{"name": "anterior", "idx": 1}, {"name": "posterior", "idx": 2}]


def validation_cases() -> list[tuple[str, Path, Path]]:
    """Name, image and label of real cases that the shipped adapter was not trained on."""
    root = shared_data("msd_hippocampus")
    pairs = json.loads((root / "datalist.json").read_text())["validation"]
    return [(Path(p["image"]).name.removesuffix(".nii.gz"), root / p["image"], root / p["label"]) for p in pairs]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def placed_five_ways(image: Path, folder: Path) -> list[Path]:
    """The same real image in five axis codes, of which one is oblique and one has voxels of different sides."""
    source = nib.load(image)
    folder.mkdir(parents=True, exist_ok=True)
    angle = np.deg2rad(20)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    paths = []
    for codes in ("RAS", "LPS", "PIR", "SLA", "ARI"):
        step = ornt_transform(io_orientation(source.affine), axcodes2ornt(codes))
        moved = source.as_reoriented(step)
        data, affine = np.asarray(moved.dataobj), moved.affine
        if codes == "PIR":
            affine = turned @ affine
        if codes == "SLA":
            data, affine = data[:, :, ::2], affine @ np.diag([1, 1, 2, 1])
        paths.append(folder / f"{codes}.nii.gz")
        nib.save(nib.Nifti1Image(data, affine), paths[-1])
    return paths


class Client:
    """MONAI Label's client of a server, with a folder of its own: server and client would name files alike."""

    def __init__(self, test, server) -> None:
        from monailabel.client import MONAILabelClient

        self.server = server
        self.client = MONAILabelClient(server.url, tmpdir=str(temporary_folder(test)))

    def label(self, model: str, image: str, **params) -> tuple[np.ndarray, np.ndarray, dict]:
        """Voxels as they are stored, affine and told facts of an answer."""
        path, told = self.client.infer(model, image, params)
        found = nib.load(path)
        return np.asarray(found.dataobj), found.affine, told

    def train(self, model: str, **params) -> dict:
        """Trains in the server's own process."""
        body = json.dumps({"device": "cpu", **params})
        return json.loads(self.post(f"/train/{model}?run_sync=true", body))

    def train_in_background(self, model: str, **params) -> tuple[dict, list[str]]:
        """The end of a job, and what was told of its progress on the way."""
        self.client.train_start(model, {"device": "cpu", **params})
        told: list[str] = []
        while True:
            status = self.client.train_status()
            told += status.get("details", [])
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return status, told
            time.sleep(0.5)

    def post(self, path: str, body: str = "{}") -> bytes:
        import requests

        answer = requests.post(self.server.url + path, data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.content


class TestInference(unittest.TestCase):
    """One server for all tests; none of them changes it."""

    @classmethod
    def setUpClass(cls):
        require_monai_label()
        cls.cases = validation_cases()[:2]
        cls.folder = temporary_folder(cls)
        studies = cls.folder / "studies"
        cls.placed = placed_five_ways(cls.cases[0][1], studies)
        for _, image, _ in cls.cases:
            shutil.copy(image, studies)
        shutil.copytree(shared_data("dicom/hippocampus_mr"), studies / "series")
        shutil.copytree(shared_data("dicom/awkward/failing"), studies / "failing")
        cls.secret = cls.folder / "secret.nii.gz"
        shutil.copy(cls.cases[0][1], cls.secret)
        # by name, since a clone may hold the weights of further bundles
        cls.server = entered(cls, serve(studies, cls.folder / "server", {"models": f"{SEGMENTATION},{GRADE}"}))
        cls.client = Client(cls, cls.server)

    def test_info_lists_models_labels_and_types(self):
        info = self.server.info()
        kinds = {name: (model["type"], model["labels"]) for name, model in info["models"].items()}
        self.assertEqual(kinds[SEGMENTATION], ("segmentation", {"anterior": 1, "posterior": 2}))
        self.assertEqual(kinds[GRADE][0], "classification")
        self.assertEqual(set(info["trainers"]), {SEGMENTATION})
        self.assertLessEqual({"entropy", "first", "random"}, set(info["strategies"]))
        self.assertEqual(set(info["scoring"]), {"dice", "entropy"})

    def test_nothing_is_connected_to_but_this_machine(self):
        lines = self.server.sockets.read_text().splitlines()
        self.assertIn("watched", lines)
        tried = [line for line in lines if line != "watched"]
        self.assertEqual([line for line in tried if "127.0.0.1" not in line and "AF_UNIX" not in line], [])

    def test_unknown_model_is_refused(self):
        import requests

        for path in ("/activelearning/entropy", "/scoring/dice?run_sync=true"):
            url, body = self.server.url + path, {"model": "nothing"}
            for _ in range(60):  # while images are scored in the background
                answer = requests.post(url, json=body)
                if answer.status_code != 429:
                    break
                time.sleep(1)
            self.assertEqual(answer.status_code, 422, (path, answer.text))
            self.assertIn("model must be one of", answer.text)

    def test_answers_are_those_of_the_bundle_in_five_axis_codes(self):
        for path in self.placed:
            with self.subTest(path.name):
                label, affine, _ = self.client.label(SEGMENTATION, path.name.removesuffix(".nii.gz"))
                out = self.folder / "standalone" / path.stem
                made = workflow(
                    REPOSITORY / "bundles" / SEGMENTATION,
                    "inference",
                    "inference",
                    dataset_dir=str(path),
                    output_dir=str(out),
                )
                made.run()
                made.finalize()
                alone = nib.load(next(out.glob("*_seg.nii.gz")))
                np.testing.assert_allclose(affine, nib.load(path).affine, atol=1e-4)
                self.assertEqual(label.dtype, np.uint8)
                for value in (1, 2):
                    self.assertGreaterEqual(dice(label, np.asarray(alone.dataobj), value), 0.99)
                    self.assertGreater(int((label == value).sum()), 50)

    def test_grade(self):
        _, body = self.client.client.infer(GRADE, self.cases[0][0], {})
        told = json.loads(body)
        self.assertEqual([item["idx"] for item in told["prediction"]], [0, 1, 2, 3])
        self.assertAlmostEqual(sum(item["score"] for item in told["prediction"]), 1, places=4)
        chances = told["grades"]["volume"]["probabilities"]
        self.assertIn(told["grades"]["volume"]["grade"], chances)

    def test_dicom_series_to_segmentation_object(self):
        import highdicom

        path, told = self.client.client.infer(SEGMENTATION, "series", {"result_extension": ".dcm"})
        seg = highdicom.seg.segread(path)
        names = {number: seg.get_segment_description(number).segment_label for number in seg.segment_numbers}
        self.assertEqual(names, {1: "anterior", 2: "posterior"})
        label, _, _ = self.client.label(SEGMENTATION, "series")
        for value in (1, 2):  # frames of a segment are those slices that have it
            frames = [
                f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in seg.PerFrameFunctionalGroupsSequence
            ]
            self.assertEqual(frames.count(value), int((label == value).any(axis=(0, 1)).sum()))
        self.assertEqual(set(told["volumes_ml"]), {"anterior", "posterior"})

    def test_series_that_cannot_be_placed_is_refused_with_the_reason(self):
        status, body = self.server.get(f"/infer/{SEGMENTATION}?image=failing", "POST")
        self.assertEqual(status, 422, body)
        self.assertIn(b"failing", body)

    def test_no_path_leads_out_of_the_studies(self):
        names = [str(self.secret), "../secret", "../secret.nii.gz", "/etc/hostname", "labels/../../secret.nii.gz"]
        for name in names:
            status, body = self.server.get(f"/infer/{SEGMENTATION}?image={name}", "POST")
            self.assertEqual(status, 404, (name, body))
            self.assertEqual(self.server.get(f"/datastore/image?image={name}")[0], 404, name)
        for params in ({"image": [str(self.secret)]}, {"image": str(self.secret)}, {"image_path": str(self.secret)}):
            status, body = self._infer(self.cases[0][0], params)
            self.assertEqual(status, 422, params)
            self.assertIn(b"params must be of", body)
        for query in ("image=../stolen", f"image={self.folder}/stolen.nii.gz"):
            self.assertEqual(self._upload(f"/datastore/image?{query}", "file"), 422)
        self.assertEqual(self._upload(f"/datastore/label?image={self.cases[0][0]}&tag=../../stolen", "label"), 422)
        self.assertEqual(list(self.folder.rglob("*stolen*")) + list(self.folder.parent.glob("stolen*")), [])

    def test_file_type_that_is_none(self):
        status, body = self._infer(self.cases[0][0], {"result_extension": "/../stolen.nii.gz"})
        self.assertEqual(status, 422, body)
        self.assertIn(b"result_extension must be one of", body)

    def test_uploaded_image(self):
        path, _ = self.client.client.infer(SEGMENTATION, "", {}, file=str(self.secret))
        label, _, _ = self.client.label(SEGMENTATION, self.cases[0][0])
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), label)

    def test_file_to_keep_is_small_and_no_request_replaces_it(self):
        shipped = REPOSITORY / "bundles" / SEGMENTATION / "models" / "adapter.safetensors"
        before = sha256(shipped)
        status, body = self.server.get(f"/model/{SEGMENTATION}")
        self.assertEqual((status, hashlib.sha256(body).hexdigest()), (200, before))
        self.server.get(f"/model/{SEGMENTATION}", "DELETE")
        self.assertNotEqual(self._upload(f"/model/{SEGMENTATION}", "file"), 200)
        self.assertEqual(sha256(shipped), before)

    def _infer(self, image: str, params: dict) -> tuple[int, bytes]:
        import requests

        url = f"{self.server.url}/infer/{SEGMENTATION}?image={image}&output=image"
        answer = requests.post(url, data={"params": json.dumps(params)})
        return answer.status_code, answer.content

    def _upload(self, path: str, field: str) -> int:
        import requests

        with open(self.secret, "rb") as file:
            return requests.put(self.server.url + path, files={field: ("secret.nii.gz", file)}).status_code


class TestRadiographs(unittest.TestCase):
    """A bundle of 2D images, with an adapter that was not trained."""

    def test_grades_are_those_of_the_bundle(self):
        require_monai_label()
        folder = temporary_folder(self)
        settings = {
            "backbone_path": str(shared_data("weights/vit_tiny_patch16_224_timm.safetensors")),
            "adapter_path": str(folder / "adapter.safetensors"),
        }
        bundle = REPOSITORY / "bundles" / RADIOGRAPHS
        config = ConfigParser(yaml.safe_load((bundle / "configs" / "train.yaml").read_text()))
        config["backbone_path"] = settings["backbone_path"]
        network, labels = (config.get_parsed_content(key) for key in ("network_def", "labels"))
        network = load_pretrained(network, settings["backbone_path"]).network
        notes = {"preparation": {"image_mean": 0.5, "image_std": 0.5}}
        save_adapter(network, settings["adapter_path"], labels=labels, notes=notes)
        images = sorted(shared_data("brixia_cxr/images").glob("*.png"))[:2]
        (folder / "studies").mkdir()
        for image in images:
            shutil.copy(image, folder / "studies")
        made = workflow(
            *(bundle, "inference", "inference"),
            dataset_dir=str(folder / "studies"),
            output_dir=str(folder / "standalone"),
            **settings,
        )
        made.run()
        made.finalize()
        conf = {"models": RADIOGRAPHS} | {f"{RADIOGRAPHS}#{key}": value for key, value in settings.items()}
        with serve(folder / "studies", folder / "server", conf) as server:
            for image in images:
                status, body = server.get(f"/infer/{RADIOGRAPHS}?image={quote(image.stem)}&output=json", "POST")
                self.assertEqual(status, 200, body)
                found = json.loads(body)["grades"]
                alone = json.loads((folder / "standalone" / f"{image.stem}_grades.json").read_text())["outputs"]
                self.assertEqual(found.keys(), alone.keys())
                for output, expected in alone.items():
                    self.assertEqual(found[output]["grade"], expected["grade"])
                    self.assertEqual(found[output]["probabilities"].keys(), expected["probabilities"].keys())
                    for label, probability in expected["probabilities"].items():  # up to the rounding of a batch
                        self.assertAlmostEqual(found[output]["probabilities"][label], probability, places=5)


class TestTraining(unittest.TestCase):
    def setUp(self):
        require_monai_label()
        self.folder = temporary_folder(self)
        self.studies = self.folder / "studies"
        self.studies.mkdir()
        self.cases = validation_cases()[:4]
        for _, image, _ in self.cases:
            shutil.copy(image, self.studies)
        self.backbone = self.folder / "backbone.safetensors"
        shutil.copy(MRI_VIT_TINY, self.backbone)
        self.conf = {"models": SEGMENTATION, f"{SEGMENTATION}#backbone_path": str(self.backbone)}

    def serve(self):
        return serve(self.studies, self.folder / "server", self.conf)

    def correct(self, client: Client, names: set[str] | None = None) -> None:
        for name, _, label in self.cases:
            if names is None or name in names:
                client.client.save_label(name, str(label), "final", {"label_info": INFO})

    def test_train_go_back_and_restart(self):
        first, before = self.cases[0][0], sha256(self.backbone)
        with self.serve() as server:
            client = Client(self, server)
            shipped, _, _ = client.label(SEGMENTATION, first)
            self.correct(client)
            record = client.train(SEGMENTATION, max_epochs=1, val_split=0)
            self.assertEqual((record["version"], record["scored_on"], record["left_out"]), ("v1", "training", {}))
            self.assertEqual(record["in_use"] == "v1", record["score"] > record["score_in_use_before"])
            trained, _, told = client.label(SEGMENTATION, first, adapter="v1")
            self.assertEqual(told["adapter"], "v1")
            self.assertTrue((trained != shipped).any())
            back, _, told = client.label(SEGMENTATION, first, adapter="shipped")
            np.testing.assert_array_equal(back, shipped)
            in_use, _, _ = client.label(SEGMENTATION, first)
            status, told = client.train_in_background(SEGMENTATION, max_epochs=2, val_split=0.25)
            self.assertEqual(status["status"], "DONE", told)
            self.assertTrue(any("Epoch 1 of 2: loss" in line for line in told), told)
            stats = server.info()["train_stats"][SEGMENTATION]
            self.assertEqual([item["name"] for item in stats["versions"]], ["v1", "v2"])
            # what a version was trained on does not validate those that go on from it or are compared with it
            validating = stats["versions"][1]["validation_cases"]
            self.assertEqual(len(validating), 0 if record["in_use"] == "v1" else 1)
            used = stats["adapter"]
            expected, _, _ = client.label(SEGMENTATION, first)
            self.assertEqual(client.train(SEGMENTATION, max_epochs=1, seed=1)["version"], "v3")
            used_now = server.info()["models"][SEGMENTATION]["adapter"]
        folder = self.studies / "adapters" / SEGMENTATION
        self.assertLess(max(path.stat().st_size for path in folder.glob("*.safetensors")), 1e6)
        self.assertEqual(sha256(self.backbone), before)
        self.assertFalse((folder / "run").exists())
        answers = []
        for _ in range(2):
            with self.serve() as server:
                self.assertEqual(server.info()["models"][SEGMENTATION]["adapter"], used_now)
                answers.append(Client(self, server).label(SEGMENTATION, first, adapter=used)[0])
        np.testing.assert_array_equal(answers[0], expected)
        np.testing.assert_array_equal(answers[1], expected)
        self.assertEqual(in_use.dtype, np.uint8)

    def test_version_of_another_method(self):
        """Only a better one is put in use; each is trained and loaded by the method that its file names."""
        first = self.cases[0][0]
        with self.serve() as server:
            client = Client(self, server)
            shipped, _, _ = client.label(SEGMENTATION, first)
            self.correct(client)
            records = [
                client.train(SEGMENTATION, max_epochs=1, val_split=0, method="lora"),
                client.train(SEGMENTATION, max_epochs=1, val_split=0, start_from="v1"),
                client.train(SEGMENTATION, max_epochs=1, val_split=0, start_from="shipped", method=["linear"]),
            ]
            self.assertEqual([record["method"] for record in records], ["lora", "lora", "linear"])
            for record in records:
                used = record["score"] > record["score_in_use_before"]
                self.assertEqual(record["in_use"], record["version"] if used else record["in_use_before"])
            answers = [client.label(SEGMENTATION, first, adapter=f"v{number}")[0] for number in (1, 2, 3, 1)]
            np.testing.assert_array_equal(answers[3], answers[0])
            back, _, _ = client.label(SEGMENTATION, first, adapter="shipped")
            np.testing.assert_array_equal(back, shipped)
        folder = self.studies / "adapters" / SEGMENTATION
        found = [adapter_metadata(folder / f"v{number}.safetensors") for number in (1, 2, 3)]
        self.assertEqual([metadata["method"]["name"] for metadata in found], ["lora", "lora", "linear"])
        self.assertEqual([metadata["parts"] for metadata in found], [["method", "head"]] * 2 + [["head"]])

    def test_worse_run_replaces_nothing(self):
        from monai_dvpt.apps.monailabel.labelled_cases import split_cases

        with self.serve() as server:
            client = Client(self, server)
            before, _, _ = client.label(SEGMENTATION, self.cases[0][0])
            right = {case["name"] for case in split_cases([{"name": name} for name, _, _ in self.cases], 0.25)[1]}
            for name, _, label in self.cases:  # a corner is called anterior in all but the one that validates
                source = nib.load(label)
                wrong = np.zeros(source.shape, np.uint8)
                wrong[:9, :9, :9] = 1
                path = self.folder / f"{name}.nii.gz"
                nib.save(nib.Nifti1Image(wrong, source.affine), path)
                client.client.save_label(name, str(path), "final", {"label_info": INFO})
            self.correct(client, right)
            record = client.train(SEGMENTATION, max_epochs=10, val_split=0.25)
            self.assertEqual(set(record["validation_cases"]), right)
            self.assertLess(record["score"], record["score_in_use_before"])
            self.assertEqual(server.info()["train_stats"][SEGMENTATION]["versions"][0]["score"], record["score"])
            after, _, told = client.label(SEGMENTATION, self.cases[0][0])
        self.assertEqual(told["adapter"], "shipped")
        np.testing.assert_array_equal(after, before)

    def test_labels_count_by_name(self):
        (name, _, label), (other, _, other_label) = self.cases[:2]
        source = nib.load(label)
        posterior = (np.asarray(source.dataobj) == 2).astype(np.uint8)
        path = self.folder / "posterior.nii.gz"
        nib.save(nib.Nifti1Image(posterior, source.affine), path)
        with self.serve() as server:
            client = Client(self, server)
            client.client.save_label(name, str(path), "final", {"label_info": [{"name": "posterior", "idx": 3}]})
            client.client.save_label(other, str(other_label), "final", {"label_info": [{"name": "tumour"}]})
            server.get("/scoring/", "DELETE")
            scores = self._when_free(client)[SEGMENTATION]["images"]
            self.assertGreater(scores[name]["posterior"], 0.8)
            self.assertEqual(set(scores), {name})
            record = client.train(SEGMENTATION, max_epochs=1, val_split=0)
            self.assertEqual(record["training_cases"], [name])
            self.assertIn("tumour", record["left_out"][other])

    def _when_free(self, client: Client) -> dict:
        for _ in range(60):
            status, body = client.server.get("/scoring/dice?run_sync=true", "POST")
            if status == 200:
                return json.loads(body)
            time.sleep(1)
        raise AssertionError((status, body))

    def test_next_image_is_the_one_the_model_is_least_sure_of(self):
        with self.serve() as server:
            client = Client(self, server)
            found = {}
            for _ in range(60):
                kept = self.studies / "adapters" / SEGMENTATION / "entropy.json"
                found = json.loads(kept.read_text()) if kept.is_file() else {}
                if len(found) == len(self.cases):
                    break
                time.sleep(1)
            scores = {name: item["entropy"] for name, item in found.items()}
            self.assertEqual(set(scores), {name for name, _, _ in self.cases})
            self.assertTrue(all(0 < score < 1 for score in scores.values()), scores)
            self.assertEqual(client.client.next_sample("entropy", {})["id"], max(scores, key=scores.get))

    def test_backbone_that_is_gone_or_another_is_a_loud_failure(self):
        with self.serve() as server:
            client = Client(self, server)
            client.label(SEGMENTATION, self.cases[0][0])
            self.backbone.rename(self.folder / "elsewhere")
            status, body = server.get(f"/infer/{SEGMENTATION}?image={self.cases[0][0]}", "POST")
            self.assertEqual(status, 422)
            self.assertIn(b"backbone_path must be an existing file", body)
        with self.assertRaisesRegex(RuntimeError, "backbone_path must be an existing file"), self.serve():
            pass
        tensors = load_file(self.folder / "elsewhere")
        name = next(name for name in sorted(tensors) if name.endswith("weight"))
        save_file({**tensors, name: tensors[name] + 1}, self.backbone)
        with self.assertRaisesRegex(RuntimeError, "backbone_sha256 must be that of the network"), self.serve():
            pass


class TestAuthentication(unittest.TestCase):
    def test_request_without_a_token_is_refused(self):
        require_monai_label()
        folder = temporary_folder(self)
        (folder / "studies").mkdir()
        name, image, _ = validation_cases()[0]
        shutil.copy(image, folder / "studies")
        variables = {
            "MONAI_LABEL_AUTH_ENABLE": "true",
            "MONAI_LABEL_AUTH_REALM_URI": "http://127.0.0.1:1/realms/monailabel",
        }
        with serve(folder / "studies", folder / "server", {"models": SEGMENTATION}, environment=variables) as server:
            for method, path in (
                ("GET", "/info/"),
                ("POST", f"/infer/{SEGMENTATION}?image={name}"),
                ("POST", f"/train/{SEGMENTATION}"),
                ("GET", f"/datastore/image?image={name}"),
                ("GET", f"/model/{SEGMENTATION}"),
                ("POST", "/activelearning/entropy"),
                ("POST", "/scoring/dice"),
                ("GET", "/logs/"),
            ):
                self.assertEqual(server.get(path, method)[0], 401, path)
            self.assertEqual(server.get("/reload", "POST")[0], 404)


class TestStockApp(unittest.TestCase):
    """The bundle in MONAI Label's own app for bundles, unchanged."""

    def setUp(self):
        require_monai_label()
        self.folder = temporary_folder(self)
        self.app = sample_app("monaibundle", self.folder / "monaibundle")
        bundle = self.app / "model" / SEGMENTATION
        shutil.copytree(REPOSITORY / "bundles" / SEGMENTATION, bundle, ignore=shutil.ignore_patterns("output"))
        self.model = bundle / "models" / "model.pt"
        from monai_dvpt.__main__ import main

        main(["adapter", "merge-full", str(bundle / "models/adapter.safetensors"), "--output", str(self.model)])
        self.studies = self.folder / "studies"
        self.cases = validation_cases()[:3]
        self.placed = placed_five_ways(self.cases[0][1], self.studies)
        for _, image, _ in self.cases:
            shutil.copy(image, self.studies)

    def test_infer_and_train(self):
        conf = {"models": SEGMENTATION, "zoo_source": "local", "sam2": "false"}
        name = self.cases[0][0]
        with serve(self.studies, self.folder / "server", conf, app=self.app) as server:
            client = Client(self, server)
            plain, affine, _ = client.label(SEGMENTATION, name)
            self.assertEqual(plain.dtype, np.uint8)
            truth = nib.load(self.cases[0][2])
            np.testing.assert_allclose(affine, truth.affine, atol=1e-4)
            for value in (1, 2):
                self.assertGreater(dice(plain, np.asarray(truth.dataobj), value), 0.8)
            for path in self.placed:
                label, affine, _ = client.label(SEGMENTATION, path.name.removesuffix(".nii.gz"))
                out = self.folder / "standalone" / path.stem
                made = workflow(
                    self.model.parents[1], "inference", "inference", dataset_dir=str(path), output_dir=str(out)
                )
                made.run()
                made.finalize()
                np.testing.assert_array_equal(label, np.asarray(nib.load(next(out.glob("*_seg.nii.gz"))).dataobj))
                np.testing.assert_allclose(affine, nib.load(path).affine, atol=1e-4)
            for image, _, label in self.cases:
                client.client.save_label(image, str(label), "final", {"label_info": INFO})
            before = sha256(self.model)
            status, told = client.train_in_background(SEGMENTATION, max_epochs=1, val_split=0)
            self.assertEqual(status["status"], "DONE", told)
            self.assertNotEqual(sha256(self.model), before)  # it saves without validation cases too
            self.assertEqual([sha256(path) for path in self.model.parent.glob("before/*.pt")], [before])
            self.assertTrue((client.label(SEGMENTATION, name)[0] != plain).any())
            status, told = client.train_in_background(SEGMENTATION, max_epochs=1, val_split=0.34)
            self.assertEqual(status["status"], "DONE", told)
        for line in server.sockets.read_text().splitlines():
            self.assertTrue("127.0.0.1" in line or "AF_UNIX" in line or line == "watched", line)
