"""JSON, lines, folders and checkpoints on disk: whole or not at all."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

COMPLETE = "complete"  # written into a checkpoint after everything else: without it the checkpoint does not count


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark is there and every file that it lists, if it lists any, has the size it lists."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text() or "{}")
    except (OSError, ValueError):
        return False
    files = {name: checkpoint / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def read_lines(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The entries of a .jsonl of the run folder up to a step; none if there is no file. A line cut off by a kill is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [entry for entry in found if entry["step"] <= last_step]


def keep_lines(path: Path, last_step: int) -> None:
    """Drops the lines of steps that a resumed run is about to repeat."""
    if is_main() and path.is_file():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in read_lines(path, last_step)))
        partial.replace(path)


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    if is_main():
        with path.open("a") as lines:
            lines.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def write_json(path: Path, content: Any) -> None:
    """Through a temporary file, so that a killed process leaves the old content or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


PREFIX = "checkpoint-"


def write_complete(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a checkpoint: what `write` puts there, then the marker with the size of every file, and only then a name.

    The marker is for what happens to a checkpoint later: a deletion that was cut short, a copy that lost its end.
    """

    def write_and_mark(partial: Path) -> None:
        write(partial)
        sizes = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
        (partial / COMPLETE).write_text(json.dumps(sizes, indent=1))

    replace_folder(folder, write_and_mark)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a hidden sibling of `folder`, makes it durable, and renames it to `folder` last.

    Killed at any moment, `folder` is absent, what it was before, or all that it should be.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.parent / f".{kind}-{folder.name}" for kind in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    write(partial)
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in output_dir.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit() and is_complete(p)]
    return sorted(found, key=lambda p: int(p.name[len(PREFIX) :]))


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest complete checkpoints beyond `limit`, never the newest and never the best."""
    if not limit or limit < 1:
        return
    found = checkpoints(output_dir)
    keep = {found[-1]} | ({p for p in found if best and p == Path(best)}) if found else set()
    excess = len(found) - max(limit, len(keep))
    for path in [p for p in found if p not in keep][: max(excess, 0)]:
        (path / COMPLETE).unlink()  # a deletion cut short must not look complete
        shutil.rmtree(path)
