"""Waiting for what must not be abandoned."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["wait_out"]


async def wait_out(work: asyncio.Future[Any]) -> bool:
    """Wait until work has ended, however often the waiting is cancelled, and return whether it was.

    The caller raises the cancellation afterwards. Where it was cancelled, an error of the work counts as seen: nobody
    asks for it any more.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not work.cancelled():
        work.exception()
    return cancelled
