# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import unittest
from pathlib import Path

import numpy as np
from parameterized import parameterized
from PIL import Image
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score
from utils_data import temporary_folder
from utils_report import (
    ATTACK,
    DICE,
    GRADES,
    UID,
    UMLAUTS,
    Page,
    make_bundle,
    make_grades,
    save_json,
    save_table,
)

from monai_dvpt.apps.report import report_evaluation, write_report
from monai_dvpt.apps.report.files import without_paths
from monai_dvpt.data import images_sha256
from monai_dvpt.utils import InputError

ALLOWED = set("html head meta title style body a header h1 h2 h3 p nav ul li main dl div dt dd section details".split())
ALLOWED |= set("summary table caption thead tbody tr th td figure img figcaption svg path rect span strong".split())
SCORE = re.compile(r"(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)")
DATA = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,([A-Za-z0-9+/=]+)")


def bootstrap(values: list, statistic, resamples: int = 4000) -> tuple[float, float]:
    """Percentiles of resamples of groups, written out; each group is a list of cases."""
    generator = np.random.default_rng(99)
    found = []
    for _ in range(resamples):
        drawn = [values[index] for index in generator.integers(len(values), size=len(values))]
        found.append(statistic([case for group in drawn for case in group]))
    return tuple(np.nanpercentile(found, (2.5, 97.5)))


class ReportTestCase(unittest.TestCase):
    def setUp(self):
        self.root = temporary_folder(self)
        self.bundle = self.root / "bundle"

    def page(self, **folders) -> Page:
        self.source = write_report(self.bundle, **folders).read_text(encoding="utf-8")
        return Page(self.source)

    def assert_score(self, cell: str, value: float, low: float, high: float, delta: float = 0.02) -> None:
        shown = [float(each) for each in SCORE.fullmatch(cell).groups()]
        self.assertAlmostEqual(shown[0], value, delta=0.0006)
        self.assertAlmostEqual(shown[1], low, delta=delta)
        self.assertAlmostEqual(shown[2], high, delta=delta)


