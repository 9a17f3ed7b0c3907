# SPDX-License-Identifier: Apache-2.0
"""Handlers that other parts of a config refer to by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine

__all__ = ["HandlerGroup"]


class HandlerGroup:
    """
    Attaches several handlers in their order. In a config a handler can then have a name of its own, by which others
    refer to it, and the list of handlers may change: MONAI Label adds one to its front.

    Args:
        handlers: each with a method ``attach(engine)``.
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: what the handlers are attached to.
        """
        for handler in self.handlers:
            handler.attach(engine)
