"""One writer a folder: a lock that ends with its process, however that ends."""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path

from rlhf.errors import ResourceError, StageError
from rlhf.files import read_json
from rlhf.parallel.ranks import is_main

_held: dict[Path, tuple[int, list[Path]]] = {}  # by lock file: its handle, and the folders that were made for it


def hold(folder: Path, command: str) -> None:
    """Own a folder until this process ends, or leave at once with who owns it. Held twice by one process is held once.

    The lock is a POSIX record lock on the hidden file `.lock-<name>` beside the folder: the kernel drops it with the process, a kill
    included, and no child inherits it. A network folder keeps the promise where its server answers such locks (NFS with lockd, SMB);
    where it does not, that is told, and nothing but the words in the file says who writes.

    Raises:
        ResourceError: another process owns the folder.
        OSError: the folder's parent can't be made or written.
    """
    folder = folder.absolute()
    file = folder.with_name(f".lock-{folder.name}")
    if file in _held or not is_main():
        return
    made = [place for place in file.parents if not place.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(file, folder)
    mine = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%F %T"), "command": command}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(mine).encode(), 0)
    if not _held:
        atexit.register(release)
    _held[file] = handle, made


def held(folder: Path) -> str:
    """What is written beside a folder about who owns it; empty where nobody does. An owner asks the handle that it has: closing
    another of the same file would give up the lock."""
    file = folder.absolute().with_name(f".lock-{folder.name}")
    if file in _held:
        return os.pread(_held[file][0], 2**16, 0).decode()
    return file.read_text() if file.is_file() else ""


def _locked(file: Path, folder: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # no such locks on this file system
                what = f"{file.parent} knows no locks ({error.strerror})"
                print(f"{what}: see to it that one process writes {folder.name}", file=sys.stderr)
                return handle
            os.close(handle)
            raise ResourceError(_taken(file, folder)) from error
        if file.exists() and os.fstat(handle).st_ino == file.stat().st_ino:
            return handle
        os.close(handle)  # whoever held it removed the file between our two steps


def _taken(file: Path, folder: Path) -> str:
    try:
        by = read_json(file)
        who = f"process {by['process']} on {by['machine']} since {by['since']}: {by['command']}"
    except (StageError, KeyError, OSError):
        who = "another process, which is just starting"
    return f"{folder} is being written by {who}\n  fix: wait for it, or another run.stage"


def release() -> None:
    """Give back every folder; one that was made for a run that was refused goes."""
    for file, (handle, made) in _held.items():
        file.unlink(missing_ok=True)
        os.close(handle)
        for place in made:
            with contextlib.suppress(OSError):  # it has got more in it
                place.rmdir()
    _held.clear()
