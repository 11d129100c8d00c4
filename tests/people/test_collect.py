"""Collecting: different replies to prompts that nobody reads otherwise, the same for a seed, each once however often it is asked."""

import pytest
import torch

from rlhf.config import compose_config, options, to_stage
from rlhf.data import sources
from rlhf.data.tokens import Renderer
from rlhf.errors import DataError, Refusal
from rlhf.feedback.schema import Reply
from rlhf.feedback.store import Store
from rlhf.people import collect
from rlhf.people.prompts import Prompt, of_file, unseen
from tests.helpers import door_module

PROMPTS = [Prompt([{"role": "user", "content": f"w{5 + n} w9 w{7 + n}"}], {"number": str(n)}) for n in range(6)]


@pytest.fixture
def asked(workshop, compose_stage):
    """`asked(names, setting=...)`: how the tiny policy is asked, under each of the names."""
    role, tokenizer = workshop.roles().policy, workshop.tokenizer
    stage = compose_stage("model.chat_template=plain")

    def make(*names, **more):
        speakers = [
            collect.Speaker(name, stage, tokenizer, Renderer(tokenizer, plain=True), role, f"run {name}", "beef")
            for name in names or ["a/sft"]
        ]
        settings = {"replies": 3, "temperature": 1.0, "max_new_tokens": 5, "seed": 1}
        return collect.Asked(speakers, **(settings | more))

    return make


def content(store):
    return [(item.messages, item.facts, [reply.text for reply in item.replies]) for item in store.items()]


def test_replies_differ_follow_from_the_seed_and_come_once(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "TOGETHER", 2)
    with Store(tmp_path / "a.sqlite") as store:
        told = collect.collect(store, PROMPTS, asked(), limit=6)
        whole = content(store)
        assert (told.items, told.replies) == (6, 18) and told.few == 0
        assert all(len(set(replies)) == 3 and all(replies) for _, _, replies in whole)
        assert [facts for _, facts, _ in whole] == [prompt.facts for prompt in PROMPTS]
        reply = store.items()[0].replies[0]
        assert (reply.source, reply.run, reply.adapter, reply.seed) == ("a/sft", "run a/sft", "beef", 1)
        assert reply.sampling == {"temperature": 1.0, "max_new_tokens": 5}
        assert collect.collect(store, PROMPTS, asked(), limit=6) == collect.Told() and content(store) == whole
        assert collect.collect(store, PROMPTS, asked(seed=2), limit=6).items == 0  # they have been asked already

    class Killed(Exception):
        pass

    def strike(prompts, asked, told, answers=collect.answers):
        if prompts[0] is PROMPTS[4]:
            raise Killed
        return answers(prompts, asked, told)

    with Store(tmp_path / "b.sqlite") as store:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(collect, "answers", strike)
            collect.collect(store, PROMPTS, asked(), limit=6)
        assert content(store) == whole[:4]
        assert collect.collect(store, PROMPTS, asked(), limit=6).items == 2 and content(store) == whole
    with Store(tmp_path / "c.sqlite") as store:
        collect.collect(store, PROMPTS, asked(seed=2), limit=6)
        assert [row[:2] for row in content(store)] == [row[:2] for row in whole] and content(store) != whole


def test_runs_take_turns_and_what_cannot_differ_is_left_out(asked, tmp_path):
    with Store(tmp_path / "a.sqlite") as store:
        collect.collect(store, PROMPTS[:2], asked("a/sft", "a/ppo", replies=4), limit=2)
        for item in store.items():
            assert sorted(reply.source for reply in item.replies) == ["a/ppo", "a/ppo", "a/sft", "a/sft"]
        told = collect.collect(store, PROMPTS[2:], asked(temperature=1e-4, replies=2), limit=9)
        assert (told.items, told.few, told.repeated) == (0, 4, 4 * (collect.TRIES * 2 - 1))
        stage = asked().speakers[0].stage
        stage.dataset.max_prompt_length = 1
        one = asked(seed=3)
        one.speakers[0].stage = stage
        assert collect.collect(store, PROMPTS[2:], one, limit=9).long == 4


def test_the_prompts_are_those_on_which_reward_models_are_least_sure(asked, monkeypatch):
    found = [collect.Answered(prompt, [Reply(text, "a") for text in "abc"], [[5], [6], [7]]) for prompt in PROMPTS[:3]]
    one, other = asked("r/one").speakers[0], asked("r/two").speakers[0]
    scores = {"r/one": [9, 8.9, 0, 5, 0, 0, 3, 2, 0], "r/two": [9, 8.9, 0, 5, 0, 0, 0, 2, 3]}
    monkeypatch.setattr(collect, "scorer", lambda stage, tokenizer, role: lambda *_: torch.tensor(scores[role]))
    for judge in (one, other):
        judge.role = judge.name
    assert collect.least_sure(found, [one]) == [found[0], found[2], found[1]]  # gaps 0.1, 5, 1
    assert collect.least_sure(found, [one, other])[0] is found[2]  # the only one on which they disagree


