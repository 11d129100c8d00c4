"""The rows of a split in a file or a folder of this machine: shards, subsets, copies of what lies on the hub."""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.config import Dataset
from rlhf.data.formats import READ, SUFFIXES, open_file
from rlhf.data.rows import Chained, Rows
from rlhf.data.text import COMPRESSED, KINDS
from rlhf.errors import DataError, nearest
from rlhf.shell import setting

# what datasets and hub downloads put after a split's name: -00000-of-00002, -00000-of-00001-a09b74b3ef9c3b56, _3
SHARD = re.compile(r"[-_.](?P<number>\d+)(-of-(?P<count>\d+)(-[0-9a-f]{16})?)?$")
# which say something on the rows, and are none
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "README.md")
SHOWN = 12  # names in a message


def check_path(given: str) -> Path:
    """The file or folder that `dataset.path` names; raises DataError where there is none, with those beside it."""
    path = Path(given).expanduser()
    if "://" in given:
        fix = f"curl -LO {shlex.quote(given)}   # then {setting('dataset.path', path.name)}"
        if given.startswith("hf://datasets/"):
            id = "/".join(given.removeprefix("hf://datasets/").split("/")[:2])
            fix = setting("dataset.path", id)
        raise DataError(f"dataset.path={given}: an address is no file, folder or hub id\n  fix: {fix}")
    if not path.is_dir() and not path.is_file():
        fix = f"\n  fix: python {shlex.quote(str(script))}" if (script := fetched_by(path)) else ""
        raise DataError(f"dataset.path={given}: no such file or folder{beside(given)}{fix}")
    return path


def fetched_by(path: Path) -> Path | None:
    """A recipe's own script that writes this folder into `fetched/` beside itself."""
    script = path.parent.parent / "fetch.py"
    return script if path.parent.name == "fetched" and script.is_file() else None


def beside(given: str) -> str:
    """`; did you mean data/a.jsonl?` for what lies where a path points to and is called alike, or the empty string."""
    folder, _, name = given.rpartition("/")
    place = Path(f"{folder}/" if folder or given.startswith("/") else ".").expanduser()
    found = (one.name for one in place.iterdir()) if place.is_dir() else ()
    return nearest(name, found, before=given.removesuffix(name))


def open_path(dataset: Dataset, split: str) -> Rows:
    """The rows of a split; raises DataError where the path or the split is not there, with what there is."""
    path = check_path(dataset.path)
    if path.is_dir():
        saved = _saved(path, split, dataset)
        return _shards(_chosen(dataset, path, split)) if saved is None else saved
    if split != "train":
        role = _role(dataset, split)
        key = f"dataset.splits.{role}"
        fix = f"{setting(key, 'train[-5%:]')} {setting('dataset.splits.train', 'train[:-5%]')}, or null"
        if role == "train":
            fix = "dataset.splits.train=train"
        raise DataError(f"dataset.path={path} is one file, whose split is called train, not `{split}`\n  fix: {fix}")
    return open_file(path)


def files(path: Path) -> Iterator[Path]:
    """Every file of a path whose bytes rows may depend on."""
    if path.is_file():
        yield path
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        if file.is_file() and (file.name.lower().endswith((*SUFFIXES, ".arrow")) or _configs(file)):
            yield file


def _role(dataset: Dataset, split: str) -> str:
    asked = {role: str(text).partition("[")[0] for role, text in asdict(dataset.splits).items()}
    return next((role for role, name in asked.items() if name == split), "train" if split == "train" else "eval")


def _saved(path: Path, split: str, dataset: Dataset) -> Rows | None:
    """What `save_to_disk` of the library `datasets` left; None where it is another folder."""
    several = (path / "dataset_dict.json").is_file()
    if not several and not (path / "state.json").is_file():
        return None
    import datasets

    from rlhf.data.arrow import Arrow

    folder = path / split if several else path
    if not (folder / "state.json").is_file() or (not several and split != "train"):
        names = [file.parent.name for file in path.glob("*/state.json")] if several else ["train"]
        raise _no_split(dataset, path, split, names, [])
    try:
        return Arrow(datasets.Dataset.load_from_disk(str(folder)), str(folder))
    except Exception as error:  # what is in the folder is not what the library left there
        raise DataError(f"{folder} is no dataset that save_to_disk left: {str(error)[:300]}") from error


def _shards(chosen: list[Path]) -> Rows:
    opened = [open_file(file) for file in chosen]
    return opened[0] if len(opened) == 1 else Chained(opened)


def _chosen(dataset: Dataset, path: Path, split: str) -> list[Path]:
    """The files of a split: those that README.md names as the hub reads it, else those that are called after it."""
    if configs := _configs(path / "README.md"):
        return _configured(dataset, path, split, configs)
    found = [file for file in _inside(path) if _split_of(path, file, split)]
    if not found:
        raise _no_split(dataset, path, split, _names(path), list(_inside(path)))
    subsets: dict[str, list[Path]] = {}
    for file in found:
        subsets.setdefault(_subset_of(path, file, split), []).append(file)
    wanted = dataset.subset
    if wanted is None and len(subsets) > 1:
        wanted = "default" if "default" in subsets else None
    if wanted is None and len(subsets) > 1:
        raise DataError(
            f"dataset.path={path}: split `{split}` is in several subsets\n  allowed: {', '.join(sorted(subsets))}\n"
            f"  fix: {setting('dataset.subset', max(subsets))}"
        )
    if wanted is not None and wanted not in subsets:
        there = ", ".join(sorted(subsets))
        fix = "dataset.subset=null" if list(subsets) == ["."] else setting("dataset.subset", max(subsets))
        near = nearest(wanted, subsets)
        raise DataError(f"dataset.subset={wanted}: not in {path}{near}\n  allowed: {there}\n  fix: {fix}")
    return _whole(subsets[wanted] if wanted is not None else found)


