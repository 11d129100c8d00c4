"""Rows of one file: JSON, CSV, TSV or Parquet, compressed or not, told by its suffix or by its first bytes."""

import codecs
import shlex
from pathlib import Path

from rlhf.data.arrow import Parquet
from rlhf.data.objects import open_json
from rlhf.data.rows import Rows
from rlhf.data.tables import Table
from rlhf.data.text import COMPRESSED, KINDS, inner, opened, packing, unpacked
from rlhf.errors import DataError

SUFFIXES = (*KINDS, *(kind + packed for kind in KINDS for packed in COMPRESSED))
READ = ".json, .jsonl, .ndjson, .csv, .tsv and .parquet are read, also as .gz, .bz2, .xz, .zst or .zip"


def open_file(file: Path) -> Rows:
    """The rows of a file; raises DataError where it is none of the formats, or not what its suffix says."""
    kind = _kind(file)
    if kind == "parquet":
        return Parquet(file, unpacked(file) if packing(file) else None)
    if kind == "csv":
        return Table(file)
    return open_json(file, kind)


def _kind(file: Path) -> str:
    """`lines`, `json`, `csv` or `parquet`."""
    with opened(file) as stream:
        head = stream.read(4096)
    if head.startswith(b"version https://git-lfs"):
        fix = f"git -C {shlex.quote(str(file.parent))} lfs pull"
        raise DataError(f"{file} is a pointer of Git LFS, not the file itself\n  fix: {fix}")
    if head[:4] == b"PAR1":
        return "parquet"
    if known := KINDS.get(inner(file).suffix.lower()):
        return known
    if head.lstrip(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return "json"
    fix = f"mv {shlex.quote(str(file))} {shlex.quote(str(file.with_suffix('.csv')))}   # if it is CSV"
    raise DataError(f"{file}: neither its name nor its first bytes tell what it holds; {READ}\n  fix: {fix}")
