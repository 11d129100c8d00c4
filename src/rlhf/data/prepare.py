"""From a dataset group to what a trainer takes, with a ledger of what happened to every row."""

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from rlhf.config import Dataset, Stage
from rlhf.data import columns, contract, sources, store
from rlhf.data.contract import BadRow
from rlhf.data.ledger import Ledger
from rlhf.data.rows import Row, Rows
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError
from rlhf.methods import METHODS

if TYPE_CHECKING:
    import datasets

Tokens = dict[str, Any]
Rendered = tuple[list[int], list[int], list[int]]  # ids of a prompt and of a reply, and which of those are learned


@dataclass
class Prepared:
    """A stage's data: `train` and `eval` for its trainer, `test` prompts for its policy, the ledger, one row to look at."""

    train: "datasets.Dataset"
    eval: "datasets.Dataset | None"
    test: list[dict[str, Any]]
    ledger: dict[str, Any]
    shown: str

    def batch_rows(self, stage: Stage) -> int:
        """How many rows there are for batches to be made of: rankings where their pairs stay together."""
        return self.ledger["train"]["rankings"] if stage.method.kwise else len(self.train)


def prepare(stage: Stage, renderer: Renderer, asking: Renderer) -> Prepared:
    """Tokenize every split that the stage uses; `asking` renders the test prompts.

    Raises:
        DataError: a column that isn't there, a row that breaks the contract (unless `dataset.bad_rows=drop`), or nothing left.
    """
    import datasets
    import numpy as np

    dataset, splits, method = stage.dataset, stage.dataset.splits, METHODS[stage.method.name]
    kind = method.rows
    opened = {"train": _open(stage, "train", kind)}
    if splits.eval is not None:
        opened["eval"] = _open(stage, "eval", kind)
    if splits.test is not None and stage.evaluation.prompts and method.leaves == "policy":
        opened["test"] = _open(stage, "test", "prompts", stage.evaluation.prompts)
    if splits.test is None or "test" in opened:  # also those that this stage does not read, where all splits are known
        for part in sources.parts(dataset, "train"):
            read = [one for parts in opened.values() for one in parts if one.dataset.path == part.dataset.path]
            columns.check_columns(part.dataset, part.dataset.columns, [one.first for one in read if one.first])
    built: dict[str, datasets.Dataset] = {}
    reports: dict[str, dict[str, Any]] = {}
    asked: dict[str, Any] = {}
    for role in ("train", "eval"):
        if role not in opened:
            continue
        found = _stored(stage, role, opened[role], kind, renderer)
        reports[role], asked[role] = _named(opened[role]) | found.told, found.prompts
        if found.rows is None:
            _refuse_none(dataset, role, getattr(splits, role), found.told)
        else:
            built[role] = found.rows
    if kind == "thumbs":
        reports["train"]["thumbs"] = _both(built["train"])
    test: list[Tokens] = []
    if "test" in opened:
        ledger = Ledger()
        test = list(_tokens(stage, opened["test"], asking, ledger))
        reports["test"], asked["test"] = _named(opened["test"]) | ledger.report(), ledger.prompts
        if not test:
            _refuse_none(dataset, "test", str(splits.test), reports["test"])
    for role in asked.keys() - {"train"}:
        reports[role]["in_train"] = int(np.isin(np.array(asked[role], np.uint64), asked["train"]).sum())
    return Prepared(built["train"], built.get("eval"), test, reports, _show(stage, renderer, built["train"]))


def _both(train: "datasets.Dataset") -> dict[str, int]:
    """How many thumbs are up and how many down; of one kind alone TRL would raise or lower all replies alike."""
    up = sum(train["label"])
    counts = {"up": up, "down": len(train) - up}
    if not all(counts.values()):
        kind, fix = ("up", "method=sft   (it learns what people liked), or rows with") if up else ("down", "rows with")
        what = f"all {len(train)} thumbs to train on are {kind}, and kto learns from what parts the two kinds"
        raise DataError(f"dataset: {what}\n  fix: {fix} thumbs {'down' if up else 'up'} too")
    return counts


def _named(parts: list["Opened"]) -> dict[str, str]:
    """Where rows come from and how they are read, for the header."""
    places = [part.dataset.path + (f" x {part.weight:g}" if part.weight != 1 else "") for part in parts]
    return {"from": ", ".join(places), "read_as": ", ".join(dict.fromkeys(part.shape for part in parts))}


