"""Shows the progress of long work: a bar on a terminal, else one line a minute for a log file."""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
SECONDS_PER_LINE = 60
LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"


class _Lines:
    """What tqdm writes, as lines of their own instead of one that is overwritten."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(items: Iterable | None = None, *, show: bool = True, **options) -> tqdm:
    """`tqdm(items, disable=not show, **options)` on stderr.

    If stderr is not a terminal, work that takes less than a minute prints nothing.
    """
    if show and not sys.stderr.isatty():
        # miniters=1: look at the clock at each update, whatever the rate was; the monitor thread would print earlier
        pace = {"delay": SECONDS_PER_LINE, "mininterval": SECONDS_PER_LINE, "maxinterval": math.inf, "miniters": 1}
        return tqdm(items, **options | pace | {"file": _Lines(), "bar_format": LINE, "leave": True})
    return tqdm(items, disable=not show, **options)


def progress(items: Iterable[Item], total: int, description: str, unit: str = "clip") -> Iterator[Item]:
    """Yields the items and shows the progress on stderr."""
    yield from progress_bar(items, total=total, desc=description, unit=unit, leave=False)
