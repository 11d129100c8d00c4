"""From the bytes of a file to UTF-8: compression, byte order marks, and what is said of bytes that are neither."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import shlex
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from rlhf.data.rows import BadRow, Row, Rows
from rlhf.errors import DataError
from rlhf.shell import setting

KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSED = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\0",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".zip": b"PK\x03\x04",
}
# of a byte order mark; UTF-32's begins like UTF-16's
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
STEP = 1000  # rows between two places that reading can start from
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def packing(file: Path) -> str:
    """The suffix of a compressed file, by its first bytes: `.gz` of a plain file is none, a gzip file without it is."""
    with file.open("rb") as stream:
        head = stream.read(8)
    return next((suffix for suffix, magic in COMPRESSED.items() if head.startswith(magic)), "")


def inner(file: Path) -> Path:
    """The name of what is compressed."""
    packed_as = packing(file)
    if packed_as == ".zip" and not file.stem.lower().endswith(tuple(KINDS)):
        with zipfile.ZipFile(file) as packed:
            return Path(_member(packed, file))
    return Path(file.stem) if file.suffix.lower() in COMPRESSED else file


def _member(packed: zipfile.ZipFile, file: Path) -> str:
    names = [name for name in packed.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
    if len(names) != 1:
        fix = f"unzip {shlex.quote(str(file))} -d {shlex.quote(str(file.with_suffix('')))}"
        what = f"{len(names)} files ({', '.join(names[:4])}), one is read"
        raise DataError(
            f"{file} holds {what}\n  fix: {fix}   # then {setting('dataset.path', str(file.with_suffix('')))}"
        )
    return names[0]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """A file's bytes without compression; what goes wrong on the way, also later while they are read, is a DataError."""
    try:
        packed_as = packing(file)
        with contextlib.ExitStack() as stack:
            if packed_as == ".zip":
                packed = stack.enter_context(zipfile.ZipFile(file))
                yield stack.enter_context(packed.open(_member(packed, file)))
            elif packed_as == ".zst":
                import pyarrow

                yield cast(IO[bytes], io.BufferedReader(stack.enter_context(pyarrow.input_stream(str(file), "zstd"))))
            else:
                opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed_as, open)
                yield cast(IO[bytes], stack.enter_context(opener(file, "rb")))
    except RecursionError:
        raise
    except BROKEN as error:
        raise DataError(f"{file} can't be read: {error or type(error).__name__}") from error


def unpacked(file: Path) -> bytes:
    with opened(file) as stream:
        return stream.read()


class _Recoded(io.RawIOBase):
    """A stream of UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self.stream, self.rest, self.ended = stream, b"", False
        self.decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest and not self.ended:
            chunk = self.stream.read(2**16)
            self.ended = not chunk
            try:
                self.rest = self.decoder.decode(chunk, final=self.ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:  # cut, or no character: no UTF-8 either, so that its row is a bad one
                self.rest = b"\xff"
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


@contextlib.contextmanager
def utf8(file: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file as UTF-8 behind its byte order mark, and the byte that this is, or -1 where places can't be sought."""
    with opened(file) as stream:
        buffered = cast(Any, stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream)))
        head = buffered.peek(4)[:4]
        mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
        if MARKS.get(mark, "utf-8") == "utf-8":
            if not mark and len(head) == 4 and head.count(b"\0") >= 2:
                encoding = ("UTF-32" if head.count(b"\0") > 2 else "UTF-16") + ("BE" if head[:1] == b"\0" else "LE")
                raise DataError(f"{file}: {encoding} without a byte order mark\n  fix: {iconv(file, encoding)}")
            buffered.read(len(mark))
            yield buffered, -1 if packing(file) else len(mark)
        else:
            yield cast(IO[bytes], io.BufferedReader(_Recoded(buffered, MARKS[mark]))), -1


def iconv(file: Path, encoding: str) -> str:
    name = str(file.with_name(f"utf8-{inner(file).name}"))
    source, made, then = shlex.quote(str(file)), shlex.quote(name), setting("dataset.path", name)
    unpack = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc", ".zip": "unzip -p"}
    if packed_as := packing(file):
        return f"{unpack[packed_as]} {source} | iconv -f {encoding} -t UTF-8 > {made}   # then {then}"
    return f"iconv -f {encoding} -t UTF-8 {source} > {made}   # then {then}"


def not_utf8(file: Path, raw: bytes) -> BadRow | None:
    """What is wrong with bytes that are not UTF-8, with the command that mends the file."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        try:
            raw.decode("cp1252")
            encoding = "WINDOWS-1252"
        except UnicodeDecodeError:
            encoding = "ISO-8859-1"
        what = f"not UTF-8 ({error.reason} at byte {error.start}: 0x{raw[error.start]:02x}), perhaps {encoding}"
        return BadRow("not UTF-8", what, f"{iconv(file, encoding)}, or dataset.bad_rows=drop to leave such rows out")
    return None


class Indexed(Rows):
    """Rows of a text file. Counting them notes where every STEP-th begins, so that reading can start there."""

    def __init__(self, file: Path) -> None:
        self.file, self.count = file, None
        self.marks: list[tuple[int, int]] = []  # byte and line of rows 0, STEP, 2 STEP, ...

    @abstractmethod
    def places(self, stream: IO[bytes], byte: int, line: int) -> Iterator[tuple[int, int]]:
        """Byte and line of every row."""

    @abstractmethod
    def rows(self, stream: IO[bytes], byte: int, line: int, skip: int, number: int) -> Iterator[Row]:
        """The rows from a place on, the first of which is row `number`, without the first `skip`."""

    def __len__(self) -> int:
        if self.count is None:
            with utf8(self.file) as (stream, byte):
                count, marks = 0, []
                for place in self.places(stream, byte, 1):
                    if byte >= 0 and count % STEP == 0:
                        marks.append(place)
                    count += 1
            self.count, self.marks = count, marks
        return self.count

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        if stop is not None and stop <= start:
            return
        with utf8(self.file) as (stream, byte):
            line, number, near = 1, 0, min(start // STEP, len(self.marks) - 1)
            if near > 0:
                (byte, line), number = self.marks[near], near * STEP
                stream.seek(byte)
            for index, row in enumerate(self.rows(stream, byte, line, start - number, number), start):
                yield row
                if index + 1 == stop:
                    return
