"""Where rows come from: the hub, JSONL, CSV and Parquet files, or a generator in this package."""

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.config import Dataset
from rlhf.errors import ConfigError, DataError, nearest
from rlhf.shell import setting

SUFFIXES = (".jsonl", ".csv", ".parquet")
SLICE = re.compile(r"^(?P<name>[\w.-]+)(\[(?P<start>-?\d*%?):(?P<stop>-?\d*%?)\])?$")

# generator:<module>/<dataset>: rlhf.<module>.generator has a function of that name
GENERATORS = {"support": ("text", "demonstrations", "rankings", "prompts")}


@dataclass(frozen=True)
class Row:
    """One row and where it stands: `file:line` for files, `id[split]:index` for the rest."""

    where: str
    values: dict[str, Any]


def read(dataset: Dataset, split: str, limit: int | None = None) -> Iterator[Row]:
    """The rows of a split, in order; `split` may carry a slice such as `train[:95%]`.

    Raises:
        DataError: a file that is missing or not what its suffix says, with file and line.
        ConfigError: an unknown generator or a malformed slice.
    """
    match = SLICE.match(split)
    if not match:
        raise ConfigError(f"dataset.splits: {split!r} is not a split name with an optional slice such as train[:95%]")
    if dataset.path.startswith("generator:"):
        rows = sliced(_generated(dataset, match["name"]), match)
    elif (path := Path(dataset.path).expanduser()).suffix in SUFFIXES or path.is_dir():
        rows = sliced(_local(path, match["name"]), match)
    elif dataset.path.startswith((".", "/", "~")):
        raise DataError(f"dataset.path={dataset.path}: no such file or folder")
    else:
        rows = _hub(dataset, split)
    if dataset.format == "tree":
        rows = rankings(rows)
    return islice(rows, limit)


def fingerprint(dataset: Dataset) -> str:
    """Changes when the rows would: the bytes of local files, a generator's settings and code, a hub id with its revision."""
    digest = hashlib.sha256(f"{dataset.path}@{dataset.revision}/{dataset.subset}".encode())
    if dataset.path.startswith("generator:"):
        module = importlib.import_module(f"rlhf.{_generator(dataset)[0]}")
        digest.update(json.dumps(dataset.options, sort_keys=True).encode())
        for source in sorted(Path(str(module.__file__)).parent.glob("*.py")):
            digest.update(source.read_bytes())
    else:
        path = Path(dataset.path).expanduser()
        for file in [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []:
            if file.suffix in SUFFIXES:
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _generator(dataset: Dataset) -> tuple[str, str]:
    module, _, name = dataset.path.removeprefix("generator:").partition("/")
    if name not in GENERATORS.get(module, ()):
        known = [f"{m}/{n}" for m, names in GENERATORS.items() for n in names]
        raise ConfigError(f"dataset.path={dataset.path} is not a generator{nearest(f'{module}/{name}', known)}")
    return module, name


def _generated(dataset: Dataset, split: str) -> Iterator[Row]:
    module, name = _generator(dataset)
    generator = importlib.import_module(f"rlhf.{module}.generator")
    options = dict(dataset.options)
    sizes = {key: options.pop(key) for key in ("train", "held_out", "evaluation") if key in options}
    if split not in sizes:
        raise ConfigError(f"dataset.options has no number of rows for split `{split}` (has: {', '.join(sizes)})")
    try:
        if split == "evaluation":
            rows = generator.evaluation(sizes[split], seed=options["seed"])
        elif split == "held_out":
            rows = getattr(generator, name)(sizes[split], held_out=True, **options)
        else:
            rows = getattr(generator, name)(sizes[split], **options)
    except TypeError as error:
        raise ConfigError(f"dataset.options: {error}") from error
    except ValueError as error:
        raise DataError(f"dataset.options.{split}={sizes[split]}: {error}") from error
    for index, row in enumerate(rows):
        yield Row(f"{dataset.path}[{split}]:{index}", row)


def sliced(lazy: Iterator[Any], match: re.Match[str]) -> Iterator[Any]:
    """What the slice of a split, read by SLICE, leaves of its rows."""
    if not match["start"] and not match["stop"]:
        return lazy
    rows = list(lazy)

    def bound(text: str | None) -> int | None:
        if not text:
            return None
        return len(rows) * int(text[:-1]) // 100 if text.endswith("%") else int(text)

    return iter(rows[bound(match["start"]) : bound(match["stop"])])


def _local(path: Path, split: str) -> Iterator[Row]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES]
        chosen = [file for file in files if re.match(rf"{re.escape(split)}([-_.]|$)", file.name)]
        if not chosen:
            names = ", ".join(file.name for file in files) or "no .jsonl, .csv or .parquet file"
            raise DataError(f"dataset.path={path}: no file named after split `{split}` (has: {names})")
    elif not path.is_file():
        raise DataError(f"dataset.path={path}: no such file")
    elif split != "train":
        parts = f"{setting('dataset.splits.eval', 'train[-5%:]')} {setting('dataset.splits.train', 'train[:-5%]')}"
        what = f"is one file, whose split is called train, not `{split}`"
        raise DataError(f"dataset.path={path} {what}\n  fix: {parts}, or null")
    else:
        chosen = [path]
    for file in chosen:
        yield from {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[file.suffix](file)


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{file}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{file}:{number}: not JSON: {error.msg} at column {error.colno}") from error
            if not isinstance(values, dict):
                kind = type(values).__name__
                raise DataError(f"{file}:{number}: expected an object with named columns, found {kind}")
            yield Row(f"{file}:{number}", values)


def _csv(file: Path) -> Iterator[Row]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        try:
            for values in reader:
                if None in values or None in values.values():
                    expected = f"{len(reader.fieldnames or [])} columns, as in the first line"
                    raise DataError(f"{file}:{reader.line_num}: expected {expected}")
                yield Row(f"{file}:{reader.line_num}", dict(values))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file}: after line {reader.line_num}: not CSV in UTF-8: {error}") from error


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{file}: not a Parquet file: {error}") from error
    index = 0
    for batch in table.iter_batches():
        for values in batch.to_pylist():
            yield Row(f"{file}:{index}", values)
            index += 1


