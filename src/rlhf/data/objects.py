"""Rows that are JSON objects: a line each, in an array, in a list inside an object, or one after another."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from rlhf.data.rows import BadRow, Row, Rows
from rlhf.data.text import Indexed, not_utf8, utf8
from rlhf.errors import DataError

HEAD = 2**20  # bytes that are looked at to tell what a file holds
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escaped half of a character beyond U+FFFF
# what tells one row from an object that holds a list of rows
COLUMNS = {"prompt", "instruction", "question", "messages", "conversations", "chosen", "rejected", "completion", "text"}
TURN = {"role", "from", "content", "value"}


def open_json(file: Path, kind: str) -> Rows:
    """A .json or .jsonl file by what it holds: each is often called the other."""
    with utf8(file) as (stream, _):
        line, _, rest = stream.read(HEAD).lstrip().partition(b"\n")
    alone = not rest.strip()
    if kind == "lines":
        spread = line.strip() in (b"[", b"{")
        if not spread and (not re.match(rb"\[\s*\{", line) or (not alone and _parses(line))):
            return Lines(file)
    elif line.startswith(b"{") and not alone and _parses(line):
        return Lines(file)
    return Items(file, _list_in(file) if line.startswith(b"{") else None)


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _list_in(file: Path) -> str:
    """The key of the one list of rows in a JSON object; the empty string where the object is a row itself.

    Raises:
        DataError: there are several lists, none of them called train.
    """
    with utf8(file) as (stream, _):
        window = _Window(file, stream)
        keys, lists = set(), []
        for key in window.names():
            keys.add(key)
            if window.peek() != "[":
                window.element()
                continue
            for index, (byte, _, value) in enumerate(window.elements()):
                if index == 0 and isinstance(value, dict) and not TURN & set(value):
                    lists.append(key)
                if byte > 4 * HEAD and key in lists:  # too large to be looked through
                    return "" if COLUMNS & keys else key
        if window.peek() or COLUMNS & keys or not lists:
            return ""
    if len(lists) > 1 and "train" not in lists:
        fix = f'python -c \'import json; json.dump(json.load(open({str(file)!r}))[{lists[0]!r}], open("rows.json", "w"))\''
        raise DataError(f"{file}: several lists of rows: {', '.join(lists)}\n  fix: {fix}")
    return lists[0] if len(lists) == 1 else "train"


def _object(file: Path, raw: bytes) -> dict[str, Any]:
    """A JSON object; raises BadRow where it is none."""
    if bad := None if raw.isascii() else not_utf8(file, raw):
        raise bad
    try:
        values = json.loads(raw.rstrip(b"\r\n"))
    except json.JSONDecodeError as error:
        raise BadRow("not JSON", f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("nested too deep", "lists and objects are nested too deep to be read") from error
    except ValueError as error:
        raise BadRow("not JSON", f"not JSON that can be read: {error}") from error
    return _checked(values, halves=bool(HALF.search(raw)))


def _checked(values: Any, halves: bool) -> dict[str, Any]:
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise BadRow("not an object", f"expected an object with named columns, found {kind}")
    if halves:
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # tokenizers refuse it
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise BadRow("half a character", f"{half} is half of a character that was cut") from error
    return values


class Lines(Indexed):
    """An object a line."""

    def places(self, stream: IO[bytes], byte: int, line: int) -> Iterator[tuple[int, int]]:
        for at, raw in enumerate(stream, line):
            if not raw.isspace():
                yield byte, at
            byte += len(raw)

    def rows(self, stream: IO[bytes], byte: int, line: int, skip: int, number: int) -> Iterator[Row]:
        for at, raw in enumerate(stream, line):
            if raw.isspace():
                continue
            if skip:
                skip -= 1
                continue
            where = f"{self.file}:{at}"
            try:
                row = Row(where, _object(self.file, raw))
            except BadRow as bad:
                row = Row(where, {}, bad)
            yield row


class _Window:
    """Text of a stream that is read on as JSON values are taken from it: no more than one of them is held."""

    space = re.compile(r"[ \t\r\n]*")
    bracket = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

    def __init__(self, file: Path, stream: IO[bytes], byte: int = 0, line: int = 1) -> None:
        self.file, self.stream, self.text, self.at = file, stream, "", 0
        self.passed, self.lines, self.seen, self.ended = byte, line, 0, False  # passed, lines: before text[seen]
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.parse = json.JSONDecoder().raw_decode

    @property
    def place(self) -> tuple[int, int]:
        """Byte and line of the next character."""
        behind = self.text[self.seen : self.at]
        self.passed += len(behind.encode("utf-8", "surrogateescape"))
        self.lines, self.seen = self.lines + behind.count("\n"), self.at
        return self.passed, self.lines

    @property
    def line(self) -> int:
        return self.place[1]

    def more(self) -> bool:
        """Whether there was more to read; drops what lies behind."""
        if self.ended:
            return False
        self.passed, self.lines = self.place
        rest = self.text[self.at :]
        chunk = self.stream.read(max(HEAD, len(rest)))  # twice as much for a value that did not fit
        self.ended = not chunk
        self.text, self.at, self.seen = rest + self.decode(chunk, final=not chunk), 0, 0
        return True

    def peek(self) -> str:
        """The next character that is no space, or the empty string at the end."""
        while True:
            self.at = cast(Any, self.space.match(self.text, self.at)).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str, inside: str) -> str:
        """The next character, which must be one of `wanted`."""
        if (found := self.peek()) and found in wanted:
            self.at += 1
            return found
        expected, what = " or ".join(wanted), repr(found) if found else "the end of the file"
        raise DataError(f"{self.file}:{self.line}: not JSON: expected {expected} {inside}, found {what}")

    def value(self) -> Any:
        """The next value; raises BadRow, behind it, where it is JSON that can't be read."""
        self.peek()
        while True:
            bad = None
            try:
                value, end = self.parse(self.text, self.at)
                if end < len(self.text) or not self.more():
                    raw, self.at = self.text[self.at : end], end
                    return value if raw.isascii() and "\\u" not in raw else self._whole(value, raw)
                continue
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not (cut and self.more()):
                    line = self.line + self.text.count("\n", self.at, error.pos)
                    raise DataError(f"{self.file}:{line}: not JSON: {error.msg}") from error
                continue
            except RecursionError:
                bad = BadRow("nested too deep", "lists and objects are nested too deep to be read")
            except ValueError as error:
                bad = BadRow("not JSON", f"not JSON that can be read: {error}")
            self._skip()
            raise bad

    def elements(self, entered: bool = False) -> Iterator[tuple[int, int, Any]]:
        """Byte, line, and the value or the BadRow of every element of the list that comes next, or that was entered before."""
        if not entered:
            self.take("[", "around the rows")
            if self.peek() == "]":
                self.take("]", "after the rows")
                return
        while True:
            yield self.element()
            if self.take(",]", "after a row") == "]":
                return

    def element(self) -> tuple[int, int, Any]:
        self.peek()
        byte, line = self.place
        try:
            return byte, line, self.value()
        except BadRow as bad:
            return byte, line, bad

    def names(self) -> Iterator[str]:
        """The keys of the object that comes next, each before its value, which has to be taken."""
        self.take("{", "before a row")
        while self.peek() != "}":
            if self.peek() != '"':
                self.take('"', "before a name")
            key = self.value()
            self.take(":", "after a name")
            yield key
            if self.take(",}", "after a value") == "}":
                return
        self.take("}", "after a row")

    def _whole(self, value: Any, raw: str) -> Any:
        data = raw.encode("utf-8", "surrogateescape")
        if bad := not_utf8(self.file, data):
            raise bad
        if isinstance(value, dict):
            _checked(value, halves=bool(HALF.search(data)))
        return value

    def _skip(self) -> None:
        """Past a list or an object, by its brackets."""
        while True:
            depth = 0
            for token in self.bracket.finditer(self.text, self.at):
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
                if depth == 0:
                    self.at = token.end()
                    return
            if not self.more():
                raise DataError(f"{self.file}:{self.line}: not JSON: a list or object that never ends")


