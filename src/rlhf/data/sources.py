"""Where rows come from: the hub, files and folders of files, a generator in this package, or a mixture of those."""

import hashlib
import importlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.config import MIXTURE, Dataset, Splits, checked
from rlhf.data import folders
from rlhf.data.formats import SUFFIXES
from rlhf.data.judged import Judged
from rlhf.data.rows import BadRow, Row, Rows, Sliced, Weighted
from rlhf.data.trees import rankings
from rlhf.errors import ConfigError, DataError, Refusal, nearest
from rlhf.feedback.rankings import digest as feedback
from rlhf.feedback.store import FILE, Store

__all__ = ["SUFFIXES", "BadRow", "Part", "Row", "Rows", "fingerprint", "is_hub", "is_local", "open", "parts", "read"]

SLICE = re.compile(r"^(?P<name>[\w.-]+)(\[(?P<start>(-?\d+%?)?):(?P<stop>(-?\d+%?)?)\])?$")
GENERATOR = "generator:"

# generator:<module>/<dataset>: rlhf.<module>.generator has a function of that name
GENERATORS = {"support": ("text", "demonstrations", "rankings", "prompts"), "support.feedback": ("thumbs",)}

FORMATS = ("chat", "plain", "transcript", "tree")  # dataset.format

# what a part of a mixture may say for itself; the rest is said once, for all parts
OF_A_PART = ("path", "subset", "revision", "splits", "columns", "format", "markers", "options", "streaming", "system")


def read(dataset: Dataset, split: str, limit: int | None = None) -> Iterator[Row]:
    """The first `limit` rows of a split, in order; `split` may carry a slice such as `train[:95%]`.

    Raises:
        DataError: a file that is missing or not what its suffix says, with file and line.
        ConfigError: an unknown generator or a malformed slice.
    """
    return islice(open(dataset, split).read(), limit)


def open(dataset: Dataset, split: str) -> Rows:
    """The rows of a split, none of them read yet; raises as `read` does."""
    name, start, stop = sliced(split)
    if dataset.path.startswith(GENERATOR):
        rows = Generated(dataset, name)
    elif dataset.path == MIXTURE:
        why = "the parts of dataset.mixture are read one by one, which is not done here"
        raise Refusal("dataset.path", dataset.path, why, fix="a path, and dataset.mixture=null")
    elif is_store(dataset.path):
        rows = Judged(dataset, name)
    elif is_local(dataset.path):
        rows = folders.open_path(dataset, name)
    else:
        rows = _hub(dataset, name, relative=any(isinstance(bound, str) or (bound or 0) < 0 for bound in (start, stop)))
    if (start, stop) != (None, None):
        rows = Sliced(rows, start, stop)
    return Trees(rows) if dataset.format == "tree" else rows


def sliced(split: str) -> tuple[str, int | str | None, int | str | None]:
    """A split's name and the bounds of its slice: numbers, texts such as `95%`, or None."""
    match = SLICE.match(split)
    if not match:
        raise ConfigError(f"dataset.splits: {split!r} is not a split name with an optional slice such as train[:95%]")
    return match["name"], _bound(match["start"]), _bound(match["stop"])


def _bound(text: str | None) -> int | str | None:
    return text if text and "%" in text else int(text) if text else None


def is_local(path: str) -> bool:
    """Whether a path is one of this machine, there or not, and no id on the hub."""
    place = Path(path).expanduser()
    if path.startswith(GENERATOR) or path == MIXTURE:
        return False
    if path.startswith((".", "/", "~")) or place.exists() or path.lower().endswith(SUFFIXES) or "://" in path:
        return True
    return path.count("/") > 1 or ("/" in path and place.parent.is_dir())


def is_store(path: str) -> bool:
    """Whether a path is that of a store of feedback, there or not."""
    return path.endswith(Path(FILE).suffix)


def is_hub(path: str) -> bool:
    """Whether a path is an id on the hub."""
    return not (path.startswith(GENERATOR) or path == MIXTURE or is_local(path))


