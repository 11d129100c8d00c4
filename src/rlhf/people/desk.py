"""Who is handed which item, and what they say of it: one desk in front of a store, for the page and for terminals.

A share of the items goes to everybody, which agreement is measured on; each other item goes to one annotator, and comes back where
nobody has judged it for `HELD` seconds. What is handed out is kept in the store: desks of several processes never hand the same item
to two, nor does one that was killed and started again. Nothing that leaves here tells which run wrote a reply.
"""

import hashlib
import json
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.errors import DataError, Refusal
from rlhf.feedback.schema import HANDED, Item, Judgement, Reply
from rlhf.feedback.store import Store
from rlhf.people.simulated import PEOPLE

HELD = 900.0  # seconds; who is at work holds an item on
TAGS = {  # what a reply can be told to be, and the rules where a team has none of its own
    "kind": "is friendly to who asks, also where it says no",
    "honest": "promises and invents nothing, and says what it does not know",
    "clarifying": "asks for what is missing before it acts",
    "safe": "helps nobody to do harm",
    "brief": "says what is needed and stops",
}
RULES = "Rank what you would want to get as the person who asks. A good reply\n" + "\n".join(
    f"- {says} ({tag})" for tag, says in TAGS.items()
)
LONGEST = 20_000  # characters of the rules


def rules(path: Path | None) -> str:
    """What a team asks its annotators to go by: the text of a file, which may change meanwhile.

    Raises:
        Refusal: no such file.
        DataError: no text, or more than a page holds.
    """
    if path is None:
        return RULES
    if not path.is_file():
        raise Refusal(
            "rules", path, "no such file", fix=f"write the rules into {path} as plain text, or leave rules= out"
        )
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}\n  fix: save it as UTF-8") from error
    if not 0 < len(text) <= LONGEST:
        raise DataError(f"{path}: {len(text)} characters of rules\n  fix: 1 to {LONGEST}")
    return text


def named(annotator: str) -> str:
    """A name in one form, whoever types it. Raises a Refusal of none, of a long one, and of characters that cannot be seen."""
    name = " ".join(unicodedata.normalize("NFC", annotator).split())
    if not name or len(name) > 40 or not name.isprintable():
        why = "a name of 1 to 40 letters, which judgements are kept under"
        raise Refusal("annotator", ascii(name)[1:-1][:60], why, fix="annotator=ann")
    return name


