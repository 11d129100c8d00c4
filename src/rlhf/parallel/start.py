"""Our own launcher: a process a device on this machine, one terminal, one message, and the exit code of the run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from rlhf.errors import Elsewhere, Preempted, ResourceError
from rlhf.parallel.ranks import STARTED
from rlhf.process import die_with_parent

PATIENCE = 12.0  # seconds in which ranks end by themselves after the first has failed, and again after a SIGTERM


def start(devices: int, command: Sequence[str]) -> int:
    """Run `command` once a device, each with its rank in the environment; returns the exit code of the run.

    The main rank has the terminal. Another speaks only if it is the one that the run ended by. A SIGTERM goes to all of them; when one
    has failed, those that don't end by themselves are ended.
    """
    errors = [None, *(tempfile.TemporaryFile() for _ in range(devices - 1))]  # noqa: SIM115
    asked = [False]

    def pass_on(*_: object) -> None:
        asked[0] = True
        _send(running, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    running: list[subprocess.Popen[Any]] = []
    places = _environments(devices)
    for error, place in zip(errors, places, strict=True):
        out = {} if error is None else {"stdout": subprocess.DEVNULL, "stderr": error}
        running.append(subprocess.Popen(command, env=os.environ | place, preexec_fn=die_with_parent, **out))
    if asked[0]:
        pass_on()
    try:
        codes = _wait(running)
    except KeyboardInterrupt:
        time.sleep(1)  # a terminal sends it to all
        _send(running, signal.SIGINT)
        _wait(running)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return _outcome(codes, errors, asked[0])


def _environments(devices: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(devices), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), STARTED: "1"}
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(devices)]


def _send(running: Sequence[subprocess.Popen[Any]], number: signal.Signals) -> None:
    for child in running:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)


def _wait(running: Sequence[subprocess.Popen[Any]]) -> list[int]:
    """The exit codes; after the first failure the others get their time, a SIGTERM, time again, and a SIGKILL, and their own codes
    say nothing any more."""
    failed, ours = None, set[int]()
    steps = [(2 * PATIENCE, signal.SIGKILL), (PATIENCE, signal.SIGTERM)]
    while any(child.poll() is None for child in running):
        time.sleep(0.05)
        if failed is None and any(child.poll() for child in running):
            failed = time.monotonic()
        if failed is not None and steps and time.monotonic() - failed > steps[-1][0]:
            ours |= {number for number, child in enumerate(running) if child.poll() is None}
            _send(running, steps.pop()[1])
    return [Elsewhere.unheard if number in ours else child.wait() for number, child in enumerate(running)]


def _outcome(codes: Sequence[int], errors: Sequence[IO[bytes] | None], asked: bool) -> int:
    """The code of the lowest rank that failed by itself, which has said why, or is spoken for."""
    found = [(rank, code) for rank, code in enumerate(codes) if code not in (0, Elsewhere.unheard)]
    own = [(rank, code) for rank, code in found if code > 0] if asked else found
    if not found:
        return Preempted.code if any(codes) or asked else 0
    rank, code = (own or found)[0]
    if error := errors[rank]:
        error.seek(0)
        sys.stderr.write(error.read().decode(errors="replace"))
    if code > 0:
        return code
    name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        print(f"error: rank {rank} was ended by {name}", file=sys.stderr)
        return 128 - code
    why = "as a machine does whose memory has run out; the same command goes on from the last checkpoint"
    print(f"error: rank {rank} was ended by {name}, {why}", file=sys.stderr)
    return ResourceError.code