@dataclass(frozen=True)
class Part:
    """A dataset that is read for one purpose, `weight` times."""

    dataset: Dataset
    split: str
    weight: float = 1.0

    def open(self) -> Rows:
        rows = open(self.dataset, self.split)
        if self.weight == 1:
            return rows
        if not rows.counted:
            why = "a part that is streamed has no number of rows to take a share of"
            raise Refusal("dataset.mixture.weight", self.weight, why, fix="weight: 1 there, or streaming: false")
        return Weighted(rows, self.weight)


def parts(dataset: Dataset, role: str) -> list[Part]:
    """What is read for `train`, `eval` or `test`: the dataset itself, or for train the parts of its mixture.

    Those stand for the other roles too where the dataset has no path of its own, each read once. Empty where no split has the role.

    Raises:
        ConfigError: a part without a path, with an unknown key or with a weight that is no positive number.
    """
    mixed = [] if dataset.mixture is None else _mixture(dataset)
    if not mixed or (role != "train" and dataset.path != MIXTURE):
        split = getattr(dataset.splits, role)
        return [] if split is None else [Part(dataset, split)]
    found = [(one, getattr(one.splits, role), weight if role == "train" else 1.0) for one, weight in mixed]
    return [Part(one, split, weight) for one, split, weight in found if split is not None]


def _mixture(dataset: Dataset) -> list[tuple[Dataset, float]]:
    given, example = dataset.mixture, "dataset.mixture='[{path: a.jsonl}, {path: b.jsonl, weight: 0.5}]'"
    if not isinstance(given, list) or not given or not all(isinstance(part, dict) for part in given):
        raise Refusal("dataset.mixture", given, "must be a list of datasets, each with its path", fix=example)
    return [_part(dataset, number, dict(part)) for number, part in enumerate(given)]


def _part(dataset: Dataset, number: int, said: dict[str, Any]) -> tuple[Dataset, float]:
    where = f"dataset.mixture[{number}]"
    weight = said.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        why = "how many times the rows are read must be a number above 0"
        raise Refusal(f"{where}.weight", weight, why, fix="weight: 0.5 for half of them, 2 for all of them twice")
    if not isinstance(said.get("path"), str):
        raise Refusal(f"{where}.path", said.get("path"), "a part needs the path of a dataset")
    for key in said:
        if key not in OF_A_PART:
            known = key in Dataset.__dataclass_fields__
            why = (
                "is said once, for all parts" if known else f"is no key of a part{nearest(key, (*OF_A_PART, 'weight'))}"
            )
            raise Refusal(f"{where}.{key}", said[key], why, allowed=(*OF_A_PART, "weight"))
    for key in ("splits", "columns", "options", "markers"):
        if not isinstance(said.get(key) or {}, dict):
            raise Refusal(f"{where}.{key}", said[key], "must be a mapping")
    if said.get("format", "chat") not in FORMATS:
        near = nearest(said["format"], FORMATS)
        raise Refusal(f"{where}.format", said["format"], f"is no format of rows{near}", allowed=FORMATS)
    splits = said.pop("splits", None) or {}
    said = checked(Dataset, said, where)
    if "format" in said and (said["format"] == "plain") != (dataset.format == "plain"):
        why = "text without turns (plain) and dialogues are rendered differently, so that they can't be mixed"
        raise Refusal(f"{where}.format", said["format"], why)
    said = {"subset": None, "revision": None, **said}  # those of the outer dataset are its path's own
    chosen = Splits(**checked(Splits, {**asdict(dataset.splits), **splits}, f"{where}.splits"))
    return replace(dataset, **{"mixture": None, "splits": chosen, **said}), float(weight)


def fingerprint(dataset: Dataset) -> str:
    """Changes when the rows would: the bytes of local files, a generator's settings and code, a hub id with its revision, what people
    said in a store of feedback."""
    place = FILE if is_store(dataset.path) else dataset.path
    digest = hashlib.sha256(f"{place}@{dataset.revision}/{dataset.subset}".encode())
    if dataset.path.startswith(GENERATOR):
        names = _generator(dataset)[0].split(".")
        digest.update(json.dumps(dataset.options, sort_keys=True).encode())
        for depth in range(1, len(names) + 1):  # a generator below another reads it
            module = importlib.import_module(".".join(["rlhf", *names[:depth]]))
            for source in sorted(Path(str(module.__file__)).parent.glob("*.py")):
                digest.update(source.read_bytes())
    elif is_store(dataset.path):
        if Path(dataset.path).is_file():
            with Store(dataset.path, write=False) as store:
                digest.update(f"{dataset.options}{feedback(store)}".encode())
    elif is_local(dataset.path):
        for file in folders.files(Path(dataset.path).expanduser()):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                while chunk := stream.read(2**20):
                    digest.update(chunk)
    if dataset.mixture is not None:
        for part, weight in _mixture(dataset):
            digest.update(f"{fingerprint(part)}{weight}{part.splits}{part.columns}{part.format}".encode())
    return digest.hexdigest()[:16]


