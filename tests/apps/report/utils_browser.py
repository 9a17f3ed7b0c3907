# SPDX-License-Identifier: Apache-2.0
"""Opens a page in Chromium and prints what it did as JSON: ``python utils_browser.py PAGE SCREENSHOT WIDTH``."""

from __future__ import annotations

import json
import sys

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

ASK = """JSON.stringify({
    pwned: window.pwned === undefined ? null : window.pwned,
    title: document.title,
    images: document.images.length,
    broken: [...document.images].filter(image => !image.complete || image.naturalWidth === 0).length,
    page_width: document.documentElement.scrollWidth,
    window_width: window.innerWidth,
    background: getComputedStyle(document.body).backgroundColor,
    border: getComputedStyle(document.querySelector("h2")).borderBottomColor,
})"""
WAIT = 3000  # milliseconds for drawing


class Requests(QWebEngineUrlRequestInterceptor):
    """Notes what the page asks for."""

    urls: list[QUrl] = []

    def interceptRequest(self, info) -> None:
        self.urls.append(info.requestUrl())


class Page(QWebEnginePage):
    """Notes what the browser complains of."""

    complaints: list[str] = []

    def javaScriptConsoleMessage(self, level, message, line, source) -> None:
        self.complaints.append(message)


def main(path: str, screenshot: str, width: int) -> int:
    application = QApplication(sys.argv[:1])
    profile, requests = QWebEngineProfile(), Requests()
    profile.setUrlRequestInterceptor(requests)
    page, view = Page(profile), QWebEngineView()
    view.setPage(page)
    view.resize(width, 900)
    view.show()
    found: dict = {}

    def answered(text: str) -> None:
        found.update(json.loads(text))
        view.grab().save(screenshot)
        application.quit()

    def loaded(fine: bool) -> None:
        found["loaded"] = fine
        QTimer.singleShot(WAIT, lambda: page.runJavaScript(ASK, answered))

    page.loadFinished.connect(loaded)
    page.load(QUrl.fromLocalFile(path))
    QTimer.singleShot(120_000, application.quit)
    application.exec()
    found["schemes"] = sorted({url.scheme() for url in requests.urls})
    found["files"] = sorted({url.fileName() for url in requests.urls if url.scheme() == "file"})
    found["complaints"] = page.complaints
    print(json.dumps(found), flush=True)
    view.setPage(None)
    return 0 if "title" in found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