def _refuse_none(dataset: Dataset, role: str, split: str, report: dict[str, Any]) -> None:
    reasons = ", ".join(f"{n} {reason}" for reason, n in report["dropped"].items()) or "the split is empty"
    if report["ties"] and not report["dropped"]:
        reasons = f"{report['ties']} ties: all replies to a prompt have the same rank"
    limit = "max_prompt_length" if role == "test" else "max_length"
    fix = f"dataset.{limit}={getattr(dataset, limit)} may be too small, or the columns are the wrong ones"
    raise DataError(f"dataset.splits.{role}={split}: none of {report['read']} rows is left ({reasons})\n  fix: {fix}")


def _stored(stage: Stage, role: str, parts: list["Opened"], kind: str, renderer: Renderer) -> store.Entry:
    """The tokens of a role, from the cache if the same rows were tokenized in the same way before, and their ledger."""
    counts = [part.count for part in parts]
    total = None if None in counts else sum(count or 0 for count in counts)
    before = [sum(10**9 if count is None else count for count in counts[:place]) for place in range(len(counts))]

    def work(stretch: store.Stretch, file: Path, tell: Callable[[int], None]) -> Ledger:
        part, ledger, writer = parts[stretch.part], Ledger(), store.Writer(file)
        number = before[stretch.part] + stretch.start
        rows = part.read(stretch.start, stretch.stop)
        for _, ends in store.blocks(_rows(stage, part, rows, number, kind, renderer, ledger, writer.keep)):
            if ends:
                writer.flush()
                tell(store.BLOCK)
        writer.close()
        ledger.kept, ledger.lengths, ledger.digests = len(writer.lengths), writer.lengths, writer.digests
        return ledger

    def make(folder: Path) -> tuple[dict[str, Any], "array[int]"]:
        ledger, count = Ledger(), store.processes(total)
        for more in store.spread(work, store.stretches(counts, count), folder, count, total, f"preparing {role}"):
            ledger.add(more)
        return ledger.report(), ledger.prompts

    told = [
        stage.method.learn,
        stage.method.name == "reward",
        METHODS[stage.method.name].leaves,
        stage.method.kwise,
        kind,
        renderer.identity(),
    ]
    told += [[asdict(part.dataset), part.split, part.limit, part.weight, part.identity()] for part in parts]
    return store.kept(store.key(*told), make)


def test_prompts(stage: Stage, asking: Renderer) -> list[Tokens]:
    """The first `evaluation.prompts` prompts of the test split, which nobody trained on."""
    if stage.dataset.splits.test is None:
        return []
    return list(_tokens(stage, _open(stage, "test", "prompts", stage.evaluation.prompts), asking, Ledger()))


