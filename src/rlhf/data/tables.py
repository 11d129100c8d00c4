"""Rows of CSV and TSV files, as spreadsheets and scripts write them."""

import csv
import re
import shlex
from collections import deque
from collections.abc import Iterator
from typing import IO

from rlhf.data.rows import BadRow, Row
from rlhf.data.text import Indexed, inner, not_utf8
from rlhf.errors import DataError
from rlhf.shell import setting

LONGEST = 2**27  # characters of a CSV cell: a quote that is never closed takes the rest of the file


class Table(Indexed):
    """CSV with the names of its columns in the first line, separated by commas, by semicolons as office programs write where the
    comma is decimal, or by tabs."""

    names: list[str] | None = None
    delimiter = ","

    def _header(self, stream: IO[bytes], byte: int) -> tuple[int, int]:
        """Reads the names of the columns; the place of the first row."""
        line = 1
        raw = stream.peek(2**20)[: 2**20] if hasattr(stream, "peek") else b""  # pyright: ignore[reportAttributeAccessIssue]
        if b"\r" in raw.replace(b"\r\n", b"") and b"\n" not in raw:
            name = str(self.file.with_name(f"lines-{self.file.name}"))
            made, then = shlex.quote(name), setting("dataset.path", name)
            fix = f"tr '\\r' '\\n' > {made} < {shlex.quote(str(self.file))}   # then {then}"
            raise DataError(f"{self.file}: its lines end in carriage returns alone\n  fix: {fix}")
        first = stream.readline()
        byte = byte + len(first) if byte >= 0 else -1
        while first.isspace():
            first, line = stream.readline(), line + 1
            byte = byte + len(first) if byte >= 0 else -1
        if match := re.fullmatch(rb"\"?sep=(.)\"?\r?\n", first, re.IGNORECASE):  # for Excel, before the names
            self.delimiter, line, first = match[1].decode(), line + 1, stream.readline()
            byte = byte + len(first) if byte >= 0 else -1
        else:
            bare = re.sub(rb'"[^"]*"', b"", first)
            tab = inner(self.file).suffix.lower() == ".tsv" or not (b"," in bare or b";" in bare)
            self.delimiter = "\t" if tab and b"\t" in bare else ";" if b";" in bare and b"," not in bare else ","
        if bad := not_utf8(self.file, first):
            raise DataError(f"{self.file}:{line}: {bad}\n  fix: {bad.fix.partition(', or ')[0]}")
        physical = _Physical(stream, [first])
        try:
            names = [name.strip() for name in next(csv.reader(physical, delimiter=self.delimiter, strict=True), [])]
        except csv.Error as error:
            raise DataError(f"{self.file}:{line}: the names of the columns are not CSV: {error}") from error
        rest = physical.taken[1:]
        twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
        if twice:
            raise DataError(f"{self.file}:{line}: two columns are called {', '.join(twice)}")
        self.names = names
        return (byte + sum(map(len, rest)) if byte >= 0 else -1), line + len(physical.taken)

    def _records(self, stream: IO[bytes], byte: int, line: int) -> Iterator[tuple[int, int, list[str], BadRow | None]]:
        """Byte, line, cells and what is wrong, of every record that is not blank."""
        if line == 1:
            byte, line = self._header(stream, byte)
        csv.field_size_limit(LONGEST)
        physical = _Physical(stream)
        reader = csv.reader(physical, delimiter=self.delimiter, strict=True)
        while True:
            physical.taken.clear()
            cells, bad = None, None
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # the lines after a torn one may be whole: they are read again by themselves
                physical.back.extendleft(reversed(physical.taken[1:]))
                del physical.taken[1:]
                bad = BadRow("not CSV", f"not CSV: a quote that is torn or never closed ({error})")
            if cells is None and bad is None:
                return
            if cells or bad:
                yield byte, line, cells or [], bad or self._wrong(physical.taken)
            line += len(physical.taken)
            byte += sum(map(len, physical.taken)) if byte >= 0 else 0

    def _wrong(self, taken: list[bytes]) -> BadRow | None:
        raw = b"".join(taken)
        if b"\0" in raw:
            return BadRow("NUL", "a NUL byte, which no text has")
        return None if raw.isascii() else not_utf8(self.file, raw)

    def places(self, stream: IO[bytes], byte: int, line: int) -> Iterator[tuple[int, int]]:
        return ((byte, line) for byte, line, _, _ in self._records(stream, byte, line))

    def rows(self, stream: IO[bytes], byte: int, line: int, skip: int, number: int) -> Iterator[Row]:
        for _, at, cells, bad in self._records(stream, byte, line):
            if skip:
                skip -= 1
                continue
            names = self.names or []
            if bad is None and len(cells) != len(names):
                expected = f"expected {len(names)} columns, as in the first line, found {len(cells)}"
                bad = BadRow("ragged line", expected)
            values = {name: cell for name, cell in zip(names, cells, strict=False) if name}
            yield Row(f"{self.file}:{at}", {} if bad else values, bad)


class _Physical:
    """Lines of a stream for the csv module, with those that the record being read has taken, which can be given back."""

    def __init__(self, stream: IO[bytes], back: list[bytes] | None = None) -> None:
        self.stream, self.back = stream, deque(back or [])
        self.taken: list[bytes] = []

    def __iter__(self) -> "_Physical":
        return self

    def __next__(self) -> str:
        self.taken.append(self.back.popleft() if self.back else next(self.stream))
        return self.taken[-1].decode("utf-8", "surrogateescape")
