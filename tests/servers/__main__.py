"""Start a server by hand: `python -m tests.servers postgres` prints its URLs, and ends it at Ctrl-C or end of input."""

from __future__ import annotations

import argparse
import contextlib
import sys

from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer


def main() -> None:
    """Run one server until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("server", choices=["postgres", "redis"])
    parser.add_argument("--not-durable", action="store_true", help="leave out every sync (for tests)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    arguments = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in arguments.set)
    if arguments.server == "postgres":
        with PostgresServer(durable=not arguments.not_durable, settings=settings) as postgres:
            hold(postgres.url(), postgres.tcp_url())
    else:
        with RedisServer(settings=settings) as redis:
            hold(redis.url(), redis.tcp_url())


def hold(*urls: str) -> None:
    """Print the URLs, and wait for the end of input."""
    with contextlib.suppress(KeyboardInterrupt):
        print(*urls, sep="\n", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
