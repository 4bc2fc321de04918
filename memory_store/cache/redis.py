"""Redis behind the shared cache level: short timeouts, one step for all that belongs together, and no try in vain.

Reading is one MGET, which sees all its keys at one moment; writing is one script. After some failures in a row nobody
asks any more, and a task of its own finds out when the server is back: so an outage costs a caller one timeout at most,
and a server that was never there costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Awaitable, Sequence
from types import ModuleType
from typing import Any, TypeVar

from memory_store.cache.shared import Put
from memory_store.errors import CacheError, ConfigurationError

__all__ = ["RedisLink"]

T = TypeVar("T")

# A shard has one request under way to read and one to write; more connections would only queue on the server.
_CONNECTIONS = 4
_FAILURES = 3
# One greeting less than with the newer protocol, which has nothing for us. The URL can ask for it.
_PLAIN = {"protocol": 2}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
# Nobody waits for it, and setting up TLS to another town takes longer than a read may.
_CONNECT_S = 2.0
# Longer than entries live, so that a store nobody uses any more leaves nothing behind.
_MARK_TTL_MS = 7 * 24 * 3600 * 1000

# Every prefix of these steps is right by itself, should one fail for want of memory: what is removed is a miss, and the
# watermark is set after the removals and before the puts.
_SCRIPT = """
local mark = redis.pcall('GET', KEYS[1])
if type(mark) == 'table' then
  redis.call('DEL', KEYS[1])
  mark = ''
end
mark = mark or ''
if mark ~= ARGV[1] then return mark end
local gone = tonumber(ARGV[3])
for i = 2, gone + 1 do redis.call('UNLINK', KEYS[i]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
local at = 5
for i = gone + 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[at], 'PX', ARGV[at + 1])
  at = at + 2
end
return ARGV[2]
"""


def sha_of(script: str) -> str:
    """Return what Redis calls a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


_SHA = sha_of(_SCRIPT)


class RedisLink:
    """One process's connections to a Redis server.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as the Python client understands it.
        timeout_s: longest wait for an answer.
        version_key: what entries there must have been written with.

    Raises:
        ConfigurationError: the client is not installed, or cannot read the URL.
    """

    def __init__(self, url: str, timeout_s: float, version_key: str) -> None:
        self._redis = _client()
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self.timeout_s, self.version_key = timeout_s, version_key
        self.up = False
        self.failures = self.outages = 0
        """Requests that failed, and how often so many did in a row that the server was left alone."""
        self.error = ""
        """What went wrong last."""
        self._in_a_row = {"read": 0, "replace": 0}
        self._coming_back: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        try:
            pool: Any = self._redis.asyncio.BlockingConnectionPool.from_url(
                url, max_connections=_CONNECTIONS, timeout=None, **_PLAIN
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError("shared_cache is no URL of a Redis server") from error
        # Over the URL's own: what is read are bytes, deadlines are kept here, and nothing is tried twice.
        pool.connection_kwargs.update(
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=None,
            health_check_interval=0,
        )
        self._client: Any = self._redis.asyncio.Redis.from_pool(pool)

    def start(self) -> None:
        """Begin to connect."""
        self._coming_back = asyncio.create_task(self._come_back(0.0), name="memory_store shared cache")

    async def wait(self) -> None:
        """Wait until the first connection stands, no longer than for an answer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), self.timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        self.up = False
        if self._coming_back is not None:
            self._coming_back.cancel()
            await asyncio.wait({self._coming_back})
        await self._client.aclose()

    async def read(self, names: Sequence[bytes], within_s: float) -> list[bytes | None]:
        """Return the values of some names as they were at one moment; see `Link.read`."""
        values: list[bytes | None] = await self._call("read", self._client.mget(names), within_s)
        if len(values) != len(names):
            raise CacheError("Redis answered another question")
        return values

    async def replace(
        self, mark: bytes, expected: bytes, new: bytes, gone: Sequence[bytes], puts: Sequence[Put]
    ) -> bytes:
        """Compare and set a watermark with all that belongs to it; see `Link.replace`."""
        keys = [mark, *gone, *(put.name for put in puts)]
        values = [value for put in puts for value in (put.value, put.ttl_ms)]
        arguments = [expected, new, len(gone), _MARK_TTL_MS, *values]
        answer: bytes = await self._call("replace", self._evaluate(keys, arguments), self.timeout_s)
        return answer

    async def _evaluate(self, keys: list[bytes], arguments: list[Any]) -> Any:
        try:
            return await self._client.evalsha(_SHA, len(keys), *keys, *arguments)
        except self._redis.exceptions.NoScriptError:  # the server is new, or was restarted
            return await self._client.eval(_SCRIPT, len(keys), *keys, *arguments)

    async def _call(self, what: str, request: Awaitable[T], within_s: float) -> T:
        try:
            async with asyncio.timeout(max(within_s, 0)):
                answer = await request
        # Whatever it is: a server that is gone, out of memory or not ours, or a client that stumbled over its answer.
        except Exception as error:
            self._failed(what, error)
            raise CacheError(f"the shared cache does not answer: {type(error).__name__}: {error}") from error
        self._in_a_row[what] = 0
        return answer

    def _failed(self, what: str, error: Exception) -> None:
        self._note(error)
        self._in_a_row[what] += 1
        if self.up and self._in_a_row[what] >= _FAILURES:
            self.up = False
            self.outages += 1
            self._coming_back = asyncio.create_task(self._come_back(_FIRST_PAUSE_S), name="memory_store shared cache")

    def _note(self, error: Exception) -> None:
        self.failures += 1
        self.error = f"{type(error).__name__}: {error}"

    async def _come_back(self, pause_s: float) -> None:
        """Ask until the server answers, with growing pauses, each of another length in each process."""
        while not self.up:
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - spreads processes, guards nothing
            pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await self._client.ping()
            except Exception as error:  # as in `_call`
                self._note(error)
            else:
                self._in_a_row = dict.fromkeys(self._in_a_row, 0)
                self.up = True
            self._tried.set()


def _client() -> ModuleType:
    try:
        import redis.asyncio
        import redis.exceptions
    except ImportError as error:
        raise ConfigurationError("shared_cache needs the Redis client: pip install 'memory-store[redis]'") from error
    return redis
