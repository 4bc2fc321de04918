"""The circuit breaker: where the server cannot be reached, callers are told at once instead of after a timeout each."""

from __future__ import annotations

from memory_store.clock import boot_s
from memory_store.durable.dialects import ConnectionLostError
from memory_store.errors import DurableTimeoutError, DurableUnavailableError

__all__ = ["Breaker"]


class Breaker:
    """Opens after some failures in a row to connect; after a pause one caller at a time may try.

    A connection that breaks is no failure to connect: a server that was restarted has broken all of them, and is back.

    Args:
        failures: in a row, until it opens.
        pause_s: seconds from opening to the next try.
    """

    def __init__(self, failures: int, pause_s: float) -> None:
        self._limit, self._pause_s = failures, pause_s
        self.failures = 0
        self.opened = 0
        """How often it has opened."""
        self._next_try = self._failed_at = float("-inf")
        self._last = ""

    @property
    def is_open(self) -> bool:
        """Whether callers are turned away."""
        return self.failures >= self._limit and boot_s() < self._next_try

    def require_closed(self) -> None:
        """Let the caller try.

        Raises:
            DurableUnavailableError: it is open; the server was not asked.
        """
        if self.failures < self._limit:
            return
        wait_s = self._next_try - boot_s()
        if wait_s > 0:
            raise DurableUnavailableError(
                f"the server could not be reached {self.failures} times in a row, the next try is in {wait_s:.1f} s "
                f"({self._last})"
            )
        self._next_try = boot_s() + self._pause_s  # this caller tries, the others wait for what it finds

    def note(self, error: BaseException | None, began: float) -> None:
        """Take how a try went that began then, on the boot clock: None for well, or what was raised.

        Tries that are under way together when something breaks fail together: that is one failure.
        """
        if error is None:
            self.failures = 0
        elif began > self._failed_at and isinstance(
            error, ConnectionLostError | DurableTimeoutError | DurableUnavailableError
        ):
            self.failures += 1
            self._failed_at = boot_s()
            self._last = str(error)
            if self.failures == self._limit:
                self.opened += 1
                self._next_try = boot_s() + self._pause_s
