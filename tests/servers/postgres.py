"""PostgreSQL servers that a test may start, kill, restart and fail over."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal, Self

import psutil
from sqlalchemy.engine import URL

from tests.servers.databases import PostgresDatabases, Strategy
from tests.servers.guarded import STOP_S, Guard, GuardedServer
from tests.servers.installation import account, free_port, postgres_programs, short_folder

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_S = 60.0

# Small, and with all its memory in its own folder: a server that was killed leaves nothing in /dev/shm.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_keep_size": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
}
# A crash of the machine would lose data under these, but a killed server keeps what it acknowledged: switching
# `synchronous_commit` off as well would save no more than 12 of 95 us a transaction once nothing is synced.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer(PostgresDatabases, GuardedServer):
    """A cluster of its own on a Unix socket and on 127.0.0.1; it never outlives this process.

    Args:
        folder: Where the cluster is made. By default a temporary folder, removed by `close`; a given one stays. For
            root it must be where the user `nobody` may enter.
        durable: False leaves out every sync and keeps the temporary folder in memory, for suites that do not crash the
            machine. What was acknowledged still survives a `kill`.
        settings: Settings of postgresql.conf, before all others.
    """

    def __init__(
        self, folder: Path | None = None, *, durable: bool = True, settings: dict[str, str] | None = None
    ) -> None:
        self.socket_folder = short_folder("ms-pg-", in_memory=not durable)
        self.folder = self.socket_folder if folder is None else folder
        self.data = self.folder / "data"
        self.port = free_port()
        self.settings = {**SETTINGS, **({} if durable else NOT_DURABLE), **(settings or {})}
        GuardedServer.__init__(self, self.folder / "postgres.log", Guard(self.data, self.socket_folder))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            account().own(folder)
        strategy: Strategy = "WAL_LOG" if durable else "FILE_COPY"
        url = f"postgresql://postgres@/postgres?host={self.socket_folder}"
        PostgresDatabases.__init__(self, url, strategy)

    def tcp_url(self, database: str = "postgres", port: int | None = None, **query: str) -> str:
        """Return a URL over TCP; `port` is that of a proxy in between."""
        url = URL.create("postgresql+asyncpg", "postgres", None, "127.0.0.1", port or self.port, database, query)
        return url.render_as_string(hide_password=False)

    @property
    def socket(self) -> Path:
        """The Unix socket, by the name that is the default of every client (the port is part of the name)."""
        return self.socket_folder / ".s.PGSQL.5432"

    def start(self) -> Self:
        """Start the server, and return once it takes connections. Makes the cluster the first time."""
        if self.running:
            raise RuntimeError("the server runs already")
        if not self.data.exists():
            self._make_cluster()
        for attempt in range(5):
            self._write_settings()
            if self._started():
                break
            if attempt == 4 or "Address already in use" not in self.log_tail():
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log_tail()}")
            self._change_port()
        if not self.socket.is_symlink():
            self.socket.symlink_to(f".s.PGSQL.{self.port}")
        return self

    def stop(self, mode: StopMode = "fast") -> None:
        """Shut the server down as `pg_ctl stop -m MODE` does."""
        self._end(_SIGNALS[mode])

    def kill(self) -> None:
        """Kill the server and all its processes at once: none of them gets to write or say anything more."""
        if self.pid is None or not self.running:
            return
        postmaster = psutil.Process(self.pid)
        postmaster.suspend()  # it starts no other process while its children are counted
        children = postmaster.children(recursive=True)
        for process in (*children, postmaster):
            process.kill()
        self._guard.wait(STOP_S)
        self.pid = None
        deadline = time.monotonic() + STOP_S
        while not all(map(_gone, children)):
            if time.monotonic() > deadline:
                raise TimeoutError("processes of a killed PostgreSQL are still there")
            time.sleep(0.005)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same port."""
        self.stop(mode)
        self.start()

    def configure(self, **settings: str) -> None:
        """Change settings of a running server and wait until it has read them (those that need no restart)."""
        self.settings.update(settings)
        self._write_settings()
        before = self.execute("SELECT pg_conf_load_time()")
        if self.pid is None:
            raise RuntimeError("the server does not run")
        os.kill(self.pid, signal.SIGHUP)
        self.wait_for(f"SELECT pg_conf_load_time() <> '{before[0][0]}'")

    def wait_for(self, question: str, database: str = "postgres", seconds: float = 30.0) -> None:
        """Wait until a query answers true."""
        deadline = time.monotonic() + seconds
        while self.execute(question, database) != [["t"]]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still not true: {question}\n{self.log_tail()}")
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a standby a primary; returns once it takes writes."""
        self.execute("SELECT pg_promote(true, 60)")
        self.wait_for("SELECT NOT pg_is_in_recovery()")

    def _make_cluster(self) -> None:
        # Without syncs: only a crash of the machine needs those, and the cluster would go with it.
        cluster = ["-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        account().run([str(postgres_programs() / "initdb"), *cluster, "--no-sync", "--no-instructions"])

    def _write_settings(self) -> None:
        everything = {"port": str(self.port), "unix_socket_directories": str(self.socket_folder), **self.settings}
        quoted = ((name, value.replace("'", "''")) for name, value in everything.items())
        (self.data / "postgresql.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in quoted))

    def _started(self) -> bool:
        """Start the process and wait until it is ready, as pg_ctl does: by the last line of its pid file."""
        state = self.data / "postmaster.pid"
        self.log.unlink(missing_ok=True)
        self.pid = self._guard.start(
            [str(postgres_programs() / "postgres"), "-D", str(self.data)], self.log, account().user, account().group
        )
        deadline = time.monotonic() + _START_S
        while self.running:
            lines = state.read_text().split("\n") if state.exists() else []
            if len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby"):
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL is not ready after {_START_S:.0f} s:\n{self.log_tail()}")
            time.sleep(0.01)
        return False

    def _change_port(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.port = free_port()


def _gone(process: psutil.Process) -> bool:
    """Whether a process does nothing more: one that only waits to be collected by its parent is gone."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def standby_of(
    primary: PostgresServer,
    folder: Path | None = None,
    *,
    synchronous: bool = True,
    through: int | None = None,
    settings: dict[str, str] | None = None,
) -> PostgresServer:
    """Start a streaming standby of a running primary.

    Args:
        primary: The server to follow.
        folder: Where the copy is made, as for `PostgresServer`.
        synchronous: Every commit of the primary waits, from the return of this on, until the standby has it.
        through: The port of a proxy through which the standby follows.
        settings: Settings that differ from the primary's.
    """
    inherited = {name: value for name, value in primary.settings.items() if name != "synchronous_standby_names"}
    standby = PostgresServer(folder, settings={**inherited, **(settings or {})})
    try:
        source = ["-h", str(primary.socket_folder), "-p", "5432", "-U", "postgres"]
        copy = ["-D", str(standby.data), "-X", "stream", "-c", "fast", "--no-sync"]
        account().run([str(postgres_programs() / "pg_basebackup"), *source, *copy])
        (standby.data / "standby.signal").touch()
        name = f"standby_{standby.port}"
        standby.settings["primary_conninfo"] = (
            f"host=127.0.0.1 port={through or primary.port} user=postgres application_name={name}"
        )
        standby.start()
        of_it = f"FROM pg_stat_replication WHERE application_name = '{name}'"
        primary.wait_for(f"SELECT coalesce(bool_or(state = 'streaming'), false) {of_it}")
        if synchronous:
            primary.configure(synchronous_standby_names=name, synchronous_commit="on")
            primary.wait_for(f"SELECT coalesce(bool_or(sync_state = 'sync'), false) {of_it}")
    except BaseException:
        standby.close()
        raise
    return standby
