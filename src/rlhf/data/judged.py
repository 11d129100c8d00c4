"""What people said in a store of feedback as rows: a ranking, a reply written by hand, a thumb, or the reason why there is none."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from rlhf.config import Dataset
from rlhf.data.rows import BadRow, Row, Rows
from rlhf.errors import Refusal, nearest
from rlhf.feedback.rankings import Said, Thumbed, said, thumbed
from rlhf.feedback.store import Store, dumped

SPLITS = ("train", "held_out", "prompts")
OPTIONS: dict[str, Any] = {"held_out": 0.1, "annotators": "apart", "agreement": None}  # dataset.options


class Judged(Rows):
    """`train` and `held_out` have a row a judgement, then one a thumb, of different prompts; `prompts` those of `held_out`, once each.

    Which of the two a prompt belongs to follows from its words alone, so that it stays there however the store grows.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.dataset, self.split = dataset, split
        self.options = OPTIONS | _checked(dataset.options)
        if split not in SPLITS:
            raise Refusal("dataset.splits", split, f"is no split of feedback{nearest(split, SPLITS)}", allowed=SPLITS)

    @cached_property
    def made(self) -> list[Row]:
        ways = (self.options["annotators"] == "together", self.options["agreement"])
        with Store(self.dataset.path, write=False) as store, store.snapshot():
            found: list[Said | Thumbed] = [*said(store, *ways), *thumbed(store, *ways)]
        own = [one for one in found if self._held_out(one) == (self.split != "train")]
        if self.split == "prompts":
            own = list({dumped(one.messages): one for one in own}.values())
        return [Row(f"{self.dataset.path}[{self.split}]:{_called(one)}", self._cells(one)) for one in own]

    def _held_out(self, one: Said | Thumbed) -> bool:
        point = int.from_bytes(hashlib.sha256(dumped(one.messages).encode()).digest()[:8], "big") / 2**64
        return point < self.options["held_out"]

    def _cells(self, one: Said | Thumbed) -> dict[str, Any]:
        turns = one.messages
        alone = len(turns) == 1 and turns[0]["role"] == "user"
        cells: dict[str, Any] = {"prompt": turns[0]["content"] if alone else turns}
        cells |= {"facts": one.facts} if one.facts is not None else {}
        if self.split == "prompts":
            return cells
        if isinstance(one, Thumbed):
            ranked, told = _none(one, one.why or "a thumb", "gives no ranking"), _none(one, one.why, "is not learned")
            written, up = (told, told) if one.why else (one.text, one.up)
            return cells | {"replies": ranked, "ranks": ranked, "reply": written, "label": up}
        ranked, told = _none(one, one.why, "gives no ranking"), _none(one, "nothing written by hand", "gives no reply")
        cells |= {"replies": ranked, "ranks": ranked} if one.why else {"replies": one.replies, "ranks": one.ranks}
        return cells | ({"reply": one.better, "label": True} if one.better else {"reply": told, "label": told})

    def __len__(self) -> int:
        return len(self.made)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        return iter(self.made[start:stop])


def _called(one: Said | Thumbed) -> str:
    return f"thumb on reply {one.reply}" if isinstance(one, Thumbed) else f"judgement {one.judgement}"


def _none(one: Said | Thumbed, why: str, what: str) -> BadRow:
    """A cell that a judgement or a thumb has nothing for."""
    return BadRow(why, f"{_called(one)} {what}: {why}", "dataset.bad_rows=drop")


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for key, value in options.items():
        name = f"dataset.options.{key}"
        if key not in OPTIONS:
            raise Refusal(name, value, f"is none of feedback's{nearest(key, OPTIONS)}", allowed=OPTIONS)
        if key == "annotators" and value not in ("apart", "together"):
            raise Refusal(name, value, "is unknown", allowed=("apart", "together"))
        share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if key != "annotators" and not share and not (key == "agreement" and value is None):
            raise Refusal(name, value, "must be a share from 0 to 1")
    return options
