"""The feedback of a recipe in one SQLite file: what was asked, what was answered, and what people said of the answers.

An item is what is shown at once: a prompt and its replies. A judgement is one person's word on an item, a thumb on one reply. Each is a
committed transaction: the journal is a write-ahead log that is flushed to the disk before a commit returns (WAL, synchronous=FULL), so
that a judgement which was acknowledged outlives the death of the process and of the machine. Several processes may read and write at
once; a writer waits `PATIENCE` seconds for another. The file must lie on a disk of this machine: a write-ahead log does not work on a
network's.
"""

import json
import shlex
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import DataError, Refusal, ResourceError
from rlhf.feedback.schema import APPLICATION, OUTCOMES, TABLES, VERSION, Item, Judgement, Reply

FILE = "feedback.sqlite"  # in the folder of a recipe's runs
PATIENCE = 10.0


class Store:
    """The store in `path`, made with its folder where there is none; with `write=False` it has to be there, and nothing in it changes.

    Raises:
        DataError: no such store to read, or a file that is none.
        Refusal: a store of a newer version, a file or folder that cannot be written, a lock that another process holds.
    """

    def __init__(self, path: Path | str, write: bool = True, patience: float = PATIENCE) -> None:
        self.path, self.patience = Path(path), patience
        if not write and not self.path.is_file():
            raise DataError(f"{self.path}: no feedback is there\n  fix: {self.collect()}")
        with self._told():
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(self._address(write), uri=True, timeout=patience, isolation_level=None)
            self.db.row_factory = sqlite3.Row
            self.db.execute("PRAGMA foreign_keys = ON")
            self._check()
            if write:
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute("PRAGMA synchronous = FULL")
                self._make()

    def collect(self) -> str:
        """The command that fills this store."""
        recipe, root = self.path.absolute().parent.name, self.path.parent.parent
        words = [f"run={recipe}/sft", *([] if root == Path("runs") else [f"run.root={root}"])]
        return f"python src/collect.py {shlex.join(words)}  # the run whose replies are judged"

    def _address(self, write: bool) -> str:
        """Reading a log needs a file beside it; where the folder takes none and there is no log, the file is all there is."""
        uri = self.path.resolve().as_uri()
        if write:
            return f"{uri}?mode=rwc"
        try:
            with closing(sqlite3.connect(f"{uri}?mode=ro", uri=True)) as db:
                db.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError:
            if not self.path.with_name(f"{self.path.name}-wal").exists():
                return f"{uri}?mode=ro&immutable=1"
        return f"{uri}?mode=ro"

    def _check(self) -> None:
        version, application = (
            self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        if application not in (0, APPLICATION) or (not application and self._tables()):
            raise DataError(f"{self.path} is a database of another program\n  fix: move it away")
        if version > VERSION:
            why = f"its tables are of version {version}, and this program knows {VERSION}"
            raise Refusal("feedback", self.path, why, fix="git pull, which brings the program that wrote it")

    def _tables(self) -> int:
        return self.db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]

    def _make(self) -> None:
        with self.transaction():
            if not self._tables():
                for statement in filter(str.strip, TABLES.split(";\n")):
                    self.db.execute(statement)
                self.db.execute(f"PRAGMA application_id = {APPLICATION}")
                self.db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors in our words."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                why = f"another process has kept it locked for {self.patience:g} seconds"
                fix = f"end that process (fuser {self.path} tells its number), then the same command"
                raise Refusal("feedback", self.path, why, fix=fix) from error
            if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
                why = f"cannot be written ({error})"
                fix = f"chmod u+w {self.path.parent} {self.path}, or run.root= a folder that can"
                raise Refusal("feedback", self.path, why, fix=fix) from error
            if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
                raise DataError(f"{self.path}: {error}\n  fix: bring it back from a copy, or move it away") from error
            if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
                raise ResourceError(f"{self.path}: {error}\n  fix: free some space on its disk") from error
            raise
        except PermissionError as error:
            fix = "run.root= a folder that can"
            raise Refusal("feedback", self.path, f"cannot be written ({error.strerror})", fix=fix) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, on the disk when it ends; writers take turns from its first statement on. One inside another is part of
        it: what many calls write is then kept together, and flushed once."""
        if self.db.in_transaction:
            yield self.db
            return
        with self._told():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within, all that is read is of one moment, whatever others write meanwhile; nothing is written here."""
        if self.db.in_transaction:
            yield
            return
        with self._told():
            self.db.execute("BEGIN")
            self.db.execute("PRAGMA query_only = ON")
            try:
                yield
            finally:
                self.db.execute("PRAGMA query_only = OFF")
                self.db.execute("ROLLBACK")

    def add(
        self,
        messages: list[dict[str, Any]],
        facts: dict[str, str] | None,
        collection: str,
        replies: Sequence[Reply],
        added: float | None = None,
    ) -> int | None:
        """Puts an item in and returns its number, None where this collection holds one of this prompt already."""
        now, asked = time.time() if added is None else added, dumped(messages)
        with self.transaction() as db:
            known = None if facts is None else dumped(facts)
            db.execute("INSERT OR IGNORE INTO prompts VALUES (NULL, ?, ?, ?)", (asked, known, now))
            prompt = db.execute("SELECT id FROM prompts WHERE messages = ?", (asked,)).fetchone()[0]
            told = db.execute("INSERT OR IGNORE INTO items VALUES (NULL, ?, ?, ?)", (prompt, collection, now))
            if not told.rowcount:
                return None
            for reply in replies:
                sampling = None if reply.sampling is None else dumped(reply.sampling)
                row = (told.lastrowid, reply.text, reply.source, reply.run, reply.adapter, sampling, reply.seed)
                db.execute("INSERT INTO replies VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", row)
        return told.lastrowid

    def items(self, only: int | None = None) -> list[Item]:
        """Every item in the order they came, or `only` one."""
        with self.snapshot():
            replies: dict[int, list[Reply]] = {}
            one, given = ("", ()) if only is None else ("WHERE item = ?", (only,))
            for row in self.db.execute(f"SELECT * FROM replies {one} ORDER BY id", given):
                values = {name: row[name] for name in ("text", "source", "run", "adapter", "seed", "id")}
                replies.setdefault(row["item"], []).append(Reply(**values, sampling=loaded(row["sampling"])))
            query = "SELECT i.id, p.messages, p.facts, i.collection FROM items i JOIN prompts p ON p.id = i.prompt"
            rows = self.db.execute(f"{query} {one.replace('item', 'i.id')} ORDER BY i.id", given).fetchall()
        return [
            Item(
                row["id"], loaded(row["messages"]), loaded(row["facts"]), row["collection"], replies.get(row["id"], [])
            )
            for row in rows
        ]

    def judge(self, judgement: Judgement) -> int:
        """Keeps a judgement for good and returns its number.

        Raises:
            Refusal: an item that is not there, replies that are not all of the item's, ranks that are not one for each, or an annotator
                who has judged the item already: `undo` first, then judge again.
        """
        _check(judgement)
        ranks: Sequence[int | None] = judgement.ranks or [None] * len(judgement.shown)
        with self.transaction() as db:
            own = {row[0] for row in db.execute("SELECT id FROM replies WHERE item = ?", (judgement.item,))}
            if not own or own != set(judgement.shown) or len(own) != len(judgement.shown):
                raise Refusal("shown", list(judgement.shown), f"are not the replies of item {judgement.item}")
            row = (judgement.item, judgement.annotator, judgement.outcome, judgement.better, dumped(judgement.tags))
            row = (*row, judgement.milliseconds, judgement.added or time.time(), judgement.undone)
            try:
                made = db.execute("INSERT INTO judgements VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
            except sqlite3.IntegrityError as error:
                if "judgements.annotator" not in str(error):
                    raise Refusal("judgement", judgement.annotator, f"is not one: {error}") from error
                why = f"has judged item {judgement.item} already"
                raise Refusal("annotator", judgement.annotator, why, fix="undo that judgement first") from error
            places = zip(judgement.shown, ranks, strict=True)
            rows = [(made, judgement.item, reply, shown, rank) for shown, (reply, rank) in enumerate(places)]
            db.executemany("INSERT INTO places VALUES (?, ?, ?, ?, ?)", rows)
        return int(made or 0)

    def undo(self, annotator: str, item: int | None = None) -> int | None:
        """Takes back the last judgement of an annotator that stands, or that of an item, and returns its number, None where there is
        none. It stays in the store, marked: nothing learns from it, and the item may be judged again."""
        with self.transaction() as db:
            query = "SELECT max(id) FROM judgements WHERE annotator = ? AND undone IS NULL AND item = ifnull(?, item)"
            found = db.execute(query, (annotator, item)).fetchone()[0]
            db.execute("UPDATE judgements SET undone = ? WHERE id = ?", (time.time(), found))
        return found

    def judgements(self, only: int | None = None) -> list[Judgement]:
        """Every judgement in the order they came, or those of `only` one item; those that were taken back too."""
        with self.snapshot():
            places: dict[int, list[sqlite3.Row]] = {}
            one, given = ("", ()) if only is None else ("WHERE item = ?", (only,))
            for row in self.db.execute(f"SELECT * FROM places {one} ORDER BY judgement, shown", given):
                places.setdefault(row["judgement"], []).append(row)
            rows = self.db.execute(f"SELECT * FROM judgements {one} ORDER BY id", given).fetchall()
        names = ("item", "annotator", "outcome", "better", "milliseconds", "added", "undone", "id")
        return [
            Judgement(
                **{name: row[name] for name in names},
                shown=[place["reply"] for place in places[row["id"]]],
                ranks=[place["place"] for place in places[row["id"]]] if row["outcome"] == "ranked" else [],
                tags=loaded(row["tags"]),
            )
            for row in rows
        ]

    def thumb(self, reply: int, annotator: str, up: bool) -> None:
        """Keeps a thumb up or down; another one of the same person on the same reply replaces it."""
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM replies WHERE id = ?", (reply,)).fetchone() is None:
                raise Refusal("reply", reply, "is not in the store")
            row = (reply, annotator, int(up), time.time())
            again = "ON CONFLICT (reply, annotator) DO UPDATE SET up = excluded.up, added = excluded.added"
            db.execute(f"INSERT INTO thumbs VALUES (NULL, ?, ?, ?, ?) {again}", row)

    def thumbs(self) -> list[tuple[int, str, bool]]:
        """Reply, annotator, and whether it is up."""
        with self._told():
            rows = self.db.execute("SELECT reply, annotator, up FROM thumbs ORDER BY id").fetchall()
        return [(row["reply"], row["annotator"], bool(row["up"])) for row in rows]


def _check(judgement: Judgement) -> None:
    if judgement.outcome not in OUTCOMES:
        raise Refusal("outcome", judgement.outcome, "is none", allowed=OUTCOMES)
    if len(judgement.ranks) != (len(judgement.shown) if judgement.outcome == "ranked" else 0):
        raise Refusal(
            "ranks", list(judgement.ranks), f"one for each of {len(judgement.shown)} replies that were ranked"
        )


def dumped(value: Any) -> str:
    """JSON in one form, so that equal values are equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)
