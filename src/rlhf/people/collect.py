"""Replies to prompts nobody trained on, sampled from finished runs into the store."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import Stage
from rlhf.data.contract import Dialogue
from rlhf.errors import Refusal
from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store, dumped
from rlhf.files import FINAL
from rlhf.generation.sampling import sample_replies, stream
from rlhf.models.shared import load_roles
from rlhf.models.tokenizer import check_tokenizer, prompt_renderer, saved_tokenizer, stops
from rlhf.people.prompts import Prompt
from rlhf.rewards.scorers import scorer
from rlhf.runs.record import check_current, finished_stage, read_run

TRIES = 4  # how often each reply is drawn before a prompt is left with fewer
OVER = 4  # candidates for each prompt that is chosen among them
WIDE = 3  # replies to choose from for each that is shown, where they are to be spread
TOGETHER = 50  # prompts that are answered, and kept, at once


@dataclass
class Speaker:
    """A finished run that answers, or with `scores` one that scores."""

    name: str
    stage: Stage
    tokenizer: Any
    renderer: Any
    role: Any
    run: str
    adapter: str

    @classmethod
    def load(cls, root: Path, names: Sequence[str], scores: bool = False) -> "list[Speaker]":
        """Runs on one base share it in memory. Raises ConfigError or DataError where there is no such run, or it is not the one that it
        was."""
        stages, bases = {}, dict[str, list[str]]()
        for name in dict.fromkeys(names):
            stages[name] = stage = finished_stage(root / name, root, reward=scores)
            check_current(root / name, stage)
            alone = scores or stage.adapter.name == "none"
            key = name if alone else dumped([asdict(stage.model), asdict(stage.quantization), asdict(stage.hardware)])
            bases.setdefault(key, []).append(name)
        tokenizers = {name: saved_tokenizer(root / name / FINAL) for name in stages}
        roles = {}
        for own in bases.values():
            folders: dict[str, Any] = {f"run{number}": root / name / FINAL for number, name in enumerate(own)}
            of: Any = {"folders": {}, "reward": folders["run0"]} if scores else {"folders": folders}
            loaded = load_roles(stages[own[0]], tokenizers[own[0]], **of)
            roles |= zip(own, loaded.values(), strict=True)
        return [cls._of(root, name, stages[name], tokenizers[name], roles[name]) for name in names]

    @classmethod
    def _of(cls, root: Path, name: str, stage: Stage, tokenizer: Any, role: Any) -> "Speaker":
        run = read_run(root / name)
        weights = hashlib.sha256(json.dumps(run.get("final", {}), sort_keys=True).encode()).hexdigest()[:16]
        return cls(name, stage, tokenizer, prompt_renderer(stage, tokenizer), role, str(run.get("id")), weights)

    def ids(self, prompt: Prompt) -> list[int]:
        return self.renderer.prompt(Dialogue(prompt.messages))


@dataclass
class Asked:
    """How replies are drawn; the same again draws the same."""

    speakers: list[Speaker]
    replies: int
    temperature: float
    max_new_tokens: int
    seed: int
    judges: list[Speaker] = field(default_factory=list)  # reward models: prompts on which they are least sure
    spread: bool = False  # or of each prompt the replies between which they see most

    @property
    def sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}

    @property
    def collection(self) -> str:
        """What the store knows this collection by."""
        names = (",".join(f"{one.name}@{one.run}" for one in many) for many in (self.speakers, self.judges))
        settings = {"run": next(names), "unsure": next(names), "replies": self.replies, "seed": self.seed}
        return dumped(settings | self.sampling | ({"spread": WIDE} if self.spread else {}))


@dataclass
class Told:
    """What a collection came to."""

    items: int = 0
    replies: int = 0
    repeated: int = 0  # draws that said what another had said
    few: int = 0  # prompts without two different replies
    long: int = 0  # prompts over the length that the run takes


@dataclass
class Answered:
    """A prompt with its different replies, and the tokens of each."""

    prompt: Prompt
    replies: list[Reply]
    ids: list[list[int]]


def collect(store: Store, prompts: Sequence[Prompt], asked: Asked, limit: int) -> Told:
    """Puts `limit` prompts with their replies into the store, of which those that are there already stay as they are.

    A stretch of prompts is one transaction: a killed collection goes on where it stopped, with the replies that it would have had.
    """
    told, own, others, unsure = Told(), set(), set(), bool(asked.judges) and not asked.spread
    for item in store.items():
        (own if item.collection == asked.collection else others).add(dumped(item.messages))
    if len(own) >= limit:
        return told
    first, short = asked.speakers[0], []
    for prompt in (one for one in prompts if dumped(one.messages) not in others):
        if len(first.ids(prompt)) > first.stage.dataset.max_prompt_length:
            told.long += 1
        elif len(short) < limit * (OVER if unsure else 1):
            short.append(prompt)
        else:
            break
    if unsure:
        found = [one for many in _answers(short, asked, told) for one in many]
        stretches: Iterator[list[Answered]] = iter([least_sure(found, asked.judges)[:limit]])
    else:
        stretches = _answers(short, asked, told, own)
    for stretch in stretches:
        with store.transaction():
            for one in stretch:
                if store.add(one.prompt.messages, one.prompt.facts, asked.collection, one.replies):
                    told.items, told.replies = told.items + 1, told.replies + len(one.replies)
    return told


def _answers(
    prompts: Sequence[Prompt], asked: Asked, told: Told, there: set[str] | None = None
) -> Iterator[list[Answered]]:
    """The replies to stretches of prompts, without those that are `there` whole."""
    for start in range(0, len(prompts), TOGETHER):
        stretch = prompts[start : start + TOGETHER]
        if there and all(dumped(one.messages) in there for one in stretch):
            continue
        found = answers(stretch, asked, told)
        enough = [one for one in found if len(one.replies) > 1]
        told.few += len(found) - len(enough)
        yield spread(enough, asked) if asked.spread and enough else enough


def answers(prompts: Sequence[Prompt], asked: Asked, told: Told) -> list[Answered]:
    """Up to `asked.replies` different replies to each prompt, WIDE times as many to spread, the runs taking turns; what was said already is drawn again.

    The random numbers of a draw follow from the seed and the first of these prompts.
    """
    found, wanted = [Answered(prompt, [], []) for prompt in prompts], asked.replies * (WIDE if asked.spread else 1)
    name = hashlib.sha256(dumped(prompts[0].messages).encode()).hexdigest()
    for draw in range(TRIES * wanted):
        lacking = [one for one in found if len(one.replies) < wanted]
        if not lacking:
            break
        speaker = asked.speakers[draw % len(asked.speakers)]
        tokenizer = speaker.tokenizer
        drawn = sample_replies(
            speaker.role,
            [speaker.ids(one.prompt) for one in lacking],
            max_new_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
            eos_ids=stops(tokenizer, speaker.role.model),
            pad_id=tokenizer.pad_token_id,
            generator=stream(asked.seed, f"collect/{name}", draw),
            chunk_size=speaker.stage.evaluation.batch_size,
        )
        for one, ids in zip(lacking, drawn.tokens, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            if not text or any(text == reply.text for reply in one.replies):
                told.repeated += 1
                continue
            where = (speaker.name, speaker.run, speaker.adapter, asked.sampling, asked.seed)
            one.replies.append(Reply(text, *where))
            one.ids.append(ids)
    return found


def least_sure(found: Sequence[Answered], judges: Sequence[Speaker]) -> list[Answered]:
    """Answered prompts, first those on which the reward model sees least between its two best replies, or on which several disagree
    most: the mean standard deviation of their scores, each in standard deviations of its own."""
    sure = []
    for own in _scores(found, judges):
        best = own[0].topk(2).values
        sure.append(float(best[0] - best[1]) if len(judges) == 1 else -float(own.std(0, correction=0).mean()))
    return [found[index] for index in sorted(range(len(found)), key=lambda index: sure[index])]


def spread(found: Sequence[Answered], asked: Asked) -> list[Answered]:
    """Of each prompt's replies `asked.replies`: those with the lowest and the highest mean score, then always the one that lies furthest
    from those that are chosen. They stay in the order in which they were drawn."""
    chosen = []
    for one, table in zip(found, _scores(found, asked.judges), strict=True):
        scores, places = table.mean(0).tolist(), range(len(one.replies))
        kept = [
            min(places, key=lambda i: scores[i]),
            max(reversed(places), key=lambda i: scores[i]),
        ]  # two, also of equals
        while len(kept) < min(asked.replies, len(scores)):
            rest = [place for place in places if place not in kept]
            kept.append(max(rest, key=lambda i: min(abs(scores[i] - scores[k]) for k in kept)))
        kept.sort()
        chosen.append(Answered(one.prompt, [one.replies[i] for i in kept], [one.ids[i] for i in kept]))
    return chosen


def _scores(found: Sequence[Answered], judges: Sequence[Speaker]) -> list[Any]:
    """`[judges, replies]` of each prompt, in standard deviations of a judge's scores of them all."""
    import torch

    places = [(index, place) for index, one in enumerate(found) for place in range(len(one.replies))]
    scores = []
    for judge in judges:
        prompts = [judge.ids(found[index].prompt) for index, _ in places]
        replies = [found[index].ids[place] for index, place in places]
        scores.append(scorer(judge.stage, judge.tokenizer, judge.role)(prompts, replies, []))
    table = torch.stack(scores)
    table = (table - table.mean(1, keepdim=True)) / table.std(1, keepdim=True)
    return list(table.split([len(one.replies) for one in found], dim=1))


def check_judges(speakers: Sequence[Speaker], judges: Sequence[Speaker], root: Path) -> None:
    """Refuse reward models that read other tokens than the runs write."""
    for judge in judges:
        for speaker in speakers:
            try:
                check_tokenizer(root / judge.name / FINAL, speaker.tokenizer, "reward")
            except Refusal as error:
                raise Refusal("reward", judge.name, error.why, fix="a reward model of the same base") from error