@dataclass
class Opened:
    """The rows of one part of a role, of which the first `limit` are read, with the first that could be read."""

    dataset: Dataset
    split: str
    weight: float
    limit: int | None
    first: Row | None
    shape: str
    rows: Rows

    @property
    def count(self) -> int | None:
        """How many rows there are; None where only reading them tells."""
        if not self.rows.counted:
            return None
        return len(self.rows) if self.limit is None else min(len(self.rows), self.limit)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows from `start` to before `stop`, or to the limit."""
        ends = [end for end in (stop, self.limit) if end is not None]
        return self.rows.read(start, min(ends) if ends else None)

    def identity(self) -> str:
        """Changes when the rows would. What the hub has newest has no name that stays: such rows are tokenized again."""
        newest = sources.is_hub(self.dataset.path) and self.dataset.revision is None
        return sources.fingerprint(self.dataset) + (self.rows.identity() if newest else "")


def _open(stage: Stage, role: str, kind: str, limit: int | None = None) -> list[Opened]:
    """What a role reads, the parts of a mixture one after another, which share `limit`."""
    limit = min((n for n in (limit, stage.debug.rows) if n is not None), default=None)
    parts, found = sources.parts(stage.dataset, role), []
    if not parts:
        columns.read(stage.dataset, None, kind)  # refuses
    for number, part in enumerate(parts):
        share = None if limit is None else limit // len(parts) + (number < limit % len(parts))
        read = columns.read(part.dataset, part.split, kind, share, part.weight)
        found.append(Opened(read.dataset, part.split, part.weight, share, read.first, read.shape, read.source))
    return found


def _tokens(stage: Stage, parts: Iterable[Opened], renderer: Renderer, ledger: Ledger) -> list[Tokens]:
    """Prompts in memory, for an evaluation."""
    found: list[Tokens] = []

    def keep(tokens: Tokens, length: int) -> None:
        found.append(tokens)
        ledger.kept += 1
        ledger.lengths.append(length)
        ledger.digests.append(hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest())

    for part in parts:
        for _ in _rows(stage, part, part.read(), 0, "prompts", renderer, ledger, keep):
            pass
    return found


def _rows(
    stage: Stage,
    part: Opened,
    rows: Iterator[Row],
    before: int,
    kind: str,
    renderer: Renderer,
    ledger: Ledger,
    keep: Callable[[Tokens, int], None],
) -> Iterator[Row]:
    """Tokenizes rows, of which so many stand `before` the first, and hands what is left of each to `keep`."""
    own = replace(stage, dataset=part.dataset)
    for number, row in enumerate(rows, before + 1):
        with ledger.account(row, part.dataset.bad_rows):
            if kind == "demonstrations":
                found = _demonstrations(own, row, renderer, ledger)
            elif kind == "pairs":
                found = _pairs(own, row, number, renderer, ledger)
            elif kind == "thumbs":
                found = _thumbs(own, row, renderer, ledger)
            else:
                # drawn for the place of a row in its split, wherever the files lie
                found = _prompts(own, row, random.Random(f"{part.split}:{number}"), renderer, ledger)
            for tokens, length in list(found):
                keep(tokens, length)
                ledger.prompts.append(_asked(tokens))
        yield row


def _asked(tokens: Tokens) -> int:
    """A hash of what the last reply answers; of all of a text without turns."""
    ids = tokens["prompt_ids"] if "prompt_ids" in tokens else tokens["input_ids"]
    if "labels" in tokens:
        behind = dropwhile(lambda label: label < 0, reversed(tokens["labels"]))
        ids = ids[: sum(1 for _ in dropwhile(lambda label: label >= 0, behind))] or ids
    return xxh3_64_intdigest(array("i", ids).tobytes())


def _demonstrations(stage: Stage, row: Row, renderer: Renderer, ledger: Ledger) -> Iterator[tuple[Tokens, int]]:
    ids, mask = renderer.encode(contract.dialogue(stage.dataset, row))
    most = stage.dataset.max_length
    if len(ids) > most:
        if _too_long(stage.dataset, row, ledger, len(ids)):
            return
        ledger.truncated += 1
        ids, mask = ids[:most], mask[:most]
    if stage.method.learn == "all":
        mask = [1] * len(ids)
    if not any(mask):
        ledger.drop("nothing left to learn", row.where)
        return
    yield {"input_ids": ids, "labels": [i if bit else -100 for i, bit in zip(ids, mask, strict=True)]}, len(ids)


def _pairs(stage: Stage, row: Row, number: int, renderer: Renderer, ledger: Ledger) -> Iterator[tuple[Tokens, int]]:
    """The same pairs under the same length rule for the reward model and for DPO; a pair is never cut.

    `ranking` is the number of the row in its split, which all its pairs share, `k` how many replies were ranked there, `length` that of the
    longer sequence.
    """
    rendered: dict[str, Rendered] = {}  # k replies make k (k - 1) / 2 pairs: each comes back

    def reply(prompt: contract.Dialogue, completion: contract.Messages) -> Rendered:
        key = str((prompt, completion))
        if key not in rendered:
            rendered[key] = renderer.reply(prompt, completion)
        return rendered[key]

    found = left = 0
    for pair in contract.pairs(stage.dataset, row):
        found += 1
        prompt, chosen, learned = reply(pair.prompt, pair.chosen)
        _, rejected, other = reply(pair.prompt, pair.rejected)
        if METHODS[stage.method.name].leaves == "policy" and not all((*learned, *other)):
            raise _tool_turns(stage)
        longest = len(prompt) + max(len(chosen), len(rejected))
        if longest > stage.dataset.max_length:
            _too_long(stage.dataset, row, ledger, longest)
        elif chosen == rejected:
            ledger.drop("equal after tokenization", row.where)
        else:
            tokens: Tokens = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            tokens |= {"ranking": number, "k": pair.k, "length": longest}
            if pair.margin is not None and stage.method.name == "reward":
                if stage.method.kwise:
                    raise BadRow("margin", "method.kwise=true has a loss without margins", fix="method.kwise=false")
                tokens["margin"] = pair.margin
            if pair.true_margin is not None:
                tokens["true_margin"] = float(pair.true_margin)
            left += 1
            yield tokens, longest
    ledger.rankings += left > 0
    if "ranking" in stage.dataset.columns:
        count = len(row.values[str(stage.dataset.columns["ranking"])])
        ledger.ties += count * (count - 1) // 2 - found


def _thumbs(stage: Stage, row: Row, renderer: Renderer, ledger: Ledger) -> Iterator[tuple[Tokens, int]]:
    """Each reply with its thumb, under the length rule of pairs; a reply is never cut."""
    found = 0
    for thumb in contract.thumbs(stage.dataset, row):
        found += thumb.ranked
        prompt, reply, learned = renderer.reply(thumb.prompt, thumb.reply)
        if not all(learned):
            raise _tool_turns(stage)
        length = len(prompt) + len(reply)
        if length > stage.dataset.max_length:
            _too_long(stage.dataset, row, ledger, length)
            continue
        yield {"prompt_ids": prompt, "completion_ids": reply, "label": thumb.liked, "length": length}, length
    ranking = row.values.get(stage.dataset.columns.get("ranking") or "")
    if not isinstance(ranking, BadRow | None):
        ledger.ties += len(ranking) - found


def _tool_turns(stage: Stage) -> BadRow:
    why = f"a reply holds what a tool said, which {stage.method.name} would learn to say"
    return BadRow("tool turns in a reply", why, fix="method=reward   (it only reads it), or rows that part after it")


def _prompts(
    stage: Stage, row: Row, draw: random.Random, renderer: Renderer, ledger: Ledger
) -> Iterator[tuple[Tokens, int]]:
    dialogue = contract.prompt(stage.dataset, row)
    messages = dialogue.messages
    ids, asked = renderer.prompt(dialogue), messages[-1]["content"]
    if stage.dataset.prompt_tokens is not None:
        low, high = stage.dataset.prompt_tokens
        ids = ids[: draw.randint(low, high)]
        asked = str(renderer.tokenizer.decode(ids))
    if len(ids) > stage.dataset.max_prompt_length:
        _too_long(stage.dataset, row, ledger, len(ids))
        return
    facts = json.dumps(row.values["facts"], sort_keys=True, default=str) if "facts" in row.values else "null"
    # what scorers of text render with a template of their own, and what rules compare with
    beside = {"messages": json.dumps(None if renderer.plain else messages)}
    beside |= {"reference": contract.reference(stage.dataset, row), "facts": facts}
    yield {"input_ids": ids, "prompt": asked, **beside}, len(ids)


def _too_long(dataset: Dataset, row: Row, ledger: Ledger, length: int) -> bool:
    """Whether a row over the limit is left out; `truncate` keeps it, `error` stops."""
    if dataset.long_rows == "error":
        limits = f"dataset.max_length={dataset.max_length}, dataset.max_prompt_length={dataset.max_prompt_length}"
        fix = "raise them, or dataset.long_rows=drop"
        raise DataError(f"{row.where}: {length} tokens, {limits}\n  fix: {fix}")
    if dataset.long_rows == "drop":
        ledger.drop("too long", row.where)
        return True
    return False


def _show(stage: Stage, renderer: Renderer, train: "datasets.Dataset") -> str:
    """The first row with its mask, after checking on it that EOS is learned and the prompt is not."""
    row = train[0]
    if "prompt" in row:
        return renderer.show(row["input_ids"], [0] * len(row["input_ids"]))
    if "labels" in row:
        ids, mask = row["input_ids"], [int(label != -100) for label in row["labels"]]
    else:
        prompt, reply = row["prompt_ids"], row["completion_ids"] if "completion_ids" in row else row["chosen_ids"]
        ids, mask = prompt + reply, [0] * len(prompt) + [1] * len(reply)
    whole = len(ids) < stage.dataset.max_length
    if whole and (ids[-1] != renderer.tokenizer.eos_token_id or not mask[-1]):
        raise DataError(f"the first row does not end in a learned EOS token: {renderer.show(ids, mask)[-200:]}")
    return renderer.show(ids, mask)