class Items(Indexed):
    """The objects of a JSON array, of the list under `name` in an object, or (`name` is the empty string) one after another."""

    def __init__(self, file: Path, name: str | None) -> None:
        super().__init__(file)
        self.name = name

    def _walk(self, window: _Window, entered: bool = False) -> Iterator[tuple[int, int, Any]]:
        """Byte, line, and the value or the BadRow of every item."""
        if self.name == "":
            while window.peek():
                yield window.element()
            return
        if self.name and not entered:
            _enter(window, self.name)
        yield from window.elements(entered)
        if self.name is None and window.peek():
            raise DataError(f"{self.file}:{window.line}: not JSON: more after the end of the array")

    def places(self, stream: IO[bytes], byte: int, line: int) -> Iterator[tuple[int, int]]:
        window = _Window(self.file, stream, max(byte, 0), line)
        return ((byte, line) for byte, line, _ in self._walk(window))

    def rows(self, stream: IO[bytes], byte: int, line: int, skip: int, number: int) -> Iterator[Row]:
        window = _Window(self.file, stream, max(byte, 0), line)
        for index, (_, at, found) in enumerate(self._walk(window, entered=number > 0), number):
            if index < number + skip:
                continue
            where = f"{self.file}:{at}, item {index + 1}"
            if not isinstance(found, BadRow):
                try:
                    yield Row(where, _checked(found, halves=False))
                    continue
                except BadRow as bad:
                    found = bad
            yield Row(where, {}, found)


def _enter(window: _Window, name: str) -> None:
    """To the value of a key of the object that comes next."""
    for key in window.names():
        if key == name:
            return
        window.element()
