"""The instruments of OpenTelemetry, one of each in a process: it never takes one back, and stores come and go."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

__all__ = ["Instruments", "Metric", "Source", "instruments"]

_INSTANCE = "memory_store.instance"


class Metric(NamedTuple):
    """A measure that OpenTelemetry asks for.

    Args:
        name: as in the semantic conventions, "memory_store.cache.hits".
        instrument: "counter" for what only grows, "sum" for amounts that add up, "gauge" for what does not.
        unit: as UCUM writes it.
        description: one sentence.
        read: takes it from a store's statistics: a number, a number for each kind, or None for nothing to tell.
    """

    name: str
    instrument: Literal["counter", "sum", "gauge"]
    unit: str
    description: str
    read: Callable[[Any], float | Mapping[str, int] | None]


class Source(Protocol):
    """An open store, as OpenTelemetry asks it."""

    database: str
    attributes: dict[str, str | int]
    """Go with each of its values."""

    def values(self, metric: Metric) -> list[tuple[float, dict[str, str | int]]]:
        """Return what a metric is now, each value with its attributes."""
        ...


# Where the values of a histogram are told apart; OpenTelemetry's own boundaries are made for milliseconds.
_SECONDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
_POWERS = [2.0**n for n in range(10)]
_HISTOGRAMS = (
    ("memory_store.commit.duration", "s", "Time of a group commit, from its begin to its end on disk.", _SECONDS),
    ("memory_store.commit.writes", "{write}", "Writes that shared a group commit.", _POWERS),
    ("memory_store.read.keys", "{key}", "Keys read together from the database.", _POWERS),
)


class Instruments:
    """What all stores of a process share."""

    def __init__(self) -> None:
        from opentelemetry.metrics import get_meter

        self._meter: Meter = get_meter("memory_store", version("memory-store"))
        self.histograms = {
            name: self._meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
            for name, unit, description, bounds in _HISTOGRAMS
        }
        self._lock = threading.Lock()
        self._known: set[str] = set()
        # Weak, so that a store that is dropped without being closed can go.
        self._open: list[weakref.ref[Source]] = []

    def add(self, source: Source, metrics: Sequence[Metric]) -> None:
        """Ask a store from now on; the metrics are the same for all of them."""
        with self._lock:
            others = self.open()
            # Two open stores on one file, as on two event loops, must not answer under the same name.
            taken = [other.attributes.get(_INSTANCE, 1) for other in others if other.database == source.database]
            number = next(number for number in range(1, len(taken) + 2) if number not in taken)
            if number > 1:
                source.attributes[_INSTANCE] = number
            self._open = [weakref.ref(each) for each in (*others, source)]
            new = [metric for metric in metrics if metric.name not in self._known]
            self._known.update(metric.name for metric in new)
        for metric in new:  # outside the lock: an SDK that asks holds one of its own
            self._create(metric)

    def remove(self, source: Source) -> None:
        """Ask a store no more."""
        with self._lock:
            self._open = [weakref.ref(other) for other in self.open() if other is not source]

    def open(self) -> list[Source]:
        """Return the stores that are asked."""
        return [source for reference in self._open if (source := reference()) is not None]

    def _create(self, metric: Metric) -> None:
        from opentelemetry.metrics import Observation

        def answer(_options: CallbackOptions) -> list[Observation]:
            return [Observation(value, known) for source in self.open() for value, known in source.values(metric)]

        create = {
            "counter": self._meter.create_observable_counter,
            "sum": self._meter.create_observable_up_down_counter,
            "gauge": self._meter.create_observable_gauge,
        }[metric.instrument]
        create(metric.name, [answer], metric.unit, metric.description)

    def forget(self) -> None:
        """In a forked child: its copies of the stores are the parent's, and a lock may have been held."""
        self._lock, self._open = threading.Lock(), []


_MAKING = threading.Lock()
_MADE: list[Instruments] = []


def instruments() -> Instruments:
    """Return the process's instruments; OpenTelemetry must be installed."""
    with _MAKING:
        if not _MADE:
            _MADE.append(Instruments())
        return _MADE[0]


def _forget() -> None:
    global _MAKING
    _MAKING = threading.Lock()
    for made in _MADE:
        made.forget()


os.register_at_fork(after_in_child=_forget)
