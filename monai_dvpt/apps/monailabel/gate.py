# SPDX-License-Identifier: Apache-2.0
"""
What every request must pass: it names this server, does not come from another web page, and is not too large.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from monai_dvpt.utils import InputError, max_bytes

__all__ = ["Gate", "check_origins"]

ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?")
MAX_JSON = 1 << 20
"""The most bytes of a request without files."""


def check_origins(origins: Iterable[str]) -> list[str]:
    """
    Origins of web pages, ``http(s)://HOST[:PORT]``, without a slash at the end.

    Raises:
        InputError: if one is not an address, such as ``*``.
    """
    found = [origin.strip().rstrip("/").lower() for origin in origins if origin.strip()]
    for origin in found:
        if not ORIGIN.fullmatch(origin):
            raise InputError(f"origins must be addresses as https://name:8000, separated by commas, got {origin!r}.")
    return found


class Gate:
    """
    ASGI middleware. A request must name the server by an IP address, localhost, the machine's name or the name of one
    of the origins; a web page whose name its owner points to 127.0.0.1 (DNS rebinding) does not. A browser's request
    tells the page's origin, which must be the server or one of the origins; the gate refuses others, where a browser
    would only withhold the answer.

    Args:
        app: the next ASGI application.
        origins: origins of other web pages that may ask.
        infer: how the path begins of a request that may bring a file, beside PUT.
    """

    def __init__(self, app: Any, origins: Iterable[str] = (), infer: str = "/infer/") -> None:
        self.app = app
        self.infer = infer
        self.origins = set(origins)
        self.names = {"localhost", socket.gethostname().lower(), *(_name(urlsplit(o).netloc) for o in self.origins)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        brings_files = scope["method"] == "PUT" or scope["path"].startswith(self.infer)
        has_files = headers.get("content-type", "").startswith("multipart/")
        limit = max_bytes() if brings_files and has_files else MAX_JSON
        if refusal := self._refusal(headers, limit):
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        had = 0

        async def counted() -> Any:
            nonlocal had
            message = await receive()
            had += len(message.get("body", b""))
            if had > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        await self.app(scope, counted, send)

    def _refusal(self, headers: Headers, limit: int) -> tuple[int, str] | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if not self._is_own(host):
            return 403, "the request must name this server: an IP address, localhost, or a name in --conf origins."
        if origin and origin not in self.origins and origin.partition("://")[2] != host:
            return 403, "a web page must be of this server, or its origin in --conf origins."
        length = headers.get("content-length", "0")
        return (413, _too_large(limit)) if length.isascii() and length.isdigit() and int(length[:20]) > limit else None

    def _is_own(self, host: str) -> bool:
        name = _name(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True


def _name(host: str) -> str:
    """A host without its port, and an IPv6 address without its brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _too_large(limit: int) -> str:
    return f"the request must have at most {limit:,} bytes."
