"""Tokens on disk: Arrow files in the datasets cache, written by a process a core, found again by what they follow from.

An entry is a folder `rlhf/<key>` beside the caches of `datasets`, renamed to its name when all of it is written. What a killed process
left has no name and goes; what lost a file or the end of one is made again. It may be deleted at any time.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf.errors import ResourceError
from rlhf.process import die_with_parent

if TYPE_CHECKING:
    import datasets
    import numpy
    import pyarrow

BLOCK = 512  # rows that are read before what came of them is written
ALONE = 512  # rows up to which one process is faster than several
TOLD = 10.0  # seconds between two lines on how far preparing has come, where no terminal shows a bar
DONE, PROMPTS = "done.json", "prompts.u64"
Tokens = dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """Rows of one part of a dataset, from `start` to before `stop` (None: to its end), to be tokenized by one process."""

    part: int
    start: int
    stop: int | None


def cache() -> Path:
    """Where entries lie."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "rlhf"


def key(*follows_from: Any) -> str:
    """The name of what follows from these, from this package's code for data and from the libraries that make tokens."""
    from importlib import metadata

    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))
    versions = [metadata.version(name) for name in ("tokenizers", "transformers", "datasets", "pyarrow")]
    said = json.dumps([code.hexdigest(), versions, follows_from], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


class Entry(NamedTuple):
    """Tokens, None if there are none, what is told of them, and for each row a hash of what it asks."""

    rows: "datasets.Dataset | None"
    told: dict[str, Any]
    prompts: "numpy.ndarray"


def kept(name: str, make: Callable[[Path], tuple[dict[str, Any], "array[int]"]]) -> Entry:
    """An entry; `make` fills the folder of a new one with Arrow files and returns what is told and the hashes.

    One process makes an entry while others wait for it. Raises what `make` raises, and leaves nothing then.
    """
    import numpy as np
    from filelock import FileLock

    folder = cache() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        told = _told(folder)
        if told is None:
            partial = folder.with_name(f".partial-{name}")
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            try:
                told, prompts = make(partial)
                (partial / PROMPTS).write_bytes(prompts)
                written = {file.name: _digest(file) for file in sorted(partial.iterdir())}
                (partial / DONE).write_text(json.dumps({"files": written, "told": told}))
                partial.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                fix = f"free some, or set HF_DATASETS_CACHE to a folder on another disk (is {cache().parent})"
                raise ResourceError(f"no space left on the disk of {cache()}\n  fix: {fix}") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        else:
            told["cached"] = True
        return Entry(_opened(folder), told, np.fromfile(folder / PROMPTS, np.uint64))


def _told(folder: Path) -> dict[str, Any] | None:
    """What an entry tells, or None where it is not there or not whole."""
    try:
        done = json.loads((folder / DONE).read_text())
        whole = all(_digest(folder / name) == digest for name, digest in done["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return done["told"] if whole else None


def _digest(file: Path) -> str:
    """A hash of a file's bytes that is made at the speed of memory; against accidents, not against forgery."""
    from xxhash import xxh3_128

    digest = xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _opened(folder: Path) -> "datasets.Dataset | None":
    """The rows of an entry, mapped into memory page by page as they are read; `datasets` puts files of its own beside them."""
    import datasets

    found = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("[0-9]*.arrow"))]
    return datasets.concatenate_datasets(found) if found else None


def processes(rows: int | None) -> int:
    """How many processes tokenize so many rows: one a core, and one where there are few or nobody can count them."""
    if rows is None or rows <= ALONE:
        return 1
    return min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, -(-rows // BLOCK)
    )


def stretches(counts: Sequence[int | None], count: int) -> list[Stretch]:
    """The rows of each part, a whole number of blocks to a stretch, in about two stretches a process for each part."""
    found = []
    for part, rows in enumerate(counts):
        if rows is None or count == 1:
            found.append(Stretch(part, 0, rows))
            continue
        length = -(-rows // (2 * count * BLOCK)) * BLOCK
        found += [
            Stretch(part, start, min(start + length, rows)) for start in range(0, max(rows, 1), max(length, BLOCK))
        ]
    return found


Work = Callable[[Stretch, Path, Callable[[int], None]], Any]


def spread(work: Work, todo: Sequence[Stretch], folder: Path, count: int, rows: int | None, what: str) -> list[Any]:
    """What `work` returns for each stretch, in order, from `count` processes.

    Of several failures the first in the order of the rows is raised, as if one process had read them all.
    """
    with _bar(rows, what) as told:
        if count == 1:
            return [work(stretch, folder / f"{number:05d}.arrow", told.update) for number, stretch in enumerate(todo)]
        # the children use no torch; they share the tokenizer, the rows and the work as they are
        context = get_context("fork")
        done = context.Value("q", 0)
        pool = ProcessPoolExecutor(count, context, _start, (work, done))
        try:
            futures = [
                pool.submit(_run, stretch, folder / f"{number:05d}.arrow") for number, stretch in enumerate(todo)
            ]
            _watch(futures, done, told)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            why = "a process that prepares rows was killed, most likely for want of memory"
            raise ResourceError(
                f"{what}: {why}\n  fix: fewer processes, as taskset -c 0 gives, or more memory"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()):  # those that go on after a failure  # noqa: SLF001
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


_mine: tuple[Work, Any]  # of a child: what it does, and the number of rows that all have done


def _start(work: Work, done: Any) -> None:
    global _mine
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the parent ends its children
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _mine = work, done


def _run(stretch: Stretch, file: Path) -> Any:
    work, done = _mine

    def count(rows: int) -> None:
        with done.get_lock():
            done.value += rows

    return work(stretch, file, count)


def _watch(futures: list[Future[Any]], done: Any, told: Any) -> None:
    left = set(futures)
    while left:
        ended, left = wait(left, timeout=0.5)
        told.update(done.value - told.n)
        first = next((future for future in futures if future in left or future.exception()), None)
        if first is not None and first not in left:
            first.result()  # every stretch before it is done, so its failure is the first


def _bar(rows: int | None, what: str) -> Any:
    from tqdm import tqdm

    quiet = rows is not None and rows <= ALONE
    if sys.stderr.isatty():
        return tqdm(total=rows, desc=what, unit=" rows", disable=quiet, leave=False, dynamic_ncols=True)
    return tqdm(
        total=rows,
        desc=what,
        unit=" rows",
        disable=quiet,
        leave=False,
        file=_Lines(),
        ncols=0,
        mininterval=TOLD,
        delay=TOLD,
        miniters=1,
    )


class _Lines:
    """A file for a log: each state of a bar on a line of its own."""

    def write(self, text: str) -> None:
        if said := text.strip():
            print(said, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Writer:
    """Writes blocks of rows of tokens to a file; `digests` has one hash a block, `lengths` what `keep` was told."""

    def __init__(self, file: Path) -> None:
        self.file, self.sink, self.stream = file, None, None
        self.rows: list[Tokens] = []
        self.digests: list[str] = []
        self.lengths = array("i")

    def keep(self, tokens: Tokens, length: int) -> None:
        self.rows.append(tokens)
        self.lengths.append(length)

    def flush(self) -> None:
        """Write what was kept since the last block."""
        import pyarrow

        if not self.rows:
            return
        names = list(self.rows[0])
        columns = [_column(name, [row.get(name) for row in self.rows]) for name in names]
        batch = pyarrow.record_batch(columns, names=names)
        if self.stream is None:
            self.sink = pyarrow.OSFile(str(self.file), "wb")
            self.stream = pyarrow.ipc.new_stream(self.sink, batch.schema)
        self.stream.write_batch(batch)
        self.digests.append(hashlib.sha256(memoryview(batch.serialize())).hexdigest())
        self.rows = []

    def close(self) -> None:
        self.flush()
        if self.stream is not None and self.sink is not None:
            self.stream.close()
            self.sink.close()


def _column(name: str, cells: list[Any]) -> "pyarrow.Array":
    """Ids in 32 bits, of which a vocabulary takes 20; whole numbers in 64."""
    import numpy as np
    import pyarrow

    if not isinstance(cells[0], list):
        kinds = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
        return pyarrow.array(cells, kinds[type(cells[0])])
    ends = np.zeros(len(cells) + 1, np.int32)
    np.cumsum([len(cell) for cell in cells], out=ends[1:])
    flat = np.empty(ends[-1], np.int32)
    for cell, start, end in zip(cells, ends[:-1], ends[1:], strict=True):
        flat[start:end] = cell
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(flat))


def joined(digests: Iterable[str]) -> str:
    """One hash of all blocks, the same for every number of processes."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def blocks(rows: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Each row, and whether a block ends with it."""
    for number, row in enumerate(rows, 1):
        yield row, number % BLOCK == 0
