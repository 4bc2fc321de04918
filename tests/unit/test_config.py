"""Settings: where a value comes from, and what each bad value is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import ConfigurationError, Limits, MemoryStore, Settings
from memory_store.config import check_namespace, resolve_settings
from memory_store.durable.engine import ServerTarget, parse_url

# For each setting: text as the environment or a URL has it, its value, and two others of the right form.
FORMS: dict[str, tuple[str, Any, str, Any, Any]] = {
    "migrate": ("check", "check", "check", "check", "auto"),
    "freshness": ("linearizable", "linearizable", "linearizable", "linearizable", "bounded"),
    "staleness_s": ("0.5", 0.5, "0", 0.0, 3.0),
    "outage_staleness_s": ("1.5", 1.5, "0", 0.0, 3.0),
    "timeout_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "statement_timeout_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "transaction_timeout_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "cache_max_bytes": ("1000", 1000, "2000", 2000, 3000),
    "cache_path": ("a", "a", "b", "b", "c"),
    "cache_save_interval_s": ("0", 0.0, "2", 2.0, 3.0),
    "cache_version": ("a", "a", "b", "b", "c"),
    "ttl_s": ('{"step": 60}', {"step": 60}, '{"step": 61.5}', {"step": 61.5}, {"step": 62}),
    "limits": ('{"key_bytes": 8}', Limits(key_bytes=8), '{"key_bytes": 9}', Limits(key_bytes=9), Limits(key_bytes=10)),
    "actor": ("a", "a", "b", "b", "c"),
    "shared_cache": ("redis://a", "redis://a", "unix:///b", "unix:///b", "rediss://c"),
    "shared_cache_timeout_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "heads": ("1", 1, "2", 2, 256),
    "pool_size": ("1", 1, "2", 2, 3),
    "pool_timeout_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "pool_lifetime_s": ("1.5", 1.5, "2", 2.0, 3.0),
    "replica_url": ("postgresql://a/b", "postgresql://a/b", "postgresql://c/d", "postgresql://c/d", "postgresql://e/f"),
    "pooler": ("true", True, "Off", False, True),
    "hints": ("false", False, "On", True, False),
    "breaker_failures": ("1", 1, "2", 2, 3),
    "breaker_pause_s": ("0", 0.0, "2", 2.0, 3.0),
    "telemetry": ("true", True, "Off", False, True),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for item in fields(Settings):
        monkeypatch.delenv(f"MEMORY_STORE_{item.name.upper()}", raising=False)


def test_every_setting_has_a_form_here() -> None:
    assert set(FORMS) == {item.name for item in fields(Settings)}


@pytest.mark.parametrize("name", FORMS)
def test_precedence_rises_from_default_to_keyword(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, in_environment, url, in_url, keyword = FORMS[name]
    assert getattr(resolve_settings({}, {}), name) == getattr(Settings(), name)
    monkeypatch.setenv(f"MEMORY_STORE_{name.upper()}", environment)
    assert getattr(resolve_settings({}, {}), name) == in_environment
    assert getattr(resolve_settings({name: url}, {}), name) == in_url
    assert getattr(resolve_settings({name: url}, {name: keyword}), name) == keyword


def test_a_url_carries_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_STORE_TIMEOUT_S", "7")
    store = MemoryStore("sqlite:///agent.db?actor=robot&cache_max_bytes=0&timeout_s=4", actor="me")
    assert (store._settings.actor, store._settings.cache_max_bytes, store._settings.timeout_s) == ("me", 0, 4.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("migrate", "never", r'migrate must be "auto" or "check", got \'never\''),
        ("freshness", "eventual", r'freshness must be "bounded" or "linearizable", got \'eventual\''),
        ("freshness", None, 'freshness must be "bounded" or "linearizable", got None'),
        ("staleness_s", -0.01, "staleness_s must be at least 0, got -0.01"),
        ("staleness_s", float("inf"), "staleness_s must be a finite number, got inf"),
        ("staleness_s", "0.05", "staleness_s must be a finite number, got '0.05'"),
        ("timeout_s", 0, "timeout_s must be greater than 0, got 0"),
        ("timeout_s", -1, "timeout_s must be greater than 0, got -1"),
        ("timeout_s", float("inf"), "timeout_s must be a finite number, got inf"),
        ("timeout_s", float("nan"), "timeout_s must be a finite number, got nan"),
        ("timeout_s", "30", "timeout_s must be a finite number, got '30'"),
        ("timeout_s", True, "timeout_s must be a finite number, got True"),
        ("transaction_timeout_s", 0, "transaction_timeout_s must be greater than 0"),
        ("statement_timeout_s", 0, "statement_timeout_s must be greater than 0"),
        ("pool_timeout_s", 0, "pool_timeout_s must be greater than 0"),
        ("pool_lifetime_s", -1, "pool_lifetime_s must be greater than 0"),
        ("breaker_pause_s", -1, "breaker_pause_s must be at least 0"),
        ("heads", 0, "heads must be an integer from 1 to 256, got 0"),
        ("heads", 257, "heads must be an integer from 1 to 256, got 257"),
        ("heads", 16.0, "heads must be an integer from 1 to 256, got 16.0"),
        ("pool_size", True, "pool_size must be an integer from 1 to 1,000, got True"),
        ("pool_size", 1001, "pool_size must be an integer from 1 to 1,000, got 1001"),
        ("outage_staleness_s", -1, "outage_staleness_s must be at least 0, got -1"),
        ("shared_cache", "", "shared_cache must be a URL with redis://, rediss:// or unix://, or None"),
        ("shared_cache", "http://host", "shared_cache must be a URL with redis://, rediss:// or unix://, or None"),
        ("shared_cache", 5, "shared_cache must be a URL with redis://, rediss:// or unix://, or None"),
        ("shared_cache_timeout_s", 0, "shared_cache_timeout_s must be greater than 0, got 0"),
        ("pooler", 1, "pooler must be True or False, got 1"),
        ("hints", None, "hints must be True or False, got None"),
        ("breaker_failures", 0, "breaker_failures must be an integer from 1 to 1,000,000, got 0"),
        ("cache_max_bytes", -1, "cache_max_bytes must be at least 0, got -1"),
        ("cache_max_bytes", None, "cache_max_bytes must be a finite number, got None"),
        ("cache_save_interval_s", -0.5, "cache_save_interval_s must be at least 0, got -0.5"),
        ("ttl_s", {"step": 0}, r"ttl_s\['step'\] must be greater than 0, got 0"),
        ("ttl_s", {"step": "1"}, r"ttl_s\['step'\] must be a finite number, got '1'"),
        ("limits", {"key_bytes": 8}, "limits must be a memory_store.Limits, got dict"),
        ("cache_version", "ü" * 129, "cache_version must be text of at most 256 bytes"),
        ("telemetry", 1, "telemetry must be True or False, got 1"),
        ("telemetry", "true", "telemetry must be True or False, got 'true'"),
        ("actor", 5, "actor must be text of at most 256 bytes, got 5"),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve_settings({}, {name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timeout_s", "soon"),
        ("staleness_s", "50ms"),
        ("telemetry", "maybe"),
        ("telemetry", ""),
        ("cache_max_bytes", "1.5"),
        ("cache_max_bytes", ""),
        ("heads", "16.0"),
        ("heads", "many"),
        ("pool_size", ""),
        ("ttl_s", "60"),
        ("ttl_s", "{"),
        ("limits", '{"key_bites": 1}'),
        ("limits", "[]"),
    ],
)
def test_text_of_a_wrong_form_says_where_it_came_from(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=f"^URL parameter {name} has the wrong form: "):
        resolve_settings({name: text}, {})
    monkeypatch.setenv(f"MEMORY_STORE_{name.upper()}", text)
    with pytest.raises(
        ConfigurationError, match=f"^environment variable MEMORY_STORE_{name.upper()} has the wrong form: "
    ):
        resolve_settings({}, {})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="unknown URL parameter 'timeout'; known: migrate, freshness, staleness_s, outage_stal"
    ):
        MemoryStore("sqlite:///agent.db?timeout=5")
    with pytest.raises(
        TypeError, match="unknown setting 'timeout'; known: migrate, freshness, staleness_s, outage_stal"
    ):
        MemoryStore("sqlite:///agent.db", timeout=5)
    with pytest.raises(ConfigurationError, match="ttl_s names unknown kind 'stepp'; known: episode, step"):
        MemoryStore("sqlite:///agent.db", ttl_s={"stepp": 5})


@pytest.mark.parametrize("name", [item.name for item in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9", None])
def test_a_limit_is_a_positive_integer(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"limits\.{name} must be a positive integer, got {value!r}"):
        Limits(**{name: value})


def test_the_depth_of_json_is_bounded_by_what_can_be_read_back() -> None:
    assert Limits(json_depth=500).json_depth == 500
    with pytest.raises(ConfigurationError, match=r"limits\.json_depth must be at most 500, got 501"):
        Limits(json_depth=501)
    json.loads("[" * 500 + "]" * 500)


@given(st.text("abcXYZ019._:/-", min_size=1, max_size=200))
def test_a_namespace_is_returned_as_it_is(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 201, "a b", "a\n", "ä", "a'b", 'a"b', "a;b", "a\0b", "%2e", "\U0001f600", "a\\b", "x\u0660"]
)
def test_a_bad_namespace_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not 1 to 200 characters of A-Z a-z 0-9 \. _ : / -") as caught:
        check_namespace(name)
    assert caught.value.namespace == name[:200]
    with pytest.raises(ConfigurationError):
        MemoryStore("sqlite:///agent.db", namespace=name)
    with pytest.raises(ConfigurationError):
        MemoryStore("sqlite:///agent.db").namespace(name)


@pytest.mark.parametrize("name", [None, 5, b"a", ["a"]])
def test_a_namespace_of_a_wrong_type_is_a_type_error(name: Any) -> None:
    for use in (check_namespace, MemoryStore("sqlite:///agent.db").namespace):
        call: Callable[[Any], object] = use
        with pytest.raises(TypeError, match="namespace must be a str, got "):
            call(name)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("agent.db", "not a database URL: 'agent.db'; try sqlite:///agent.db"),
        ("", "not a database URL"),
        (
            "mysql://localhost/x",
            "database 'mysql' is not supported; use sqlite:///path or postgresql://user@host/database",
        ),
        (
            "postgresql+psycopg://localhost/x",
            r"driver 'psycopg' is not supported; use postgresql:// or postgresql\+asyncpg",
        ),
        ("postgresql://me:secret@localhost", "a PostgreSQL URL names a database: postgresql://user@host/database"),
        ("postgresql://me:secret@localhost:port/x", "not a database URL"),
        ("sqlite+pysqlite:///x", r"driver 'pysqlite' is not supported; use sqlite:///path or sqlite\+aiosqlite"),
        ("sqlite://agent.db", "a SQLite URL has no host or user: .*three slashes for a relative path"),
        ("sqlite://me:secret@host/agent.db", "a SQLite URL has no host or user"),
        ("sqlite:///file:agent.db", "not a plain path"),
        ("sqlite:///a\0b", "not a plain path"),
        ("sqlite://host:port/agent.db", "not a database URL"),
    ],
)
def test_a_bad_url_is_told_what_is_wrong(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_urls_name_a_file_or_memory() -> None:
    assert parse_url("sqlite:////a/b.db?timeout_s=5").path == "/a/b.db"
    assert parse_url("sqlite:////a/b.db?timeout_s=5").parameters == {"timeout_s": "5"}
    assert parse_url("sqlite+aiosqlite:////a/b.db") == parse_url("sqlite:////a/b.db")
    for memory in ("sqlite:///:memory:", "sqlite://", "sqlite+aiosqlite:///:memory:"):
        assert parse_url(memory).memory
    with pytest.raises(TypeError, match="url must be a str or sqlalchemy URL, got PosixPath"):
        parse_url(Path("agent.db"))  # type: ignore[arg-type]


def test_a_server_url_tells_the_stores_settings_from_the_servers() -> None:
    target = parse_url("postgresql://me:secret@host:6000/agents?pool_size=3&connect_timeout=9&heads=4&sslmode=require")
    assert isinstance(target, ServerTarget)
    assert target.parameters == {"pool_size": "3", "heads": "4"}
    assert dict(target.url.query) == {"sslmode": "require", "connect_timeout": "9"}
    assert target.dsn == "postgresql://me:secret@host:6000/agents?connect_timeout=9&sslmode=require"
    assert "secret" not in target.name
    assert target.name.endswith("host:6000/agents")
    for name in ("postgresql+asyncpg", "postgres"):
        same = parse_url(f"{name}://me:secret@host:6000/agents?connect_timeout=9&sslmode=require")
        assert isinstance(same, ServerTarget)
        assert (same.dsn, same.name) == (target.dsn, target.name)
