"""One server on 127.0.0.1 in front of one store, until a signal."""

import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from rlhf.errors import Refusal
from rlhf.web.gate import Gate

HOST = "127.0.0.1"
TOKEN = "RLHF_TOKEN"  # of the environment: lets open pages go on after a restart
LOCK = ".serving"  # beside the store


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Holds a store for this server; a killed one lets go of it.

    Raises:
        Refusal: another server holds it, or its folder takes no file.
    """
    path = store.with_name(store.name + LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise Refusal("feedback", store, why, fix="run.root= a folder that can") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            other = file.read().strip() or "?"
            why = f"another server (process {other}) is in front of it"
            raise Refusal("feedback", store, why, fix=f"use that server's page, or end it: kill {other}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def bound(port: int) -> socket.socket:
    """A socket on 127.0.0.1, on a free port for 0.

    Raises:
        Refusal: the port is another program's.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(128)
    except (OSError, OverflowError) as error:
        found.close()
        why = error.strerror if isinstance(error, OSError) else "no port"
        raise Refusal("port", port, f"cannot be had on {HOST} ({why})", fix="port=0, which takes a free one") from error
    return found


def run(app: ASGIApp, listening: socket.socket, what: str) -> None:
    """Prints the address with its token, and serves until SIGINT or SIGTERM, which let requests in work end."""
    port = listening.getsockname()[1]
    token = checked(os.environ.get(TOKEN) or secrets.token_urlsafe(24))
    hosts = (f"{HOST}:{port}", f"localhost:{port}", *([HOST, "localhost"] if port == 80 else []))
    print(f"{what:<8} http://{HOST}:{port}/?token={token}", flush=True)
    gate = Gate(app, token, hosts)
    config = uvicorn.Config(
        gate, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listening])


def checked(token: str) -> str:
    """Raises a Refusal of a token that could be guessed or that an address cannot hold; it is not shown."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
        why = "at least 16 letters, digits, - and _"
        raise Refusal(TOKEN, "(hidden)", why, fix=f"unset {TOKEN}, and a new one is drawn at each start")
    return token
