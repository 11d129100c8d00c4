"""OpenAI's protocol in front of an engine: what clients read, what is refused, and what people said of the answers."""

import json
import sqlite3
import time

import openai
import pytest

from rlhf.data import columns
from rlhf.feedback.store import Store
from tests.web.clients import SCRIPTED, asked, client_of, say, shown
from tests.web.servers import Server


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "a/feedback.sqlite"


@pytest.fixture(scope="module")
def server(store):
    started = Server.start(SCRIPTED, f"store={store}", "compare=1")
    yield started
    started.kill()


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def test_a_client_reads_models_answers_and_streams(client):
    assert [model.id for model in client.models.list()] == ["a/one", "a/two"]
    assert client.models.retrieve("a/two").object == "model"
    whole = asked(client, "hello you", model="a/two", seed=7)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("a/two 7 hello you ", "stop")
    assert (whole.model, whole.object, whole.usage.model_dump(exclude_none=True)) == (
        "a/two",
        "chat.completion",
        {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
    )
    chunks = list(asked(client, "hello you", seed=7, stream=True, max_tokens=3, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].delta.content or "" for c in chunks[:-1]] == ["", "a/one ", "7 ", "hello ", ""]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in asked(client, "x", stream=True))


def test_n_choices_have_seeds_that_follow_each_other(client):
    whole = asked(client, "hi", n=3, seed=40)
    assert [choice.message.content for choice in whole.choices] == [f"a/one {seed} hi " for seed in (40, 41, 42)]
    texts = {0: "", 1: ""}
    for chunk in asked(client, "hi", n=2, seed=40, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "a/one 40 hi ", 1: "a/one 41 hi "}
    assert asked(client, "hi").choices[0].message.content != asked(client, "hi").choices[0].message.content


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "says"),
    [
        (b"{", 400, None, None, "Invalid JSON"),
        (b"\xff", 400, None, None, "Invalid JSON"),
        (b"[]", 400, None, None, "not what is asked for"),
        ({}, 400, "messages", None, "Field required"),
        ({"messages": "hi"}, 400, "messages", None, "valid array"),
        ({"messages": []}, 400, "messages", None, "at least 1"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "messages", None, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", None, "content"),
        ({"temperature": "hot"}, 400, "temperature", None, "valid number"),
        ({"temperature": 9}, 400, "temperature", None, "less than or equal to 2"),
        ({"max_tokens": 0}, 400, "max_tokens", None, "greater than or equal to 1"),
        ({"max_tokens": 1.5}, 400, "max_tokens", None, "valid integer"),
        ({"n": 99}, 400, "n", None, "less than or equal to 8"),
        ({"stop": [""]}, 400, "stop", None, "empty text"),
        ({"stream": "yes"}, 400, "stream", None, "valid boolean"),
        ({"model": "a/tow"}, 404, "model", "model_not_found", "did you mean a/two"),
        ({"tempurature": 1}, 400, "tempurature", "unknown_parameter", "did you mean temperature"),
        ({"tools": [{}]}, 400, "tools", "unsupported_parameter", "not supported"),
        ({"logprobs": True}, 400, "logprobs", "unsupported_parameter", "not supported"),
        ({"messages": [{"role": "user", "content": "FULL"}]}, 400, "messages", "context_length_exceeded", "no room"),
        ({"messages": [{"role": "user", "content": "x BREAK"}]}, 500, None, None, "broke off"),
    ],
)
def test_what_is_refused_has_the_shape_of_openai(server, body, status, param, code, says):
    if isinstance(body, dict):
        plain = {"model": "a/one", "messages": [{"role": "user", "content": "hi"}]} if body else {}
        body = json.dumps(plain | body).encode()
    found, _, answer = server.ask("POST", "/v1/chat/completions", body)
    error = json.loads(answer)["error"]
    assert (found, error["param"], error["code"]) == (status, param, code) and says in error["message"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


def test_what_changes_nothing_is_taken(client):
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "logprobs": False, "user": "me", "top_p": 1, "tools": []}
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "me"}]
    whole = client.chat.completions.create(model="a/one", messages=messages, seed=1, **neutral)
    assert whole.choices[0].message.content == "a/one 1 a b "


@pytest.mark.parametrize("path", ["/", "/chat.js", "/v1/models", "/v1/chat/completions", "/v1/feedback", "/chat"])
def test_nobody_is_let_in_without_the_token(server, path):
    method = "GET" if path in ("/", "/chat.js", "/v1/models") else "POST"
    for key in ("", "Bearer sk-another-key-altogether"):
        status, _, body = server.ask(method, path, b"{}" if method == "POST" else None, authorization=key)
        assert status == 401 and b"API key" in body
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sk-no").models.list()