class Desk:
    """`shared` is the share of items that everybody judges; `clock` gives seconds since 1970.

    Raises:
        DataError: a store without items.
    """

    def __init__(self, store: Store, shared: float = 0.2, clock: Callable[[], float] = time.time) -> None:
        self.store, self.share, self.clock = store, shared, clock
        with store.transaction() as db:
            db.execute(HANDED)
            if db.execute("SELECT 1 FROM items").fetchone() is None:
                raise DataError(f"{store.path}: no replies are there\n  fix: {store.collect()}")

    def shared(self, item: int) -> bool:
        """Whether everybody judges an item: by its number, so that each desk says the same."""
        drawn = hashlib.sha256(f"shared/{item}".encode()).digest()[:8]
        return int.from_bytes(drawn) < self.share * 2**64

    def next(self, annotator: str) -> Item | None:
        """The item that an annotator holds, or else the next one for them, theirs from now on; None where there is none now."""
        with self.store.transaction():
            free, held = self._free(annotator)
            found = next((item for item in free if item in held), next(iter(free), None))
            if found is None:
                return None
            self._hold(found, annotator)
        return self.store.items(found)[0]

    def _free(self, annotator: str) -> tuple[list[int], set[int]]:
        """The items that an annotator may be handed, in their order, and those among them that they hold already.

        For the others a skip is no judgement, since they may know better, nor is the word of who only stands in for people.
        """
        said = self.store.db.execute("SELECT item, annotator, outcome FROM judgements WHERE undone IS NULL").fetchall()
        own = {row["item"] for row in said if row["annotator"] == annotator}
        done = {row["item"] for row in said if row["outcome"] != "skipped" and row["annotator"] not in PEOPLE}
        query = "SELECT item, annotator FROM handed WHERE until > ?"
        holders = {row["item"]: row["annotator"] for row in self.store.db.execute(query, (self.clock(),))}
        items = [row["id"] for row in self.store.db.execute("SELECT id FROM items ORDER BY id")]
        free = [
            item
            for item in items
            if item not in own
            and (self.shared(item) or (item not in done and holders.get(item, annotator) == annotator))
        ]
        return free, {item for item, holder in holders.items() if holder == annotator}

    def _hold(self, item: int, annotator: str) -> None:
        if not self.shared(item):
            again = "ON CONFLICT (item) DO UPDATE SET annotator = excluded.annotator, until = excluded.until"
            mine = "WHERE handed.annotator = excluded.annotator OR handed.until <= ?"
            now = self.clock()
            row = (item, annotator, now + HELD, now)
            self.store.db.execute(f"INSERT INTO handed VALUES (?, ?, ?) {again} {mine}", row)

    def hold(self, item: int, annotator: str) -> None:
        """Who is still at work on an item keeps it."""
        with self.store.transaction() as db:
            if db.execute("SELECT 1 FROM handed WHERE item = ? AND annotator = ?", (item, annotator)).fetchone():
                self._hold(item, annotator)

    def shown(self, item: Item, annotator: str) -> dict[str, Reply]:
        """The replies in an order of this annotator's own, each under a name that tells nothing of it; the same each time."""

        def key(reply: Reply) -> str:
            return hashlib.sha256(json.dumps([annotator, item.id, reply.text]).encode()).hexdigest()[:16]

        return dict(sorted((key(reply), reply) for reply in item.replies))

    def judge(
        self,
        annotator: str,
        item: int,
        shown: Sequence[str],
        ranks: Sequence[int] = (),
        outcome: str = "ranked",
        better: str | None = None,
        tags: Mapping[str, Sequence[str]] | None = None,
        milliseconds: int | None = None,
    ) -> int:
        """Keeps a judgement whose replies have the names of `shown`, and returns its number; the same once more is the same judgement.

        Raises:
            Refusal: what the store refuses, replies in another order than they were shown, ranks that are not 0 to K-1, unknown tags,
                another word of this annotator on this item.
        """
        tags = {name: sorted(set(given)) for name, given in (tags or {}).items() if given}
        if unknown := {tag for given in tags.values() for tag in given} - set(TAGS):
            raise Refusal("tags", sorted(unknown)[0], "is none", allowed=TAGS)
        with self.store.transaction() as db:
            order = self.shown(self._item(item), annotator)
            if list(shown) != list(order) or not set(tags) <= {"", *order}:
                raise Refusal(
                    "shown",
                    f"{list(shown)}"[:80],
                    f"are not the replies of item {item} as they were shown",
                    fix="load the page again",
                )
            if not all(0 <= rank < len(order) for rank in ranks):
                raise Refusal("ranks", f"{list(ranks)}"[:80], f"0 to {len(order) - 1}, 0 is best")
            dense = [sorted(set(ranks)).index(rank) for rank in ranks]
            by_id = {str(order[name].id) if name else "": given for name, given in tags.items()}
            own = Judgement(item, annotator, [reply.id for reply in order.values()], dense, outcome)
            own = replace(own, better=(better or "").strip() or None, tags=by_id, milliseconds=milliseconds)
            before = self.standing(annotator, item)
            if before and replace(before, id=0, added=0.0, milliseconds=None) == replace(own, milliseconds=None):
                return before.id
            made = self.store.judge(own)
            db.execute("DELETE FROM handed WHERE item = ? AND annotator = ?", (item, annotator))
        return made

    def standing(self, annotator: str, item: int) -> Judgement | None:
        said = [one for one in self.store.judgements(item) if one.annotator == annotator and one.undone is None]
        return said[0] if said else None

    def undo(self, annotator: str, item: int) -> tuple[Item, Judgement]:
        """Takes back what an annotator said of an item, hands it out to them again and returns it with what they had said; once more
        does nothing more.

        Raises:
            Refusal: they said nothing of it.
        """
        with self.store.transaction():
            said = [one for one in self.store.judgements(item) if one.annotator == annotator]
            if not said:
                raise Refusal("item", item, f"{annotator} has said nothing of it that could be taken back")
            self.store.undo(annotator, item)
            self._hold(item, annotator)
            return self._item(item), said[-1]

    def _item(self, item: int) -> Item:
        found = self.store.items(item)
        if not found:
            raise Refusal("item", item, "is not in the store")
        return found[0]

    def progress(self, annotator: str) -> dict[str, Any]:
        """How many items an annotator has done and how many are left for them, how many others hold, how many each has done, and the
        item of their last judgement, which could be undone."""
        with self.store.snapshot():
            free, _ = self._free(annotator)
            query = "SELECT annotator, item FROM judgements WHERE undone IS NULL ORDER BY id"
            said = self.store.db.execute(query).fetchall()
            others = "SELECT count(*) FROM handed WHERE until > ? AND annotator <> ?"
            away = self.store.db.execute(others, (self.clock(), annotator)).fetchone()[0]
        counts = Counter(row["annotator"] for row in said)
        own = [row["item"] for row in said if row["annotator"] == annotator]
        last = own[-1] if own else None
        return {"own": len(own), "left": len(free), "away": away, "everyone": dict(counts.most_common()), "last": last}
