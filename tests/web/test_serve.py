"""src/serve.py as a user runs it: a finished run that OpenAI's client talks to, alone or behind another server, and what it refuses."""

import os
import shutil
import sqlite3
from typing import Any

import openai
import pytest

import rlhf.web
from rlhf.benchmark.serving import REQUESTS, measure_serving
from rlhf.errors import Refusal
from rlhf.feedback.store import Store
from tests.helpers import door_module
from tests.web.clients import SCRIPTED, asked, client_of, say, shown
from tests.web.servers import REPO, TOKEN, Server

SERVE = str(REPO / "src/serve.py")


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory):
    """The finished stages, in a folder where a store may come beside them."""
    found = tmp_path_factory.mktemp("serve") / "runs"
    for stage in ("base", "sft", "reward", "ppo"):
        skip = shutil.ignore_patterns("checkpoint-*", "*.png")
        shutil.copytree(chain / "support" / stage, found / "support" / stage, ignore=skip)
    return found


@pytest.fixture(scope="module")
def engine(root):
    started = Server.start(SERVE, "run=support/sft,support/ppo", f"run.root={root}", "port=0", "compare=1")
    yield started
    started.kill()


@pytest.fixture(scope="module")
def front(engine, tmp_path_factory):
    """The same command in front of that server, with a store of its own."""
    place, address = tmp_path_factory.mktemp("front"), f"engine=http://127.0.0.1:{engine.port}/v1"
    words = ("run=support/sft,support/ppo", address, f"run.root={place}", "port=0", "compare=1")
    started = Server.start(SERVE, *words, RLHF_ENGINE_KEY=TOKEN)
    started.store = place / "support/feedback.sqlite"  # type: ignore
    yield started
    started.kill()


def test_requests_at_once_take_a_quarter_of_the_time_and_say_the_same(root):
    """By the processor, which others may want too. This model says little: test_engine.py compares what is said, docs/serving.md has
    the recipe's run by the clock."""
    whole, streamed = measure_serving(root, "support/ppo", 1, limit=8)["rows"]
    assert whole["differ"] == streamed["differ"] == 0 and REQUESTS == 32
    single, together = whole["processor_seconds"]
    assert 0 < together <= single / 4


def test_a_client_streams_from_it_and_a_front_passes_the_same_on(engine, front):
    settings: dict[str, Any] = {"seed": 5, "temperature": 1, "max_tokens": 24}
    for model in ("support/sft", "support/ppo"):
        said = []
        for server in (engine, front):
            options = settings | {"model": model, "stream": True, "stream_options": {"include_usage": True}}
            chunks = list(asked(client_of(server), "hello. when do you open?", **options))
            pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
            assert sum(map(bool, pieces)) > 3 and chunks[0].model == model
            whole = asked(client_of(server), "hello. when do you open?", model=model, **settings)
            said += [("".join(pieces), chunks[-1].usage), (whole.choices[0].message.content, whole.usage)]
        assert said == said[:1] * 4 and 3 < said[0][1].completion_tokens <= 24
    for server in (engine, front):
        with pytest.raises(openai.BadRequestError, match="maximum context length") as error:
            asked(client_of(server), "hello", model="support/sft", max_tokens=100000)
        assert error.value.code == "context_length_exceeded"


def test_two_runs_are_compared_and_kept_with_their_weights(engine, front, root):
    event, texts = shown(engine, "is the lamp insured?")
    assert len(texts) == 2 and say(engine, id=event["id"], ranks=[1, 0])[0] == 200
    with Store(root / "support/feedback.sqlite", write=False) as store:
        replies = {reply.source: reply for reply in store.items()[-1].replies}
        assert store.judgements()[-1].ranks == [1, 0]
    assert set(replies) == {"support/sft", "support/ppo"} and {reply.text for reply in replies.values()} == set(texts)
    one, other = replies.values()
    assert one.adapter != other.adapter and one.run != other.run and all((one.run, one.adapter))
    assert one.sampling and one.sampling == {"temperature": 1.0, "max_new_tokens": one.sampling["max_new_tokens"]}

    event, texts = shown(front, "is the lamp insured?")
    assert say(front, id=event["id"], ranks=[0, 1])[0] == 200
    with Store(front.store, write=False) as store:
        (item,) = store.items()
    assert {reply.source for reply in item.replies} == set(replies) and {r.text for r in item.replies} == set(texts)
    assert {(r.adapter, (r.sampling or {}).get("engine")) for r in item.replies} == {
        (None, f"http://127.0.0.1:{engine.port}/v1")
    }


