"""A process of its own that owns one server and its folders, so that nothing outlives the tests.

It is the server's parent: there is no instant at which a server runs without somebody who will end it, and no process
id is ever looked up. When the process that asked for it goes away (the end of standard input, or another parent: a fork
of that process may still hold the pipe), it ends the server and removes the folders. It runs by itself under
`python -I -S`: it imports nothing of the project. One command a line, each answered by one line, both JSON:

    {"start": [argv...], "user": uid or null, "group": gid or null, "log": path}  ->  {"pid": n} or {"error": why}
    {"wait": seconds}                                                             ->  {"code": n}, null while it runs
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def start(command: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own: a Ctrl-C at the terminal is for the tests, not for it."""
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}
    with open(command["log"], "ab") as log:  # noqa: PTH123 - `Path.open` says the same
        return subprocess.Popen(
            command["start"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
            user=command["user"],
            group=command["group"],
            extra_groups=None if command["group"] is None else [],
        )


def adopt_orphans() -> None:
    """Become the parent of what a killed server leaves (Linux): a container may have nobody else to collect it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def wait(server: subprocess.Popen[bytes] | None, seconds: float) -> int | None:
    """Return the exit code of the server; None while it runs."""
    if server is None:
        return 0
    try:
        code = server.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    with contextlib.suppress(ChildProcessError):  # there is no other child
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return code


def commands(parent: int) -> Any:
    """Yield the commands until the one who gives them is gone."""
    buffered = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        read = os.read(0, 65536)
        if not read:
            return
        *lines, buffered = (buffered + read).split(b"\n")
        for line in lines:
            yield json.loads(line)


def end(server: subprocess.Popen[bytes] | None) -> None:
    """End the server: at once, and by force where it does not obey."""
    if server is None or server.poll() is not None:
        return
    server.send_signal(signal.SIGCONT)
    server.send_signal(signal.SIGQUIT if "postgres" in str(server.args) else signal.SIGTERM)
    if wait(server, 10) is None:
        server.kill()
        server.wait()


def remove_shared_memory(data: Path) -> None:
    """Remove the segment by which a killed postmaster still marks its folder: nobody else ever would."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        segment = int((data / "postmaster.pid").read_text().split("\n")[6].split()[1])
        ctypes.CDLL(None).shmctl(segment, 0, None)  # 0 is IPC_RMID


def remove(folder: Path) -> None:
    """Remove a folder; the last children of a killed server may still be writing to it for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def main(parent: int, data: Path, folders: list[Path]) -> None:
    """Obey until there is nobody to obey, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    server: subprocess.Popen[bytes] | None = None
    answer: dict[str, Any]
    try:
        for command in commands(parent):
            if "start" in command:
                try:
                    server = start(command)
                    answer = {"pid": server.pid}
                except OSError as error:
                    answer = {"error": str(error)}
            else:
                answer = {"code": wait(server, command["wait"])}
            os.write(1, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        pass
    finally:
        end(server)
        remove_shared_memory(data)
        for folder in folders:
            remove(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]])
