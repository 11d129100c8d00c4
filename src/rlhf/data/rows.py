"""A row with where it stands and what is wrong with it, and rows that can be counted and read from the middle on."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


class BadRow(Exception):
    """A row that breaks the contract; `reason` is what the ledger counts, `fix` what mends it where that is known."""

    def __init__(self, reason: str, detail: str, fix: str = "") -> None:
        super().__init__(reason, detail, fix)
        self.reason, self.detail, self.fix = reason, detail, fix

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True)
class Row:
    """One row and where it stands: `file:line` for files, `id[split]:index` for the rest.

    `bad` is what is wrong with a row that could not be read, such as a line that is no JSON: asking for its `values` raises it,
    so that the ledger counts it as any other bad row.
    """

    where: str
    cells: dict[str, Any]
    bad: BadRow | None = None

    @property
    def flat(self) -> bool:
        """Whether it is a line of a file whose cells are all texts."""
        return bool(re.search(r"\.[ct]sv(\.\w+)?:\d+$", self.where))

    @property
    def values(self) -> dict[str, Any]:
        """The cells by column; raises BadRow where the row could not be read."""
        if self.bad is not None:
            raise self.bad
        return self.cells


class Rows(ABC):
    """Rows in order. They can be pickled, so that each of several processes reads a stretch of them."""

    @property
    def counted(self) -> bool:
        """Whether len() can be told before all rows have been read."""
        return True

    def identity(self) -> str:
        """What names these rows beside where they are said to be; another one each time where nothing does."""
        inner = getattr(self, "rows", None)
        return inner.identity() if isinstance(inner, Rows) else str(time.time_ns())

    @abstractmethod
    def __len__(self) -> int:
        """How many there are, without making their values."""

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """The rows from `start` to before `stop` (both not negative), without making the values of those before them."""


@dataclass
class Chained(Rows):
    """Rows after rows: the shards of a split, the parts of a mixture."""

    parts: Sequence[Rows]

    @property
    def counted(self) -> bool:
        return all(part.counted for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        first = 0
        for number, part in enumerate(self.parts, 1):
            if stop is not None and stop <= first:
                return
            if number == len(self.parts) or (start == 0 and stop is None):  # nothing has to be counted
                yield from part.read(max(start - first, 0), None if stop is None else stop - first)
                continue
            count = len(part)
            if start < first + count:
                yield from part.read(max(start - first, 0), count if stop is None else min(stop - first, count))
            first += count


@dataclass
class Sliced(Rows):
    """`rows[start:stop]`; a bound is a number, negative from the end, a text such as `95%`, or None."""

    rows: Rows
    start: int | str | None
    stop: int | str | None

    @property
    def counted(self) -> bool:
        return self.rows.counted

    @cached_property
    def bounds(self) -> tuple[int, int | None]:
        """Both from the start; rows are counted only where a bound needs it."""
        given = (self.start, self.stop)
        if not any(isinstance(bound, str) or (bound or 0) < 0 for bound in given):
            return int(self.start or 0), None if self.stop is None else int(self.stop)
        whole = cut(*given, len(self.rows))
        return whole.start, max(whole.start, whole.stop)

    def __len__(self) -> int:
        start, stop = self.bounds
        return len(cut(start, stop, len(self.rows)))

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        first, last = self.bounds
        ends = [end for end in (last, None if stop is None else first + stop) if end is not None]
        return self.rows.read(first + start, min(ends, default=None))


def cut(start: int | str | None, stop: int | str | None, count: int) -> range:
    """Which of `count` rows a slice leaves."""

    def absolute(bound: int | str | None) -> int | None:
        return count * int(bound.rstrip("%")) // 100 if isinstance(bound, str) else bound

    return range(count)[absolute(start) : absolute(stop)]


@dataclass
class Weighted(Rows):
    """Rows read `weight` times: 2 reads them twice, 0.5 takes every second one, 1.5 all and then every second one.

    What is taken of them is spread evenly, the same at every start whatever the seed.
    """

    rows: Rows
    weight: float

    @property
    def counted(self) -> bool:
        return self.rows.counted

    def __len__(self) -> int:
        return round(len(self.rows) * self.weight)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        if self.weight == 1:
            yield from self.rows.read(start, stop)
            return
        count = len(self.rows)
        stop = len(self) if stop is None else min(stop, len(self))
        while start < stop:
            times, place = divmod(start, count)
            taken = min(count, len(self) - times * count)  # of this time through the rows
            end = min(stop - times * count, taken)
            first, last = place * count // taken, (end - 1) * count // taken + 1
            for index, row in enumerate(self.rows.read(first, last), first):
                if -(-(index + 1) * taken // count) > -(
                    -index * taken // count
                ):  # index = number * count // taken for a number
                    yield row
            start = times * count + end


def first_good(taken: list[Row], rows: Iterator[Row]) -> Row | None:
    """The first row that could be read; `taken` gets it and the bad ones before it."""
    for row in rows:
        taken.append(row)
        if row.bad is None:
            return row
    return None
