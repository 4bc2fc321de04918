"""The way to OpenTelemetry.

It is imported when a store asks for it, and only its API: what is done with spans and metrics is up to the SDK that the
application sets up. Metrics are asked for, not told: their callbacks read the store's own statistics, so reads pay
nothing for them. Only distributions are told, once a batch, because OpenTelemetry has no histogram that is asked for.

What an application's samplers, processors and exporters raise is logged and goes no further: a write must not fail, and
the writer not stop, because nobody can be told of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from memory_store.errors import ConfigurationError
from memory_store.instruments import Metric, instruments

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext
    from opentelemetry.trace import Span as OtelSpan

__all__ = ["Span", "Telemetry", "spanned"]

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")

_LOG = logging.getLogger("memory_store")


def _harmless(method: Callable[P, None]) -> Callable[P, None]:
    """Log what a method raises, and go on."""

    @wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            method(*arguments, **named)
        except Exception:
            _LOG.exception("OpenTelemetry failed")

    return call


class Span:
    """Something that takes time, from its making until `end`. It can be used on any thread."""

    __slots__ = ("_span",)

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @_harmless
    def set(self, **attributes: str | int | float) -> None:
        """Say more about it."""
        for name, value in attributes.items():
            self._span.set_attribute(f"memory_store.{name}", value)

    @_harmless
    def note(self, error: BaseException) -> None:
        """Note an error that it got over."""
        self._span.record_exception(error)

    @_harmless
    def end(self, error: BaseException | None = None) -> None:
        """End it, with the error it failed with."""
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.end()

    def current(self) -> AbstractContextManager[Any]:
        """Make it the parent of the spans that are made in the block."""
        from opentelemetry.trace import use_span

        return use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False)

    def around(self, function: Callable[[C], T]) -> Callable[[C], T]:
        """Return the function with this span as its current one."""

        def run(argument: C) -> T:
            with self.current():
                return function(argument)

        return run


class _NoSpan(Span):
    """Stands in where nothing is recorded."""

    __slots__ = ()

    def __init__(self) -> None:
        """Take nothing."""

    def set(self, **attributes: str | int | float) -> None:
        """Do nothing."""


_OFF = nullcontext(_NoSpan())


def spanned(telemetry: Telemetry | None, name: str) -> AbstractContextManager[Span]:
    """Return `telemetry.span(name)`, or a block that records nothing where there is no telemetry."""
    return _OFF if telemetry is None else telemetry.span(name)


class Telemetry:
    """One store's way to OpenTelemetry.

    Args:
        database: names it in spans and metrics (`db.namespace`).
        system: what it is, as `db.system.name`.

    Raises:
        ConfigurationError: the package is not installed.
    """

    def __init__(self, database: str, system: str = "sqlite") -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise ConfigurationError(
                'telemetry=True needs OpenTelemetry: pip install "memory-store[telemetry]"'
            ) from error
        self.database = database
        self.attributes: dict[str, str | int] = {"db.system.name": system, "db.namespace": database}
        self._tracer = trace.get_tracer("memory_store", version("memory-store"))
        self._histograms = instruments().histograms
        self._read: Callable[[], Any] | None = None

    def observe(self, metrics: Sequence[Metric], read: Callable[[], Any]) -> None:
        """Let OpenTelemetry ask for metrics, on any of its threads, until `close`.

        Args:
            metrics: the same for every store of a process.
            read: returns the store's statistics; must not fail.
        """
        self._read = read
        instruments().add(self, metrics)

    def close(self) -> None:
        """Tell nothing more to metrics."""
        self._read = None
        instruments().remove(self)

    def values(self, metric: Metric) -> list[tuple[float, dict[str, str | int]]]:
        """Return what a metric is now, each value with its attributes."""
        read = self._read
        value = None if read is None else metric.read(read())
        if value is None:
            return []
        if isinstance(value, Mapping):
            return [(number, {**self.attributes, "kind": kind}) for kind, number in value.items()]
        return [(value, self.attributes)]

    @_harmless
    def record(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._histograms[name].record(value, self.attributes)

    def caller(self) -> SpanContext | None:
        """Return the span that is current here, None for none."""
        from opentelemetry.trace import get_current_span

        found = get_current_span().get_span_context()
        return found if found.is_valid else None

    def begin(self, name: str, callers: Iterable[SpanContext | None], **attributes: int) -> Span:
        """Begin what is done for callers: their span's child where it is one, else linked to all of theirs."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, NonRecordingSpan, set_span_in_context

        # By number: a span's context cannot be hashed.
        distinct = list({caller and (caller.trace_id, caller.span_id): caller for caller in callers}.values())
        context, links = Context(), list[Link]()
        if len(distinct) == 1 and distinct[0] is not None:
            context = set_span_in_context(NonRecordingSpan(distinct[0]), context)
        else:
            links = [Link(caller) for caller in distinct if caller is not None]
        said = self.attributes | {f"memory_store.{name}": value for name, value in attributes.items()}
        return self._start(name, context, said, links)

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Record the block, as part of the current span; what it raises is recorded as well."""
        span = self._start(name, None, self.attributes, [])
        with span.current():
            try:
                yield span
            except asyncio.CancelledError:
                span.set(cancelled=True)
                span.end()
                raise
            except BaseException as error:
                span.end(error)
                raise
            span.end()

    def _start(
        self, name: str, context: Context | None, attributes: Mapping[str, str | int], links: Sequence[Link]
    ) -> Span:
        try:
            return Span(self._tracer.start_span(name, context, attributes=attributes, links=links))
        except Exception:
            from opentelemetry.trace import INVALID_SPAN

            _LOG.exception("OpenTelemetry failed")
            return Span(INVALID_SPAN)
