"""The engine of our own: requests answered together as one by one, and none hurt by another's failure."""

import asyncio
import time

import pytest

from rlhf.data.tokens import Renderer
from rlhf.generation.rows import Batch
from rlhf.people.collect import Speaker
from rlhf.web.engine import Embedded
from rlhf.web.protocol import Sampling, Wrong

LIMIT = 12


@pytest.fixture
def engine(workshop, compose_stage):
    """Two runs of one base, SFT's and another adapter's."""
    roles, tokenizer, stage = workshop.roles(), workshop.tokenizer, compose_stage("model.chat_template=plain")
    named = {"a/sft": roles.reference, "a/ppo": roles.policy}
    speakers = [
        Speaker(name, stage, tokenizer, Renderer(tokenizer, plain=True), role, f"run {name}", "beef")
        for name, role in named.items()
    ]
    made = Embedded(speakers, most=16)
    yield made
    made.close()


def messages(number):
    return [{"role": "user", "content": " ".join(f"w{5 + (number * k) % 80}" for k in range(1, 3 + number % 9))}]


async def answer(engine, number, run=None, **settings):
    """Text, reason and tokens of a reply; every other request is of the other run."""
    options = {"temperature": 0.0, "top_p": 1.0, "limit": LIMIT, "stop": (), "seed": number} | settings
    pieces = await engine.open(run or ("a/sft", "a/ppo")[number % 2], messages(number), Sampling(**options))
    text = ""
    async for piece in pieces:
        text += piece.text
    return text, piece.finish, piece.tokens


def together(engine, numbers, **settings):
    async def ask():
        return await asyncio.gather(*(answer(engine, number, **settings) for number in numbers), return_exceptions=True)

    return asyncio.run(ask())


def test_many_at_once_are_answered_as_one_by_one_and_sooner(engine):
    """More than have a place; the runs take turns; rows end and others join."""
    numbers = range(33)
    seconds = {"one by one": [], "at once": []}
    for _ in range(2):
        start = time.perf_counter()
        single = [asyncio.run(answer(engine, number)) for number in numbers]
        seconds["one by one"].append(time.perf_counter() - start)
        start = time.perf_counter()
        assert together(engine, numbers) == single
        seconds["at once"].append(time.perf_counter() - start)
    assert len({text for text, _, _ in single}) > 30
    assert {finish for _, finish, _ in single} <= {"stop", "length"}
    assert min(seconds["at once"]) < min(seconds["one by one"]) / 2
    engine.close()
    assert not engine.batches and not engine.lines and not engine.waiting


def test_a_reply_follows_from_its_seed_whoever_is_beside_it(engine):
    single = [asyncio.run(answer(engine, number, temperature=1.0, top_p=0.9)) for number in range(8)]
    assert together(engine, range(8), temperature=1.0, top_p=0.9) == single
    assert together(engine, range(8), temperature=1.0, top_p=0.9, seed=9) != single


def test_only_the_row_at_fault_ends(engine, monkeypatch):
    """The fault is of one row, and strikes the whole batch that it is in."""
    wanted, step = together(engine, range(10)), Batch.step
    broken = engine.speakers["a/ppo"].renderer.prompt(_dialogue(3))

    def strike(batch):
        if any(row.prompt == broken and len(row.text.ids) == 4 for row in batch.rows):
            raise FloatingPointError("a number that is none")
        return step(batch)

    monkeypatch.setattr(Batch, "step", strike)
    found = together(engine, range(10))
    error = found.pop(3)
    assert isinstance(error, Wrong) and error.status_code == 500
    assert error.detail == "a/ppo broke off in the middle of its reply: FloatingPointError: a number that is none"
    assert found == wanted[:3] + wanted[4:]


def test_memory_that_does_not_hold_all_rows_at_once_holds_them_one_by_one(engine, monkeypatch):
    wanted, step = together(engine, range(6)), Batch.step

    def strike(batch):
        if len(batch.rows) > 1:
            raise MemoryError
        return step(batch)

    monkeypatch.setattr(Batch, "step", strike)
    assert together(engine, range(6)) == wanted


def test_an_engine_that_meets_a_bug_tells_all_and_goes_on(engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_start", None)
        assert all(isinstance(one, Wrong) for one in together(engine, range(4)))
    assert together(engine, range(4)) == [asyncio.run(answer(engine, number)) for number in range(4)]


def test_who_stops_listening_frees_a_place(engine):
    engine.most = 1

    async def leave():
        sampling = Sampling(0.0, 1.0, 100, (), 1)
        pieces = await engine.open("a/sft", messages(1), sampling)
        await anext(pieces)
        await pieces.aclose()
        (line,) = engine.lines.values()
        await answer(engine, 2)
        return len(line.row.text.ids)

    assert asyncio.run(leave()) < 50


def test_stop_strings_and_the_length_end_a_reply(engine):
    text, finish, tokens = asyncio.run(answer(engine, 5, limit=6))
    words = text.split(" ")
    assert (finish, tokens[1], len(words)) == ("length", 6, 6)
    cut = asyncio.run(answer(engine, 5, limit=6, stop=(words[3],)))
    assert cut == (text[: text.index(words[3])], "stop", (tokens[0], 4))


def test_what_leaves_no_room_is_refused(engine):
    with pytest.raises(Wrong, match="maximum context length is 128 tokens") as error:
        asyncio.run(answer(engine, 1, limit=127))
    assert error.value.more == {"param": "messages", "code": "context_length_exceeded"}
    _, finish, tokens = asyncio.run(answer(engine, 1, limit=None))
    assert sum(tokens) <= 128


def _dialogue(number):
    from rlhf.data.contract import Dialogue

    return Dialogue(messages(number))