def _inside(path: Path) -> Iterator[Path]:
    """The files of formats that are read, in order; what is hidden is the download's own."""
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.name.lower().endswith(SUFFIXES) and file.name not in ABOUT and file.is_file():
            yield file


def _stem(file: Path) -> str:
    """A file's name without the suffixes of its format."""
    name = file.name
    for known in (COMPRESSED, KINDS):
        suffix = Path(name).suffix
        name = name.removesuffix(suffix) if suffix.lower() in known else name
    return name


def _split_of(path: Path, file: Path, split: str) -> bool:
    """Whether a file is called after the split, or lies in a folder that is: train.jsonl, data/train-00000-of-00002.parquet,
    default/train/0000.parquet."""
    stem = _stem(file)
    return split in (stem, SHARD.sub("", stem)) or (file.parent != path and file.parent.name == split)


def _names(path: Path) -> list[str]:
    """What splits the files of a folder are called after."""
    stems = [SHARD.sub("", _stem(file)) for file in _inside(path)]
    parents = [file.parent.name for file in _inside(path) if re.fullmatch(r"\d+", _stem(file)) and file.parent != path]
    return sorted({stem for stem in stems if not re.fullmatch(r"\d+", stem)} | set(parents))


def _subset_of(path: Path, file: Path, split: str) -> str:
    """The folder above a split's files: `.` where they lie at the top or in data/."""
    stem = _stem(file)
    place = file.parent if split in (stem, SHARD.sub("", stem)) and file.parent.name != split else file.parent.parent
    place = path if file.parent == path else place
    name = place.relative_to(path).as_posix()
    return "." if name in (".", "data") else name.removeprefix("data/")


def _whole(found: list[Path]) -> list[Path]:
    """The same files; raises DataError where a shard is missing, or where the same rows may lie in two files."""
    alike: dict[tuple[Path, str], list[Path]] = {}
    for file in found:
        alike.setdefault((file.parent, SHARD.sub("", _stem(file))), []).append(file)
    for (folder, name), several in alike.items():
        stems = [_stem(file) for file in several]
        if len(set(stems)) < len(stems) or (name in stems and len(stems) > 1):
            names = ", ".join(file.name for file in several[:SHOWN])
            why = f"`{name}` is one file and several, of which each may hold all rows: {names}"
            raise DataError(
                f"{folder}: {why}\n  fix: {setting('dataset.path', str(several[0]))}, or leave one of them in the folder"
            )
        shards = [match for stem in stems if (match := SHARD.search(stem)) and match["count"]]
        counts, there = {int(match["count"]) for match in shards}, {int(match["number"]) for match in shards}
        if len(counts) == 1 and (absent := sorted(set(range(*counts)) - there)):
            why = f"{len(absent)} of {counts.pop()} shards of `{name}` are missing, the first is number {absent[0]}"
            raise DataError(f"{folder}: {why}\n  fix: finish the download (`hf download` goes on where it stopped)")
    return found


def _no_split(dataset: Dataset, path: Path, split: str, names: Iterable[str], there: list[Path]) -> DataError:
    names = sorted(names, key=lambda name: (not name.startswith(split), name))
    role, files = _role(dataset, split), ", ".join(file.name for file in there[:SHOWN])
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    if not names:
        return DataError(f"dataset.path={path}: no file that is read in it\n  fix: {READ}")
    has = f"file named after split `{split}` (has: {files}{more})" if files else f"split `{split}`"
    fix = " or ".join(setting(f"dataset.splits.{role}", name) for name in names[:4])
    if len(there) == 1:
        null = f"dataset.splits.{role}=null"
        fix = setting("dataset.path", str(there[0])) if split == "train" else f"{fix}, or {null}"
    return DataError(f"dataset.path={path}: no {has}\n  allowed: {', '.join(names[:SHOWN])}\n  fix: {fix}")


def _configs(readme: Path) -> list[dict[str, Any]]:
    """The subsets that a dataset card defines with their files (`configs:` with `data_files`), if it does."""
    if readme.name != "README.md" or not readme.is_file():
        return []
    import yaml

    head = re.match(r"---\r?\n(.*?)\r?\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = card.get("configs") if isinstance(card, dict) else None
    return [c for c in configs if isinstance(c, dict) and "data_files" in c] if isinstance(configs, list) else []


def _configured(dataset: Dataset, path: Path, split: str, configs: list[dict[str, Any]]) -> list[Path]:
    named = {str(config.get("config_name", "default")): config for config in configs}
    default = [name for name, config in named.items() if config.get("default") or name == "default"]
    wanted = dataset.subset or (next(iter(named)) if len(named) == 1 else next(iter(default), None))
    if wanted not in named:
        why = "is none of the subsets in its README.md" if wanted else "its README.md names several subsets"
        fix = setting("dataset.subset", next(iter(named)))
        raise DataError(f"dataset.path={path}: {wanted or ''} {why}\n  allowed: {', '.join(named)}\n  fix: {fix}")
    given = named[wanted]["data_files"]
    entries = given if isinstance(given, list) and all(isinstance(one, dict) for one in given) else None
    by_split = {str(one.get("split")): one.get("path") for one in entries} if entries else {"train": given}
    if split not in by_split:
        raise _no_split(dataset, path, split, by_split, [])
    patterns = by_split[split] if isinstance(by_split[split], list) else [by_split[split]]
    found = [file for pattern in patterns for file in sorted(path.glob(str(pattern))) if file.is_file()]
    if not found:
        raise DataError(
            f"dataset.path={path}: no file is there of {', '.join(map(str, patterns))}, as README.md names them"
        )
    return _whole(list(dict.fromkeys(found)))
