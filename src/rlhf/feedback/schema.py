"""The tables of a store of feedback, and what is read from and written to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

APPLICATION = 0x524C4846  # `RLHF`, in the header of the file
VERSION = 1  # of the tables below; a store of a higher one is not touched
OUTCOMES = ("ranked", "skipped", "all bad")

TABLES = """
CREATE TABLE prompts (
  id INTEGER PRIMARY KEY,
  messages TEXT NOT NULL UNIQUE,           -- turns as JSON
  facts TEXT,                              -- JSON: what an annotator who knows the truth judges by
  added REAL NOT NULL                      -- seconds since 1970, here and below
) STRICT;
CREATE TABLE items (
  id INTEGER PRIMARY KEY,
  prompt INTEGER NOT NULL REFERENCES prompts (id),
  collection TEXT NOT NULL,                -- what made it: the same again adds nothing
  added REAL NOT NULL,
  UNIQUE (prompt, collection)
) STRICT;
CREATE TABLE replies (
  id INTEGER PRIMARY KEY,
  item INTEGER NOT NULL REFERENCES items (id),
  text TEXT NOT NULL,
  source TEXT NOT NULL,                    -- support/sft, or the file it came from
  run TEXT,                                -- id of the run
  adapter TEXT,                            -- a hash of its weights
  sampling TEXT,                           -- JSON: temperature, max_new_tokens
  seed INTEGER,
  UNIQUE (item, text),
  UNIQUE (id, item)
) STRICT;
CREATE TABLE judgements (
  id INTEGER PRIMARY KEY,
  item INTEGER NOT NULL REFERENCES items (id),
  annotator TEXT NOT NULL CHECK (trim(annotator) <> ''),
  outcome TEXT NOT NULL CHECK (outcome IN ('ranked', 'skipped', 'all bad')),
  better TEXT CHECK (trim(better) <> ''),  -- a reply written by hand
  tags TEXT NOT NULL,                      -- JSON: {reply: [tag, ...]}, of the item under ""
  milliseconds INTEGER CHECK (milliseconds >= 0),
  added REAL NOT NULL,
  undone REAL,                             -- when it was taken back; null while it stands
  UNIQUE (id, item)
) STRICT;
CREATE UNIQUE INDEX one_word_on_an_item ON judgements (item, annotator) WHERE undone IS NULL;
CREATE TABLE places (
  judgement INTEGER NOT NULL,
  item INTEGER NOT NULL,
  reply INTEGER NOT NULL,
  shown INTEGER NOT NULL CHECK (shown >= 0),  -- 0 was shown first
  place INTEGER CHECK (place >= 0),           -- 0 is best, equals are ties; null where nothing was ranked
  PRIMARY KEY (judgement, reply),
  UNIQUE (judgement, shown),
  FOREIGN KEY (judgement, item) REFERENCES judgements (id, item),
  FOREIGN KEY (reply, item) REFERENCES replies (id, item)
) STRICT, WITHOUT ROWID;
CREATE TABLE thumbs (
  id INTEGER PRIMARY KEY,
  reply INTEGER NOT NULL REFERENCES replies (id),
  annotator TEXT NOT NULL CHECK (trim(annotator) <> ''),
  up INTEGER NOT NULL CHECK (up IN (0, 1)),
  added REAL NOT NULL,
  UNIQUE (reply, annotator)
) STRICT;
"""


@dataclass(frozen=True)
class Reply:
    """A reply and where it comes from; `id` is the store's."""

    text: str
    source: str
    run: str | None = None
    adapter: str | None = None
    sampling: dict[str, Any] | None = None
    seed: int | None = None
    id: int = 0


@dataclass(frozen=True)
class Item:
    """A prompt with the replies that are shown with it."""

    id: int
    messages: list[dict[str, Any]]
    facts: dict[str, str] | None
    collection: str
    replies: list[Reply]


@dataclass(frozen=True)
class Judgement:
    """One person's word on an item: `shown` are the ids of its replies in the order they were shown, `ranks` their ranks in that order
    (0 is best, equal ranks are ties), empty unless the outcome is `ranked`; `tags` are lists by the id of a reply, or "" for the item."""

    item: int
    annotator: str
    shown: Sequence[int]
    ranks: Sequence[int] = ()
    outcome: str = "ranked"
    better: str | None = None
    tags: dict[str, list[str]] = field(default_factory=dict)
    milliseconds: int | None = None
    added: float = 0.0
    undone: float | None = None
    id: int = 0
