"""Rows of Arrow tables and Parquet files as what they were before they were put into columns."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import BadRow, Row, Rows
from rlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Decode = Callable[[Any], Any]
BATCH = 1000  # rows that are Python objects at a time


def rows_of(table: "pyarrow.Table | pyarrow.RecordBatch", place: str, first: int) -> Iterator[Row]:
    """The rows of a table, the first of which is number `first` of `place`."""
    decoders = {
        field.name: decode
        for field in table.schema
        if (decode := _decoder(field.type, _features(table.schema).get(field.name)))
    }
    try:
        found: list[Any] = table.to_pylist()
    except (ValueError, OverflowError):  # a date before the year 1 and the like: it breaks alone
        found = [None] * table.num_rows
    for index, values in enumerate(found):
        where = f"{place}:{first + index}"
        try:
            values = table.slice(index, 1).to_pylist()[0] if values is None else values
            for name, decode in decoders.items():
                values[name] = decode(values[name])
        except (ValueError, OverflowError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else "not a value"
            yield Row(where, {}, BadRow(reason, f"a cell can't be read: {str(error)[:200]}"))
            continue
        yield Row(where, values)


def _features(schema: "pyarrow.Schema") -> dict[str, Any]:
    """What the library `datasets` notes on its columns."""
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"] or {}
    except (ValueError, KeyError, TypeError):
        return {}


def _decoder(kind: "pyarrow.DataType", feature: Any, listed: bool = False) -> Decode | None:
    """What turns a cell of a type into what it was, or None where nothing is to be done.

    Text that is said to be JSON, by its type or by `datasets`, is decoded. All structs of a column have the same keys in Arrow, so
    in lists of them (turns, tools, calls) the keys that an element did not have come back as None, which a chat template would
    write out: they are left out again. A struct that is a whole cell keeps them.
    """
    import pyarrow

    types, feature = pyarrow.types, feature if isinstance(feature, dict | list) else {}
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _json if kind.extension_name == "arrow.json" else _decoder(kind.storage_type, feature, listed)
    if isinstance(feature, dict) and feature.get("_type") == "Json" and _is_text(kind):
        return _json
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _decoder(kind.value_type, _element(feature), listed=True)
        return inner and (lambda cells: cells if cells is None else [inner(cell) for cell in cells])
    if types.is_map(kind):
        return lambda pairs: None if pairs is None else dict(pairs)
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        known = feature if isinstance(feature, dict) else {}
        inside = {field.name: d for field in fields if (d := _decoder(field.type, known.get(field.name), listed))}
        if inside or listed:
            return lambda struct: _struct(struct, inside, listed)
    return None


def _element(feature: Any) -> Any:
    return (feature[0] if feature else None) if isinstance(feature, list) else feature.get("feature")


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _struct(struct: dict[str, Any] | None, inside: dict[str, Decode], listed: bool) -> dict[str, Any] | None:
    if struct is None:
        return None
    return {
        name: inside[name](value) if name in inside else value
        for name, value in struct.items()
        if not (listed and value is None)
    }


class Parquet(Rows):
    """A Parquet file; `source` is what Arrow reads, where that is not the file itself."""

    def __init__(self, file: Path, source: bytes | None = None) -> None:
        self.file, self.source = file, source

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        source = self.file if self.source is None else pyarrow.BufferReader(self.source)
        try:
            return pyarrow.parquet.ParquetFile(source)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.file}: not a Parquet file: {error}") from error

    def __len__(self) -> int:
        with self._open() as table:
            return table.metadata.num_rows

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        import pyarrow

        with self._open() as table:
            count = table.metadata.num_rows
            last, index = count if stop is None else min(stop, count), 0
            try:
                for group in range(table.num_row_groups):
                    count = table.metadata.row_group(group).num_rows
                    if index + count > start and index < last:
                        yield from self._group(table, group, index, start, last)
                    index += count
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{self.file}: broken after row {index}: {error}") from error

    def _group(self, table: Any, group: int, index: int, start: int, stop: int) -> Iterator[Row]:
        for batch in table.iter_batches(batch_size=BATCH, row_groups=[group]):
            first, last = max(start - index, 0), min(stop - index, batch.num_rows)
            if first < last:
                yield from rows_of(batch.slice(first, last - first), str(self.file), index + first)
            index += batch.num_rows
            if index >= stop:
                return


class Arrow(Rows):
    """A dataset of the library `datasets`, which lies in Arrow files."""

    def __init__(self, loaded: Any, place: str) -> None:
        self.loaded, self.place = loaded.with_format("arrow"), place

    def identity(self) -> str:
        return str(self.loaded._fingerprint)  # noqa: SLF001 - which `datasets` gives to what it downloaded

    def __len__(self) -> int:
        return len(self.loaded)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, BATCH):
            yield from rows_of(self.loaded[first : min(first + BATCH, stop)], self.place, first)


class Streamed(Rows):
    """Rows that an IterableDataset of the library `datasets` fetches as they are read; nobody knows how many."""

    def __init__(self, stream: Any, place: str) -> None:
        self.stream, self.place = stream, place

    @property
    def counted(self) -> bool:
        return False

    def __len__(self) -> int:
        raise TypeError(
            f"{self.place} is read from the hub as it is needed (dataset.streaming=true), not counted before"
        )

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        stream = self.stream.skip(start) if start else self.stream
        stream = stream if stop is None else stream.take(max(stop - start, 0))
        first = start
        for table in stream.with_format("arrow").iter(batch_size=100):
            yield from rows_of(table, self.place, first)
            first += table.num_rows