class TestWholePage(ReportTestCase):
    def setUp(self):
        super().setUp()
        make_bundle(self.bundle)
        self.parsed = self.page()

    def test_nothing_is_loaded_and_nothing_runs(self):
        policy = next(a["content"] for a in self.parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256(self.parsed.style.encode()).digest()).decode()
        for rule in ("default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'", "base-uri 'none'"):
            self.assertIn(rule, policy.split("; "))
        self.assertLessEqual({tag for tag, _ in self.parsed.tags}, ALLOWED)
        for tag, attributes in self.parsed.tags:
            for name, value in attributes.items():
                self.assertFalse(name.startswith("on") or name in ("style", "srcset", "action"), (tag, name))
                if name in ("src", "href"):
                    self.assertRegex(value, r"^(data:image/(png|jpeg|svg\+xml);base64,|#)")
        self.assertNotIn("url(", self.parsed.style)
        self.assertNotIn("@import", self.parsed.style)
        for kind, data in DATA.findall(self.source):
            raw = base64.b64decode(data, validate=True)
            if kind == "svg+xml":
                self.assertNotRegex(raw.decode(), r"<script|(?:href|src)=.(?!#)|\son\w+=")
            else:
                with Image.open(io.BytesIO(raw)) as image:
                    image.load()

    def test_names_are_shown_and_not_obeyed(self):
        self.assertIn(ATTACK, self.parsed.text)
        self.assertIn(UMLAUTS, self.parsed.text)
        self.assertNotIn("<script", self.source)
        self.assertEqual(self.source.count("<img"), len(self.parsed.all("img")))

    def test_nothing_names_a_patient(self):
        without_data = DATA.sub("", self.source)
        for secret in ("/home", "Meier", "Hans", UID, str(self.root), "series_uid"):
            self.assertNotIn(secret, without_data)
        for kind, data in DATA.findall(self.source):
            if kind == "svg+xml":
                self.assertNotIn("Meier", base64.b64decode(data).decode())
        self.assertNotIn("stolen", self.source)
        self.assertIn("…/vit.pt", self.source)

    def test_accessible(self):
        self.assertEqual(self.parsed.all("html")[0]["lang"], "en")
        self.assertIn({"charset": "utf-8"}, self.parsed.all("meta"))
        self.assertTrue(all(image["alt"] for image in self.parsed.all("img")))
        tables = self.parsed.all("table")
        self.assertEqual(len(tables), len(self.parsed.all("caption")))
        self.assertNotIn("", self.parsed.tables)
        self.assertTrue(all(th.get("scope") in ("row", "col") for th in self.parsed.all("th")))
        identifiers = [attributes["id"] for _, attributes in self.parsed.tags if "id" in attributes]
        self.assertEqual(len(identifiers), len(set(identifiers)))
        links = [a["href"][1:] for a in self.parsed.all("a")]
        self.assertLessEqual({"data", "training", "evaluation", "inference", "what-it-cost"}, set(links))
        self.assertLessEqual(set(links), set(identifiers))
        levels = [int(tag[1]) for tag, _ in self.parsed.tags if re.fullmatch("h[1-6]", tag)]
        self.assertEqual((levels[0], levels.count(1)), (1, 1))
        self.assertTrue(all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)))
        self.assertEqual(len(self.parsed.all("svg")), 4)  # the legend: two lines and two labels

    def test_same_again(self):
        self.page()
        self.assertEqual(self.source, write_report(self.bundle, self.root / "other.html").read_text(encoding="utf-8"))
        self.assertLess(len(self.source.encode()), 3_000_000)

    def test_dice(self):
        rows = self.parsed.tables["Scores by label"]
        self.assertEqual(rows[0], ["label", "cases", "Dice", "median Dice"])
        dice = np.array(DICE)
        for label, row, column in zip(("anterior", ATTACK), rows[1:], dice.T, strict=False):
            known = column[~np.isnan(column)]
            self.assertEqual(row[:2], [label, str(len(known))])
            interval = bootstrap([[value] for value in known], np.mean)
            self.assert_score(row[2], known.mean(), *interval)
            self.assertEqual(row[3], f"{np.median(known):.3f}")
        means = np.nanmean(dice, axis=1)
        self.assertEqual(rows[3][:2], ["mean of labels", "7"])
        self.assert_score(rows[3][2], means.mean(), *bootstrap([[value] for value in means], np.mean))
        cases = self.parsed.tables["Every case, the worst first"]
        self.assertEqual([row[0] for row in cases[1:3]], ["e", "<b>bold<|b>"])
        self.assertIn(["a, b", "0.700", "0.600"], cases)

    def test_data(self):
        tables = self.parsed.tables
        self.assertEqual(tables["Cases by part"][1:], [["training", "5"], ["validation", "3"]])
        expected = [["anterior", "4", "3", "400"], [ATTACK, "5", "3", "7"]]
        self.assertEqual(tables["Cases with each label"][1:], expected)
        self.assertEqual(tables["Spacing in mm"][3], ["3", "2", "5.5", "9"])
        self.assertEqual(tables["Size in voxels or pixels, along each axis"][1], ["1", "30", "33.5", "37"])
        odd = tables["What was odd"]
        self.assertEqual([row[0] for row in odd], ["kind", "error", "note"])
        self.assertEqual(odd[1][3], f"must be as large as …/{UMLAUTS}.nii, got 3.")
        self.assertEqual(tables["The plan, and why"][1], ["max_epochs", "12", "few cases need more epochs"])
        self.assertEqual(tables["Settings without a reason of their own"][1], ["seed", "0"])

    def test_training_and_cost(self):
        scores = self.parsed.tables["Scores of the validation cases"]
        self.assertEqual(scores[0], ["metric", "best epoch (4)", "last epoch (6)"])
        self.assertIn(["mean Dice", "0.7512", "0.7401"], scores)
        self.assertIn([f"Dice: {ATTACK}", "0.8024", "0.7902"], scores)
        alts = " ".join(image["alt"] for image in self.parsed.all("img"))
        self.assertIn("Curve of the training loss over 6 epochs, from 1 to 0.1667 in epoch 6.", alts)
        self.assertIn("Curve of the mean Dice over 3 epochs, from 0.5 to 0.7401 in epoch 6.", alts)
        cost = dict(self.parsed.tables["Time, memory and size"][1:])
        self.assertEqual(cost["training"], "1.5 min, 6 epochs")
        self.assertEqual(cost["peak memory of the training"], "1,234 MiB")
        self.assertEqual(cost["trained parameters"], "25,000 of 1,000,000 (2.50 %)")
        self.assertEqual(cost["full model"], "20.0 MB (20,000,000 bytes), 8 times the adapter")
        self.assertEqual(cost["inference, per case"], "3.0 s (median of 2)")

    def test_inference(self):
        self.assertIn("2 of 3 inputs were answered.", self.parsed.text)
        (failed,) = self.parsed.tables["Inputs without an answer"][1:]
        self.assertEqual(failed[0], ATTACK)
        self.assertNotIn("Meier", failed[1])
        shown = [image["alt"] for image in self.parsed.all("img") if image["alt"].startswith("Answer")]
        self.assertEqual(shown, [f"Answer for {UMLAUTS}: overlay."])  # no file outside the folder