def test_an_engine_that_fails_in_the_middle_is_an_error_that_clients_raise(client):
    heard = []
    with pytest.raises(openai.APIError, match="a/one broke off"):
        for chunk in asked(client, "well BREAK", stream=True, seed=1):
            heard.append(chunk.choices[0].delta.content)
    assert heard == ["", "a/one ", "1 ", "well "]
    with pytest.raises(openai.InternalServerError, match="broke off"):
        asked(client, "well BREAK")


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_what_answers_him(client, stream):
    def left():
        messages = [{"role": "system", "content": "count"}, {"role": "user", "content": "?"}]
        return int(client.chat.completions.create(model="a/one", messages=messages).choices[0].message.content)

    before = left()
    if stream:
        answer = asked(client, "SLOW down", stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            asked(client.with_options(timeout=0.5), "SLOW down")
    deadline = time.monotonic() + 2
    while left() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() == before + 1


# -- what people say of it


def test_a_thumb_brings_its_answer_into_the_store_and_nothing_else_does(server, client, store):
    with Store(store, write=False) as kept:
        before = len(kept.items())
        asked(client, "nobody says anything of this")
        answer = asked(client, "when", "at nine", "and on Sundays?", seed=3, temperature=0.5, max_tokens=20)
        assert len(kept.items()) == before
        assert say(server, id=answer.id, thumb="up", user="ann")[0] == 200
        item = kept.items()[-1]
        assert [turn["content"] for turn in item.messages] == ["when", "at nine", "and on Sundays?"]
        (reply,) = item.replies
        assert (reply.text, reply.source, reply.run) == ("a/one 3 and on Sundays?", "a/one", "id of the run")
        assert (reply.adapter, reply.seed) == ("beef", 3)
        assert reply.sampling == {"temperature": 0.5, "max_new_tokens": 20}
        assert say(server, id=answer.id, thumb="down", user="ann")[0] == 200
        assert say(server, id=answer.id, thumb="up")[0] == 200
        thumbs = [row for row in kept.thumbs() if row[0] == reply.id]
        assert thumbs == [(reply.id, "ann", False), (reply.id, "owner", True)] and len(kept.items()) == before + 1


def test_two_replies_are_of_two_runs_blind_and_in_random_order(server):
    orders = []
    for number in range(24):
        event, texts = shown(server, f"question {number}")
        assert event["model"] == "compared"
        orders.append(tuple(text.split(" ")[0] for text in texts))
    assert set(orders) == {("a/one", "a/two"), ("a/two", "a/one")}


def test_a_word_on_two_replies_is_a_judgement_that_a_reward_model_learns(server, store, compose_stage):
    rank = {"better": [0, 1], "tie": [0, 0]}
    with Store(store, write=False) as kept:
        before, pairs = len(kept.judgements()), []
        for number in range(8):
            event, texts = shown(server, f"which of {number}")
            pairs.append((texts[1], texts[0]) if number % 2 else tuple(texts))
            ranks = rank["better"][::-1] if number % 2 else rank["better"]
            assert say(server, id=event["id"], ranks=ranks[::-1], milliseconds=9)[0] == 200
            assert say(server, id=event["id"], ranks=ranks, milliseconds=1200)[0] == 200  # the word is changed
        event, texts = shown(server, "a tie")
        assert say(server, id=event["id"], ranks=rank["tie"])[0] == 200
        event, _ = shown(server, "neither")
        assert say(server, id=event["id"], outcome="all bad")[0] == 200
        told = kept.judgements()[before:]
        items = {item.id: item for item in kept.items()}
    assert [one.undone is None for one in told] == [False, True] * 8 + [True, True]
    first = told[1]
    texts = {reply.id: reply.text for reply in items[first.item].replies}
    assert [texts[reply] for reply in first.shown] == list(pairs[0]) and first.milliseconds == 1200
    assert (told[-2].ranks, told[-1].outcome) == ([0, 0], "all bad")

    stage = compose_stage(
        "dataset=feedback",
        "method=reward",
        "run.recipe=a",
        f"run.root={store.parent.parent}",
        "dataset.options.held_out=0",
    )
    rows = [row for row in columns.read(stage.dataset, "train", "pairs").rows if row.bad is None]
    from rlhf.data import contract

    learned = {
        (pair.chosen[0]["content"], pair.rejected[0]["content"])
        for row in rows
        if isinstance(row.values["ranks"], list)
        for pair in contract.pairs(stage.dataset, row)
    }
    assert learned == set(pairs)


@pytest.mark.parametrize(
    ("said", "status", "says"),
    [
        ({"id": "chatcmpl-no", "thumb": "up"}, 404, "no answer of that id"),
        ({"thumb": "sideways"}, 400, "thumb"),
        ({"thumb": "up", "choice": 1}, 400, "choice: the answer has 1"),
        ({"thumb": "up", "user": " "}, 400, "user"),
        ({"thumb": "up", "usr": "me"}, 400, "usr"),
        ({"thumb": "up", "ranks": [0]}, 400, "one of thumb, ranks"),
        ({}, 400, "one of thumb, ranks"),
        ({"ranks": [0, 1]}, 400, "give it a thumb"),
    ],
)
def test_feedback_that_does_not_fit_is_refused(server, client, said, status, says):
    found, body = say(server, **{"id": asked(client, "x").id, **said})
    assert found == status and says in body["error"]["message"]


def test_ranks_that_cannot_be_kept_are_refused(server, client):
    three = asked(client, "x", n=3)
    for ranks, says in (([0, 1], "one from 0 for each of 3"), ([0, 1, -1], "one from 0"), ("first", "valid array")):
        status, body = say(server, id=three.id, ranks=ranks)
        assert status == 400 and says in body["error"]["message"]
    same = asked(client, "x", n=2, max_tokens=1)  # both say the name of the run, and no seed
    status, body = say(server, id=same.id, ranks=[0, 1])
    assert status == 400 and "all the same" in body["error"]["message"]
    assert say(server, id=same.id, thumb="up", choice=1)[0] == 200


def test_a_store_that_is_locked_loses_nothing(server, client, store):
    """Another process writes for longer than a writer waits; the same word is kept afterwards."""
    answer = asked(client, "locked")
    lock = sqlite3.connect(store, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    status, body = say(server, id=answer.id, thumb="up", user="cy")
    assert status == 503 and "say it again" in body["error"]["message"] and "locked for" in body["error"]["message"]
    lock.execute("ROLLBACK")
    assert say(server, id=answer.id, thumb="up", user="cy")[0] == 200
    with Store(store, write=False) as kept:
        assert [who for _, who, _ in kept.thumbs()].count("cy") == 1