def _generator(dataset: Dataset) -> tuple[str, str]:
    module, _, name = dataset.path.removeprefix(GENERATOR).partition("/")
    if name not in GENERATORS.get(module, ()):
        known = [f"{m}/{n}" for m, names in GENERATORS.items() for n in names]
        raise ConfigError(f"dataset.path={dataset.path} is not a generator{nearest(f'{module}/{name}', known)}")
    return module, name


class Generated(Rows):
    """Rows that a generator makes, all of them when the first is asked for."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.dataset, self.split = dataset, split
        sizes = {key: dataset.options[key] for key in ("train", "held_out", "evaluation") if key in dataset.options}
        _generator(dataset)
        if split not in sizes:
            raise ConfigError(f"dataset.options has no number of rows for split `{split}` (has: {', '.join(sizes)})")

    @property
    def made(self) -> list[dict[str, Any]]:
        return _made(self.dataset.path, self.split, json.dumps(self.dataset.options))

    def __len__(self) -> int:
        return len(self.made)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        for index, row in enumerate(self.made[start:stop], start):
            yield Row(f"{self.dataset.path}[{self.split}]:{index}", row)


@lru_cache(maxsize=8)  # the splits of all stages of a recipe
def _made(path: str, split: str, given: str) -> list[dict[str, Any]]:
    module, _, name = path.removeprefix(GENERATOR).partition("/")
    generator, options = importlib.import_module(f"rlhf.{module}.generator"), json.loads(given)
    sizes = {key: options.pop(key) for key in ("train", "held_out", "evaluation") if key in options}
    try:
        if split == "evaluation":
            return generator.evaluation(sizes["evaluation"], seed=options["seed"])
        if split == "held_out":
            return getattr(generator, name)(sizes["held_out"], held_out=True, **options)
        return getattr(generator, name)(sizes[split], **options)
    except TypeError as error:
        raise ConfigError(f"dataset.options: {error}") from error
    except ValueError as error:
        raise DataError(f"dataset.options.{split}={sizes[split]}: {error}") from error


class Trees(Rows):
    """The rankings in conversation trees: a message may come anywhere before or after its parent, so all are read at once."""

    def __init__(self, messages: Rows) -> None:
        self.messages = messages

    @cached_property
    def made(self) -> list[Row]:
        return list(rankings(self.messages.read()))

    def __len__(self) -> int:
        return len(self.made)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        return iter(self.made[start:stop])


def _hub(dataset: Dataset, split: str, relative: bool) -> Rows:
    import datasets

    from rlhf.data.arrow import Arrow, Streamed

    if dataset.streaming and relative:
        why = "a stream has no known end, so a slice of it can't count from there or take a share"
        fix = "bounds that count from the start, such as train[1000:5000], or dataset.streaming=false"
        raise Refusal("dataset.streaming", "true", why, fix=fix)
    datasets.disable_progress_bars()
    place, asked = f"{dataset.path}[{split}]", (dataset.path, dataset.subset)
    try:
        if dataset.streaming:
            stream = datasets.load_dataset(*asked, split=split, revision=dataset.revision, streaming=True)
            return Streamed(stream, place)
        return Arrow(datasets.load_dataset(*asked, split=split, revision=dataset.revision), place)
    except Exception as error:  # the hub client raises dozens of kinds; each means that these rows can't be had
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"dataset.path={dataset.path} ({split}) can't be loaded from the hub: {reason}\n"
            "  fix: check the name, `hf auth login` for a gated one, or in dataset.path a local folder with files named after the splits"
        ) from error