def _hub(dataset: Dataset, split: str) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(dataset.path, dataset.subset, split=split, revision=dataset.revision)
    except Exception as error:  # the hub client raises dozens of kinds; each means that these rows can't be had
        reason = str(error).splitlines()[0][:300]
        raise DataError(
            f"dataset.path={dataset.path} ({split}) can't be loaded from the hub: {reason}\n"
            "  fix: check the name, `hf auth login` for a gated one, or in dataset.path a local folder with files named after the splits"
        ) from error
    for index, values in enumerate(loaded):
        yield Row(f"{dataset.path}[{split}]:{index}", dict(values))


ROLE = {"prompter": "user", "assistant": "assistant"}
MESSAGE = ("message_id", "parent_id", "role", "text")


def rankings(messages: Iterable[Row]) -> Iterator[Row]:
    """Rows {prompt: the messages from the root, replies, ranks}; rank 0 is the best sibling.

    A reply nobody ranked (`rank` is null) or that was deleted is left out; a message with fewer than two replies left gives no row,
    nor does one whose way to the root is cut by a slice of the split.

    Raises:
        DataError: a message without one of MESSAGE, with another role or a rank that is no number, or its own ancestor.
    """
    rows = {}
    for row in messages:
        lacking = [column for column in MESSAGE if column not in row.values]
        if lacking:
            what = f"dataset.format=tree reads a message's {', '.join(lacking)}"
            raise DataError(f"{row.where}: {what}\n  it has: {', '.join(row.values)}")
        if row.values["role"] not in ROLE:
            raise DataError(f"{row.where}: role={row.values['role']!r} of a message\n  allowed: {', '.join(ROLE)}")
        if not isinstance(row.values.get("rank"), int | float | None):
            raise DataError(f"{row.where}: rank={row.values['rank']!r} must be a number or null")
        rows[row.values["message_id"]] = row
    children: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.values["role"] == "assistant" and row.values.get("rank") is not None and not row.values.get("deleted"):
            children.setdefault(row.values["parent_id"], []).append(row)
    for parent, replies in children.items():
        path, at = [], parent
        while at in rows:
            path.append({"role": ROLE[rows[at].values["role"]], "content": rows[at].values["text"]})
            at = rows[at].values["parent_id"]
            if len(path) > len(rows):
                raise DataError(f"{rows[parent].where}: message_id={parent} is its own ancestor")
        if len(replies) < 2 or at is not None:
            continue
        values = {"prompt": path[::-1], "replies": [reply.values["text"] for reply in replies]}
        yield Row(rows[parent].where, values | {"ranks": [int(reply.values["rank"]) for reply in replies]})
