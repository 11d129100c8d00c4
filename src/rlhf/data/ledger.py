"""What happened to the rows of a split: every one of them is counted as kept, dropped or cut, by reason."""

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.rows import BadRow, Row
from rlhf.data.store import joined
from rlhf.errors import DataError

SHOWN = 5  # dropped rows that a ledger names


@dataclass
class Ledger:
    """What happened to the rows of one split, or to a stretch of them."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    ties: int = 0
    rankings: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))  # a hash of what was asked, for each row kept
    digests: list[str] = field(default_factory=list)

    @contextmanager
    def account(self, row: Row, bad_rows: str) -> Iterator[None]:
        """Counts a row, which stops with file and line if it breaks the contract, or is dropped with `bad_rows=drop`."""
        self.read += 1
        try:
            yield
        except BadRow as bad:
            if bad_rows == "error":
                fix = bad.fix or "mend the row, or dataset.bad_rows=drop to leave such rows out"
                raise DataError(f"{row.where}: {bad}\n  fix: {fix}") from bad
            self.drop(bad.reason, row.where)

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"{where}: {reason}")

    def add(self, other: "Ledger") -> None:
        """Take in what happened to the rows after these."""
        for name in ("read", "kept", "truncated", "ties", "rankings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped
        self.examples = [*self.examples, *other.examples][:SHOWN]
        self.lengths += other.lengths
        self.prompts += other.prompts
        self.digests += other.digests

    def report(self) -> dict[str, Any]:
        lengths, count = sorted(self.lengths), len(self.lengths)
        quantile = {f"p{q}": lengths[min(count - 1, count * q // 100)] for q in (50, 95, 100) if lengths}
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "truncated": self.truncated,
            "ties": self.ties,
            "rankings": self.rankings,
            "tokens": quantile | {"sum": sum(lengths)},
            "dropped_examples": self.examples,
            "fingerprint": joined(self.digests),
        }