def test_replies_are_spread_over_what_the_reward_model_sees(asked, tmp_path, monkeypatch):
    found = [collect.Answered(PROMPTS[0], [Reply(text, "a") for text in "abcde"], [[5], [6], [7], [8], [9]])]
    found.append(collect.Answered(PROMPTS[1], [Reply(text, "a") for text in "fg"], [[5], [6]]))
    scores = torch.tensor([1.0, 9, 1.2, 8.8, 5, 0, 0])
    monkeypatch.setattr(collect, "scorer", lambda stage, tokenizer, role: lambda *_: scores)
    one = asked(spread=True, judges=asked().speakers)
    told = [[reply.text for reply in kept.replies] for kept in collect.spread(found, one)]
    assert told == [["a", "b", "e"], ["f", "g"]]  # both ends and the middle
    monkeypatch.setattr(
        collect, "scorer", lambda *_: lambda prompts, replies, rows: torch.tensor([len(r) for r in replies]) * 1.0
    )
    with Store(tmp_path / "a.sqlite") as store:
        assert collect.collect(store, PROMPTS, one, limit=6).items == 6
        assert one.collection != asked().collection and len(store.items()[0].replies) == 3
        shown = [[reply.text for reply in item.replies] for item in store.items()]
    drawn = collect.answers(PROMPTS, asked(replies=3 * collect.WIDE), collect.Told())
    assert shown == [[reply.text for reply in kept.replies] for kept in collect.spread(drawn, one)]
    assert shown != [[reply.text for reply in kept.replies[:3]] for kept in drawn]


def test_prompts_of_a_file_come_once_and_a_bad_row_is_named(tmp_path, compose_stage):
    file, stage = tmp_path / "my.jsonl", compose_stage()
    row = '{"question": "when do you open", "facts": {"situation": "brief"}}\n'
    file.write_text(row + row + '{"question": "where are you"}\n')
    found = of_file(file, stage)
    assert [one.messages[0]["content"] for one in found] == ["when do you open", "where are you"]
    assert [one.facts for one in found] == [{"situation": "brief"}, None]
    file.write_text(row + '{"question": " "}\n')
    with pytest.raises(DataError, match=r"my.jsonl:2"):
        of_file(file, stage)


def test_new_customers_are_none_that_a_stage_reads(tmp_path):
    stages = [to_stage(compose_config([f"recipes={name}"])) for name in options("recipes") if "support/" in name]
    sft = next(stage for stage in stages if stage.run.stage == "sft")
    first = unseen(sft, tmp_path, 1)
    free = [one.messages[0]["content"] for one in first]
    ppo = next(stage for stage in stages if stage.run.stage == "ppo")
    read = {row.values["prompt"] for split in ("train", "evaluation") for row in sources.read(ppo.dataset, split)}
    assert len(set(free)) == len(free) > 3000 and not set(free) & read
    assert all(one.facts and one.facts["prompt"] == one.messages[0]["content"] for one in first)
    assert free[:9] != [one.messages[0]["content"] for one in unseen(sft, tmp_path, 2)[:9]]
    sft.dataset.path = "org/name"
    with pytest.raises(
        Refusal, match=r"which rows of org/name no stage trains on is not known\n  fix: prompts=my.jsonl"
    ):
        unseen(sft, tmp_path, 1)


@pytest.mark.parametrize(
    ("door", "more", "says"),
    [
        ("collect", {"replies": 1}, "one alone has no rank"),
        ("collect", {"temperature": 0.0}, "a number above 0"),
        ("collect", {"choose": "unsure"}, "fix: choose=unsure reward="),
        ("collect", {"reward": ["a/reward"]}, "asked for nothing else"),
        ("feedback", {"shared": 2.0}, "a share from 0 to 1"),
        ("feedback", {"labels": 9}, "fix: judge=simulated"),
    ],
)
def test_what_the_doors_refuse(door, more, says):
    module = door_module(door)
    own = {"collect": {"run": ["a/sft"]}, "feedback": {"recipe": "support"}}[door]
    with pytest.raises(Refusal, match=says):
        module.check(module.Arguments(**own, **more))
