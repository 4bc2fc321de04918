"""Settings: what can be set, the defaults, and where a value comes from.

Rising precedence: default, `MEMORY_STORE_<NAME>` environment variable, URL parameter (`sqlite:///agent.db?timeout_s=5`),
keyword argument of `MemoryStore`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from memory_store.errors import ConfigurationError

__all__ = ["DEFAULT_HEADS", "Freshness", "Limits", "Settings", "check_freshness", "check_namespace", "resolve_settings"]

MIB = 1024 * 1024

DEFAULT_HEADS = 16
"""Heads of a new database on a server: namespaces of different heads do not wait for each other's commits."""

Freshness = Literal["bounded", "linearizable"]
"""How fresh a read must be: at most `staleness_s` behind other processes, or not at all behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest values the store accepts; a larger one is an `InvalidRecordError` before anything is written.

    Args:
        episode_bytes: one episode, all its fields together, as stored (UTF-8).
        step_bytes: a step's `action` and `result`, each, as stored (UTF-8).
        pattern_bytes: one pattern, all its fields together, as stored (UTF-8).
        content_bytes: an embedding's `content`, as stored (UTF-8).
        embedding_dimensions: numbers in one embedding.
        json_depth: nesting of JSON values.
        key_bytes: ids and every short, indexed text (task type, domain, tool name, spatial key, ...), in UTF-8.
    """

    episode_bytes: int = 10 * MIB
    step_bytes: int = MIB
    pattern_bytes: int = MIB
    content_bytes: int = MIB
    embedding_dimensions: int = 8192
    json_depth: int = 64
    key_bytes: int = 256

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"limits.{item.name} must be a positive integer, got {value!r}")
        # json.loads recurses: past this depth a stored value could not be read back on a default interpreter.
        if self.json_depth > 500:
            raise ConfigurationError(f"limits.json_depth must be at most 500, got {self.json_depth}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set on a store.

    Args:
        migrate: "auto" upgrades an older database on opening (default), "check" refuses it with `SchemaMismatchError`.
        freshness: what a read may miss of other processes' writes: "bounded" (default), those of the last `staleness_s`
            seconds; "linearizable", none. Own writes are always seen. Each read may ask for the other.
        staleness_s: the bound, in seconds; 0 is as "linearizable".
        outage_staleness_s: the same bound while a server cannot be reached; 0 refuses such reads. Never for
            "linearizable" ones, nor after a commit whose outcome is unknown.
        timeout_s: longest wait for a lock that another program holds on the database, in seconds.
        statement_timeout_s: longest run of one statement on a server, in seconds.
        transaction_timeout_s: longest life of one `store.transaction()`, in seconds; it is rolled back after that,
            because it keeps every other writer waiting.
        cache_max_bytes: memory budget of the cache tier, in bytes, bookkeeping included; 0 caches nothing.
        cache_path: folder of the saved cache. None puts it beside the database file (`agent.db.cache/`); "" saves none.
        cache_save_interval_s: seconds between two saves of the cache; 0 saves on close only.
        cache_version: your own part of the version key: change it and every saved cache is rebuilt.
        shared_cache: URL of a Redis server whose memory the processes of one database share as a second cache level
            (`redis://`, `rediss://`, `unix://`); None for none. It is asked on a miss. It can be lost at any time.
        shared_cache_timeout_s: longest wait for it, in seconds; what takes longer is read from the database.
        ttl_s: seconds a kind stays cached, by kind, where it differs from the kind's own default.
        limits: the largest values accepted.
        actor: who is written into the change log as the author of the changes.
        heads: heads a new database on a server gets, 1 to 256; one that exists keeps its own. Each namespace has one by
            a hash of its name, and commits of namespaces that share a head wait for each other.
        pool_size: connections to a server, at most.
        pool_timeout_s: longest wait for one of them to be free, in seconds.
        pool_lifetime_s: how long one of them is used, in seconds.
        replica_url: a read replica of the server's database. Gets that miss the cache and lists go there first, and to
            the primary where it is behind what this process has seen, or cannot be reached.
        pooler: whether the server is reached through a pooler that gives each transaction another connection, such as
            PgBouncer in transaction mode.
        hints: whether processes tell each other of their commits by NOTIFY, so that caches and feeds hear of them
            sooner than by looking; each process keeps a connection more.
        breaker_failures: failures in a row to reach the server after which callers are told at once.
        breaker_pause_s: seconds after which one of them tries again.
        telemetry: whether metrics and spans go to OpenTelemetry, which must be installed then.
    """

    migrate: Literal["auto", "check"] = "auto"
    freshness: Freshness = "bounded"
    staleness_s: float = 0.05
    outage_staleness_s: float = 0.0
    timeout_s: float = 30.0
    statement_timeout_s: float = 300.0
    transaction_timeout_s: float = 30.0
    cache_max_bytes: int = 100 * MIB
    cache_path: str | None = None
    cache_save_interval_s: float = 300.0
    cache_version: str = ""
    shared_cache: str | None = None
    shared_cache_timeout_s: float = 0.05
    ttl_s: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    actor: str = ""
    heads: int = DEFAULT_HEADS
    pool_size: int = 10
    pool_timeout_s: float = 30.0
    pool_lifetime_s: float = 3600.0
    replica_url: str | None = None
    pooler: bool = False
    hints: bool = True
    breaker_failures: int = 5
    breaker_pause_s: float = 30.0
    telemetry: bool = False

    def __post_init__(self) -> None:
        if self.migrate not in ("auto", "check"):
            raise ConfigurationError(f'migrate must be "auto" or "check", got {self.migrate!r}')
        if check_freshness(self.freshness) is None:
            raise ConfigurationError('freshness must be "bounded" or "linearizable", got None')
        for name in ("staleness_s", "outage_staleness_s"):
            _require_number(name, getattr(self, name), least=0)
        for name in ("timeout_s", "statement_timeout_s", "transaction_timeout_s", "pool_timeout_s", "pool_lifetime_s"):
            _require_number(name, getattr(self, name), above=0)
        _require_number("shared_cache_timeout_s", self.shared_cache_timeout_s, above=0)
        for name, most in (("heads", 256), ("pool_size", 1000), ("breaker_failures", 1_000_000)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigurationError(f"{name} must be an integer from 1 to {most:,}, got {value!r:.80}")
        for name in ("cache_max_bytes", "cache_save_interval_s", "breaker_pause_s"):
            _require_number(name, getattr(self, name), least=0)
        for kind, seconds in self.ttl_s.items():
            _require_number(f"ttl_s[{kind!r}]", seconds, above=0)
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"limits must be a memory_store.Limits, got {type(self.limits).__name__}")
        if self.shared_cache is not None and not _SHARED_CACHE.match(str(self.shared_cache)):
            raise ConfigurationError("shared_cache must be a URL with redis://, rediss:// or unix://, or None")
        for name in ("telemetry", "pooler", "hints"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, got {getattr(self, name)!r:.80}")
        for name in ("cache_version", "actor"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > 256:
                raise ConfigurationError(f"{name} must be text of at most 256 bytes, got {value!r:.80}")


def check_freshness(freshness: Freshness | None) -> Freshness | None:
    """Return the freshness if it is one, or None.

    Raises:
        ConfigurationError: it is none.
    """
    if freshness not in ("bounded", "linearizable", None):
        raise ConfigurationError(f'freshness must be "bounded" or "linearizable", got {freshness!r:.80}')
    return freshness


def _require_number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value < float("inf"):
        raise ConfigurationError(f"{name} must be a finite number, got {value!r}")
    if above is not None and not value > above:
        raise ConfigurationError(f"{name} must be greater than {above:g}, got {value!r}")
    if least is not None and not value >= least:
        raise ConfigurationError(f"{name} must be at least {least:g}, got {value!r}")


_SHARED_CACHE = re.compile(r"(rediss?|unix)://.")
_NAMESPACE = re.compile(r"[A-Za-z0-9._:/-]{1,200}")


def check_namespace(namespace: str) -> str:
    """Return the namespace if it is one.

    Raises:
        ConfigurationError: it is not 1 to 200 characters of `A-Z a-z 0-9 . _ : / -`.
    """
    if not isinstance(namespace, str):
        raise TypeError(f"namespace must be a str, got {type(namespace).__name__}")
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            f"namespace {namespace[:80]!r} ({len(namespace)} characters) is not 1 to 200 characters of "
            "A-Z a-z 0-9 . _ : / -",
            namespace=namespace[:200],
        )
    return namespace


def resolve_settings(url_parameters: Mapping[str, str], keywords: Mapping[str, Any]) -> Settings:
    """Return the settings after environment, URL parameters and keywords have been applied in rising precedence.

    Raises:
        ConfigurationError: a name is unknown or a value has the wrong form; the message says where it came from.
        TypeError: a keyword argument is unknown.
    """
    known = [item.name for item in fields(Settings)]
    unknown = sorted(set(keywords) - set(known))
    if unknown:
        raise TypeError(f"unknown setting {unknown[0]!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for name in known:
        variable = f"MEMORY_STORE_{name.upper()}"
        if variable in os.environ:
            values[name] = _parse(name, os.environ[variable], source=f"environment variable {variable}")
    for name, text in url_parameters.items():
        if name not in known:
            raise ConfigurationError(f"unknown URL parameter {name!r}; known: {', '.join(known)}")
        values[name] = _parse(name, text, source=f"URL parameter {name}")
    values.update(keywords)
    return Settings(**values)


def _parse(name: str, text: str, *, source: str) -> Any:
    hint = get_type_hints(Settings)[name]
    try:
        if hint is int:
            return int(text)
        if hint is float:
            return float(text)
        if hint is bool:
            return _parse_bool(text)
        if name == "limits":
            return Limits(**_parse_object(text))
        if name == "ttl_s":
            return _parse_object(text)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{source} has the wrong form: {text[:80]!r} ({error})") from error
    return text


def _parse_bool(text: str) -> bool:
    word = text.lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("expected true or false")
    return word in ("1", "true", "yes", "on")


def _parse_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object such as {"episode": 60}')
    return value