def test_an_engine_that_dies_in_the_middle_is_told(tmp_path):
    upstream = Server.start(SCRIPTED, f"store={tmp_path / 'upstream.sqlite'}", "run=one-model")
    address = f"http://127.0.0.1:{upstream.port}/v1"
    front = Server.start(
        SERVE, "run=a/one", f"engine={address}", f"run.root={tmp_path}", "port=0", RLHF_ENGINE_KEY=TOKEN
    )
    try:
        client = client_of(front)
        assert asked(client, "hi", seed=1).choices[0].message.content == "one-model 1 hi "  # the only model it has
        with pytest.raises(openai.APIError, match="one-model broke off"):
            list(asked(client, "x BREAK", stream=True))
        heard = []
        with pytest.raises(openai.APIError, match=f"{address} broke off in the middle of its reply"):
            for chunk in asked(client, "well DIE", stream=True, seed=1):
                heard.append(chunk.choices[0].delta.content)
        assert heard == ["", "one-model ", "1 ", "well "]
        with pytest.raises(openai.InternalServerError, match=f"{address} does not answer"):
            asked(client, "hi")
    finally:
        front.kill()
        upstream.kill()


def test_one_server_a_store(engine, root, door):
    done = door("serve.py", "run=support/sft", f"run.root={root}", "port=0")
    assert done.returncode == 2 and f"another server (process {engine.process.pid})" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("run=support/ppp", 2, "did you mean support/ppo"),
        ("run=support/reward", 2, "is a reward model"),
        ("run=support/sft,other/sft", 2, "the store of one recipe"),
        ("run=sft", 2, "fix: run=support/sft,support/ppo"),
        ("run=support/sft temperature=3", 2, "a number from 0 to 2"),
        ("run=support/sft temperature=0", 2, "fix: compare=0, or temperature=1"),
        ("run=support/sft engine=vllm", 2, "fix: engine=embedded"),
        ("run=support/sft engine=http://127.0.0.1:9/v1", 2, "nothing answers there"),
        ("run=support/sft port=99999", 2, "fix: port=0"),
    ],
)
def test_what_the_command_refuses(root, tmp_path, door, words, code, says):
    (tmp_path / "support").mkdir()
    for stage in ("base", "sft", "reward", "ppo"):
        (tmp_path / "support" / stage).symlink_to(root / "support" / stage)
    done = door("serve.py", *words.split(" "), f"run.root={tmp_path}")
    assert done.returncode == code and says in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 6


@pytest.mark.parametrize(("path", "says"), [("/v1", "does not take the key"), ("", "is no server of the OpenAI proto")])
def test_an_engine_that_is_not_ours_to_ask_is_refused(engine, tmp_path, door, path, says):
    key = {"RLHF_ENGINE_KEY": "wrong"} if path else {"RLHF_ENGINE_KEY": TOKEN}
    address = f"engine=http://127.0.0.1:{engine.port}{path}"
    done = door("serve.py", "run=support/sft", address, f"run.root={tmp_path}", "port=0", **key)
    assert done.returncode == 2 and says in done.stderr and "fix:" in done.stderr, done.stderr
    if path:
        done = door("serve.py", "run=support/dpo", address, f"run.root={tmp_path}", RLHF_ENGINE_KEY=TOKEN)
        assert done.returncode == 2 and "support/sft, support/ppo" in done.stderr


def test_a_store_that_cannot_be_used_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Newer, another program's, locked, in a place that takes no file; with the engine's loading never reached."""
    module, store = door_module("serve"), tmp_path / "a/feedback.sqlite"
    monkeypatch.setattr(module, "loaded", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("rlhf.runs.record.finished_stage", lambda *_: None)
    own = module.Arguments(["a/sft"], port=0, run_root=str(tmp_path))
    with Store(store) as made:
        made.db.execute("PRAGMA user_version = 99")
    with pytest.raises(Refusal, match=r"version 99(.|\n)*git pull"):
        module.main(own)
    store.unlink()
    with sqlite3.connect(store) as other:
        other.execute("CREATE TABLE x (y)")
    with pytest.raises(Exception, match="a database of another program"):
        module.main(own)
    store.unlink()
    Store(store).db.close()
    lock = sqlite3.connect(store, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(Store.__init__, "__defaults__", (True, 0.2))
    with pytest.raises(Refusal, match="kept it locked"):
        module.main(own)
    lock.close()
    shutil.rmtree(store.parent)
    if os.geteuid():
        (tmp_path / "a").mkdir(mode=0o500)
    else:  # root may write anywhere
        (tmp_path / "a").write_text("a file where the folder would be")
    with pytest.raises(Refusal, match="cannot be written"):
        module.main(own)


def test_packages_that_are_missing_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(rlhf.web, "NEEDED", ("starlette", "no_such_package"))
    module = door_module("serve")
    with pytest.raises(Refusal, match=r"no_such_package: is not installed(.|\n)*fix: make web"):
        module.main(module.Arguments(["a/sft"]))