class TestGrades(ReportTestCase):
    def setUp(self):
        super().setUp()
        save_json(self.bundle / "configs/metadata.json", {"name": "grades"})

    @parameterized.expand([("grades", True), ("classes", False)])
    def test_agreement(self, _, ordered):
        rows = make_grades(self.bundle / "output/evaluate", ordered)
        page = self.page()
        word = "grade" if ordered else "class"
        table = page.tables["Agreement with the reader"]
        scores = {"accuracy": accuracy_score}
        if ordered:
            scores["quadratic kappa"] = lambda y, p: cohen_kappa_score(y, p, weights="quadratic", labels=range(3))
            scores["within one grade"] = lambda y, p: float(np.mean(np.abs(np.subtract(y, p)) <= 1))
        else:
            scores["macro-F1"] = lambda y, p: f1_score(y, p, average="macro")
        self.assertEqual(set(table[0]), {"output", "cases", *scores})
        for line in table[1:]:
            chosen = [row for row in rows if row["label"] and line[0] in ("all outputs", row["output"])]
            self.assertEqual(line[1], str(len(chosen)))
            patients: dict[str, list] = {}
            for row in chosen:
                patients.setdefault(row["patient"], []).append((GRADES.index(row["label"]), GRADES.index(row[word])))
            for name, score in scores.items():
                found = lambda cases, score=score: score(*zip(*cases, strict=True))  # noqa: E731
                value = found([case for cases in patients.values() for case in cases])
                low, high = bootstrap(list(patients.values()), found, 300)
                self.assert_score(line[table[0].index(name)], value, low, high, delta=0.05)
        self.assertEqual([line[0] for line in table[1:]], ["all outputs", "left", "right"])
        self.assertIn("1 answers have no grade of a reader", page.text)
        matrix = next(rows for caption, rows in page.tables.items() if caption.startswith("Confusion matrix of left"))
        pairs = [(r["label"], r[word]) for r in rows if r["output"] == "left"]
        expected = [[f"reader: {a}", *(str(pairs.count((a, b))) for b in GRADES)] for a in GRADES]
        self.assertEqual(matrix[1:], expected)
        self.assertEqual(page.tables["Calibration: 0 is best"][1], ["expected calibration error", "0.120", "0.250"])

    def test_one_patient_has_no_interval(self):
        folder = self.bundle / "output/evaluate"
        rows = [row for row in make_grades(folder, outputs=("left",)) if row["patient"] == "p0"]
        save_table(folder / "predictions.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
        (line,) = self.page().tables["Agreement with the reader"][1:]
        self.assertNotIn("(", " ".join(line))


class TestTolerance(ReportTestCase):
    def test_what_is_not_there_is_left_out(self):
        save_json(self.bundle / "configs/metadata.json", {})
        with self.assertRaisesRegex(InputError, "must hold results to report"):
            write_report(self.bundle)
        with self.assertRaisesRegex(InputError, "must be the folder of a bundle"):
            write_report(self.root / "none")
        save_json(self.bundle / "output/train/report.json", {"seconds": 5.0})
        page = self.page()
        self.assertEqual([a["href"] for a in page.all("a")], ["#content", "#what-it-cost"])

    def test_damaged_files_are_named(self):
        make_bundle(self.bundle)
        output = self.bundle / "output"
        (self.bundle / "configs/check.json").write_text("{")
        (self.bundle / "configs/plan.json").write_text("[1]")
        (output / "train/history.csv").write_text("a,b\n1,2\n")
        (output / "evaluate/val_dice_raw.csv").write_bytes(b"filename,class0,class1,mean\nx,1,\xff,3\n")
        (output / "evaluate/pictures/best_1.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
        text = self.page().text
        for name in ("configs/check.json", "configs/plan.json", "train/history.csv", "evaluate/val_dice_raw.csv"):
            self.assertIn(name, text)
        self.assertIn("pictures/best_1.png cannot be shown", text)
        self.assertNotIn(str(self.root), text)

    @parameterized.expand(
        [
            ("numbers", {"best": 3, "parameters": [], "file_bytes": None, "seconds": "long", "settings": []}),
            ("nested", {"best": {"metrics": [1]}, "last": {"metrics": {"x": {"y": {"z": 1}}}}, "epochs": {}}),
        ]
    )
    def test_strange_reports(self, _, report):
        make_bundle(self.bundle)
        save_json(self.bundle / "output/train/report.json", report)
        for name, content in (("check", {"cases": [1], "findings": 5, "labels": 7}), ("plan", {"choices": [2]})):
            save_json(self.bundle / f"configs/{name}.json", content)
        save_json(self.bundle / "output/evaluate/pictures/index.json", {"cases": [1, {"file": None}], "labels": 3})
        self.assertIn("Evaluation", self.page().text)

    def save_lists(self, now: str, trained: str | None) -> None:
        """What the bundle has of its list, and its training of that which it read."""
        check = json.loads((self.bundle / "configs/check.json").read_text())
        save_json(self.bundle / "configs/check.json", {**check, "list": {"sha256": now, "file_sha256": "other"}})
        report = json.loads((self.bundle / "output/train/report.json").read_text())
        report["settings"] |= {"cases": {"training": 5, "validation": 2}, "list_sha256": trained}
        save_json(self.bundle / "output/train/report.json", report)

    def test_results_of_an_earlier_list_are_marked(self):
        make_bundle(self.bundle)
        self.assertNotIn("list of cases", self.page().text)  # of a bundle that new did not write
        first, second = "a" * 64, "b" * 64
        self.save_lists(first, first)
        text = self.page().text
        self.assertIn(f"This training is of the present list of cases, {'a' * 12} with 5 training", text)
        self.assertIn("It is not recorded of which list of cases this evaluation is", text)
        save_json(self.bundle / "output/evaluate/evaluated.json", {"list_sha256": first})
        self.assertIn("This evaluation is of the present list of cases, aaaaaaaaaaaa.", self.page().text)
        self.assertNotIn("earlier list", self.page().text)
        self.save_lists(second, first)
        text = self.page().text
        for what in ("training", "evaluation"):
            self.assertRegex(text, f"This {what} is of an earlier list of cases, a{{12}}.*the list is now b{{12}}")
        self.assertIn("of an earlier list of cases", text[: text.index("This training")])  # at a glance

    def test_whether_the_adapter_is_the_present_best(self):
        make_bundle(self.bundle)
        train, evaluate = (self.bundle / "output" / name for name in ("train", "evaluate"))
        best, other = train / "adapter_best.safetensors", self.root / "<b>other.safetensors"
        best.write_bytes(b"the best")
        other.write_bytes(b"another")
        digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (best, other)]
        self.assertNotIn("present best", self.page().text)  # not recorded
        cases = [{"image": f"/data/x/{name}.nii.gz", "label": "/data/y"} for name in "ab"]
        report_evaluation(self.bundle, evaluate, best, cases=cases)
        self.assertNotIn("/data", (evaluate / "evaluated.json").read_text())
        text = self.page().text
        self.assertIn(f"This evaluation is of the training's present best adapter, {digests[0]}.", text)
        self.assertNotIn("chosen on", text)  # the training does not say on which cases

        report = json.loads((train / "report.json").read_text())
        moved = [{"image": f"/elsewhere/{name}.nii.gz", "name": "?"} for name in "ab"]
        save_json(train / "report.json", {**report, "validation_sha256": images_sha256(moved)})
        self.assertIn("Its epoch was chosen on the cases that are scored here", self.page().text)
        save_json(train / "calibration.json", {"temperature": 2.0})
        self.assertIn("Its epoch and temperature were chosen on the cases that are scored here", self.page().text)
        report_evaluation(self.bundle, evaluate, best, cases=cases[:1])
        self.assertNotIn("chosen on", self.page().text)

        report_evaluation(self.bundle, evaluate, other, cases=cases)
        text = self.page().text
        words = (
            f"is of another adapter (<b>other.safetensors, {digests[1]}) than the training's present best, {digests[0]}"
        )
        self.assertIn(words, text)
        self.assertNotIn("chosen on", text)
        self.assertRegex(text[: text.index(words)], "Dice, mean of labels.*of another adapter")  # at a glance
        best.write_bytes(b"another")
        self.assertNotIn("of another adapter", self.page().text)

    def test_how_a_setting_was_found_is_a_folded_table(self):
        make_bundle(self.bundle)
        details = [{"head": 0.001, "val_kappa": "0.5"}, {"head": 0.25, "val_kappa": ATTACK}]
        choice = {"value": 0.25, "reason": "searched.", "details": details}
        save_json(
            self.bundle / "configs/plan.json", {"rates": choice, "odd": {"value": 1, "reason": "", "details": [3]}}
        )
        page = self.page()
        expected = [["trial", "head", "val_kappa"], ["1", "0.001", "0.5"], ["2", "0.25", ATTACK]]
        self.assertEqual(page.tables["How rates were found"], expected)
        self.assertNotIn("How odd were found", page.tables)

    def test_few_cases_are_a_warning(self):
        make_bundle(self.bundle)
        text = self.page().text
        self.assertIn("Few cases (anterior: 6, ", text)
        self.assertIn("mean of labels: 7): an interval from fewer than 20 is not reliable", text)
        folder = self.bundle / "output/evaluate"
        shutil.rmtree(folder)
        rows = make_grades(folder)  # of 30 patients
        self.assertNotIn("not reliable", self.page().text)
        few = [row for row in rows if int(row["patient"][1:]) < 9 or row["output"] == "right"]
        save_table(folder / "predictions.csv", [list(few[0]), *(list(row.values()) for row in few)])
        self.assertIn("Few patients (left: 9): an interval from", self.page().text)

    def test_distances_that_are_not_measured_are_marked(self):
        make_bundle(self.bundle)
        folder = self.bundle / "output/evaluate"
        lines = (folder / "val_dice_raw.csv").read_text(encoding="utf-8").splitlines()
        distances = [line.rsplit(",", 3)[0] + ",40.0,2.0,21.0" for line in lines[1:]]
        (folder / "val_hd95_mm_raw.csv").write_text("\n".join([lines[0], *distances]), encoding="utf-8")
        self.assertNotIn("Not measured alone", self.page().text)
        index = json.loads((folder / "pictures/index.json").read_text())
        missing = [{"name": name, "label": "anterior", "missing_in": "answer"} for name in ("d", "e")]
        save_json(folder / "pictures/index.json", {**index, "missing": [*missing, 3]})
        page = self.page()
        self.assertRegex(page.text, r"\* Not measured alone: .* So in 2 cases: anterior in 2\.")
        rows = page.tables["Scores by label"]
        column = rows[0].index("HD95, mm")
        self.assertEqual([row[column].endswith("*") for row in rows[1:]], [True, False, True])
        self.assertFalse(any("*" in cell for row in rows[1:] for cell in (*row[:column], *row[column + 1 :])))
        cases = {row[0]: row for row in page.tables["Every case, the worst first"]}
        self.assertEqual((cases["d"][3:], cases["f"][3:]), (["40.000*", "2.000"], ["40.000", "2.000"]))

    def test_an_evaluation_keeps_its_list(self):
        make_bundle(self.bundle)
        datalist = self.root / "datalist.csv"
        datalist.write_text("image,grade\na.png,1\n")
        folder = self.bundle / "output/evaluate"
        report_evaluation(self.bundle, folder, self.bundle / "output/train/adapter_best.safetensors", datalist)
        digest = hashlib.sha256(b"image,grade\na.png,1\n").hexdigest()
        record = {"adapter": "adapter_best.safetensors", "list_sha256": digest}
        self.assertEqual(json.loads((folder / "evaluated.json").read_text()), record)

    def test_an_evaluation_never_fails_by_its_page(self):
        make_bundle(self.bundle)
        folder = self.bundle / "output/evaluate"
        path = report_evaluation(self.bundle, folder, self.bundle / "output/train/adapter_best.safetensors")
        self.assertEqual(path, folder / "report.html")
        page = Page(path.read_text(encoding="utf-8"))
        self.assertIn("Scores of the validation cases", page.tables)
        blocked = self.root / "file"
        blocked.write_text("")
        with self.assertLogs("monai_dvpt", "WARNING") as logged:
            self.assertIsNone(report_evaluation(self.bundle, blocked, "models/adapter.safetensors"))
        self.assertIn("report.html was not written", logged.output[0])

    @parameterized.expand(
        [
            ("/home/Hans Meier/x.nii.gz: must be one", "…/x.nii.gz: must be one"),
            ("got '/data/p/x.png'.", "got '…/x.png'."),
            (r"C:\Users\Hans Meier\x.png: no", "…/x.png: no"),
            ("~/secret/x", "…/x"),
            ("file:///data/Meier/x", "file:…/x"),
            ("/x.nii", "…/x.nii"),
            ("imagesTr/x.nii: 1 / 2, 3/4 mm", "imagesTr/x.nii: 1 / 2, 3/4 mm"),
            (json.dumps(["/a/b/c"]), '["…/c"]'),
        ]
    )
    def test_without_paths(self, text, expected):
        self.assertEqual(without_paths(text), expected)


class TestLarge(ReportTestCase):
    def test_many_cases(self):
        """Tables end, and the page says so."""
        save_json(self.bundle / "configs/metadata.json", {"name": "many"})
        folder = self.bundle / "output/evaluate"
        folder.mkdir(parents=True)
        values = np.random.default_rng(0).random((2000, 2))
        lines = [f"/data/{index}.nii,{a},{b},{(a + b) / 2}" for index, (a, b) in enumerate(values)]
        Path(folder / "val_dice_raw.csv").write_text("\n".join(["filename,class0,class1,mean", *lines]))
        page = self.page()
        self.assertLess(len(self.source.encode()), 3_000_000)
        self.assertEqual(len(page.tables["Every case, the worst first (the first 300 of 2000)"]), 301)


if __name__ == "__main__":
    unittest.main()
