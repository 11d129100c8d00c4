"""JSON, lines, folders and checkpoints on disk: whole or not at all, and verified when read."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import DataError
from rlhf.parallel.ranks import is_main

# in a run's folder
FINAL = "final"  # the weights a stage ends with
METRICS_FILE, ALERTS_FILE, RESULTS_FILE = "metrics.jsonl", "alerts.jsonl", "results.json"
RUN_FILE, CONFIG_FILE, SAMPLES_FILE = "run.json", "config.yaml", "samples.jsonl"
CARD = "README.md"  # of a model; people write on it, so it is no part of what was trained
COMPLETE = "complete"  # written into a checkpoint after everything else: without it the checkpoint does not count


Listing = dict[str, Any]  # the files of a folder: name -> [size in bytes, SHA-256]


def listing(folder: Path, *names: str) -> Listing:
    """What a folder holds, or those of the named files that are there, to be compared later by `differing`."""
    places = [folder / name for name in names] or sorted(folder.rglob("*"))
    held = [path for path in places if path.is_file() and path.name not in (COMPLETE, CARD)]
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)] for path in held}


def differing(folder: Path, listed: Listing, bytes_too: bool = True) -> str:
    """The first listed file that is not what was written, with how it differs; empty if all are. Reads them if `bytes_too`."""
    for name, entry in listed.items():
        if name == CARD:  # listed by an older version
            continue
        size, digest = entry if isinstance(entry, list) else (entry, None)  # sizes only: written by an older version
        file = folder / name
        if not file.is_file():
            return f"{file} is {'a folder' if file.is_dir() else 'not there'}"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes, and {size} were written"
        if bytes_too and digest is not None and _digest(file) != digest:
            return f"{file} holds other bytes than were written"
    return ""


def verify(folder: Path, *names: str) -> None:
    """Raise a DataError where one of these files of a run is not what the run has listed at its end."""
    run = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    listed = run.get("files", {}) if isinstance(run, dict) else {}  # older runs and unfinished ones list none
    if why := differing(folder, {name: listed[name] for name in names if name in listed}):
        again = " ".join(run.get("command", ["its command"]))
        raise DataError(f"{why}\n  fix: bring it back from a copy, or {again} run.overwrite=true")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mark(folder: Path) -> None:
    """Writes the mark of a complete checkpoint, with the size and the hash of each of its files."""
    (folder / COMPLETE).write_text(json.dumps(listing(folder), indent=1))


def broken(checkpoint: Path, bytes_too: bool = True) -> str:
    """What is wrong with a checkpoint: no mark, or a file that is not what the mark lists; empty if nothing is."""
    try:
        listed = json.loads((checkpoint / COMPLETE).read_text() or "{}")
    except (OSError, ValueError):
        return f"{checkpoint} was not written to its end"
    return differing(checkpoint, listed, bytes_too)


def is_complete(checkpoint: Path) -> bool:
    """Whether the mark is there and every file that it lists has the size it lists."""
    return not broken(checkpoint, bytes_too=False)


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises a DataError that names the file if it holds none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        why = "is empty" if path.is_file() and not path.stat().st_size else f"can't be read: {error}"
        raise DataError(f"{path} {why}\n  fix: bring it back from a copy, or make it again") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one a line; none if there is no file. A last line that a kill cut off is left out.

    Raises DataError, naming file and line, for any other line that is no JSON object.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []  # a reply may hold other separators, as U+2028
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                entries.append({**json.loads(line.decode())})
        except (ValueError, TypeError) as error:
            if number < len(lines):  # else no line feed follows it
                what = f"line {number} is no JSON object: {line[:60].decode(errors='replace')!r}"
                raise DataError(f"{path}, {what}\n  fix: delete that line, or make the file again") from error
    return entries


def keep_lines(path: Path, last_step: int, of_last: int | None = None) -> None:
    """Drops the lines that a resumed run is about to write again: of later steps, and of the last but the first `of_last`."""
    if is_main() and path.is_file():
        entries = read_lines(path)
        before = [entry for entry in entries if entry["step"] < last_step]
        write_lines(path, before + [entry for entry in entries if entry["step"] == last_step][:of_last])


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Adds a line an entry to a .jsonl file, in the main process only; a line that a kill cut off before goes."""
    if not is_main():
        return
    with path.open("ab+") as file:
        file.seek(max(0, file.tell() - 1))
        cut = file.read() not in (b"", b"\n")
    if cut:
        write_lines(path, read_lines(path))
    with path.open("ab") as file:
        file.write(_lines(entries).encode())


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """A .jsonl file, whole or not at all as in `write_text`."""
    write_text(path, _lines(entries))


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all as in `write_text`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Through a hidden sibling, made durable and renamed last: a killed process leaves the old content or the new one."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


PREFIX = "checkpoint-"


def write_complete(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a checkpoint: what `write` puts there, then the mark, and only then a name.

    The mark is for what happens to a checkpoint later: a deletion that was cut short, a copy that lost its end, a flipped byte.
    """

    def write_and_mark(partial: Path) -> None:
        write(partial)
        mark(partial)

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
    try:
        write(partial)
    except BaseException:  # as of a full disk, which gets its space back
        shutil.rmtree(partial, ignore_errors=True)
        raise
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
    return [path for path in _numbered(output_dir) if is_complete(path)]


def newest(output_dir: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose bytes are those that were written, and the newer ones that are not, with the reason."""
    left_out: dict[Path, str] = {}
    for path in reversed(_numbered(output_dir)):
        if not (why := broken(path)):
            return path, left_out
        left_out[path] = why
    return None, left_out


def _numbered(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit() and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step (in PPO the update) after which a checkpoint was written, by its name."""
    return int(checkpoint.name.removeprefix(PREFIX))


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
