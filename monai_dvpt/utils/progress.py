# SPDX-License-Identifier: Apache-2.0
"""How far a long task is and how many minutes are left: a bar for a person, now and then a line for a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from .monai_label import inside_monai_label

__all__ = ["TimeLeft", "progress"]

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

SECONDS = 30.0
"""From one line in a log to the next."""


class TimeLeft:
    """
    Estimates how long a task still takes, from what was done since this was made.

    Args:
        done: what was done before, in any unit.
    """

    def __init__(self, done: float = 0) -> None:
        self.before = done
        self.started = self.logged = time.monotonic()

    def __call__(self, done: float, total: float) -> str:
        """
        Args:
            done: what is done now, in the unit of ``total``; more than before.
            total: what there is to do.

        Returns:
            such as "25 min left", or "3 h 5 min left" from two hours on.
        """
        seconds = (time.monotonic() - self.started) * (total - done) / (done - self.before)
        minutes = round(seconds / 60)
        if minutes >= 120:
            return f"{minutes // 60} h {minutes % 60} min left"
        return f"{minutes} min left" if minutes else "less than 1 min left"

    def is_line_due(self) -> bool:
        """Whether a log was without a line for half a minute; it counts as written then."""
        now = time.monotonic()
        if now - self.logged < SECONDS:
            return False
        self.logged = now
        return True


def progress(
    items: Iterable[Item], name: str, unit: str = "case", done: int = 0, total: int | None = None
) -> Iterator[Item]:
    """
    Hands on items and says how far they are. Where the standard error stream is a terminal it shows a bar, with the
    time left. Elsewhere, and in MONAI Label's server, it logs at most one line in half a minute, such as "check: case
    12 of 300, 25 min left", and nothing of a task that takes less than that.

    Args:
        items: what is worked on; the work on an item is over when the next one is asked for.
        name: what is done.
        unit: what an item is.
        done: how many were done before, such as by an earlier run.
        total: number of all, with those; by default from the length of ``items``, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = done + len(items)
    if sys.stderr.isatty() and not inside_monai_label():
        yield from tqdm(items, desc=name, unit=unit, initial=done, total=total)
        return
    left = TimeLeft(done)
    for count, item in enumerate(items, done + 1):
        yield item
        if left.is_line_due():
            logger.info(f"{name}: {unit} {count}" + (f" of {total}, {left(count, total)}" if total else ""))
