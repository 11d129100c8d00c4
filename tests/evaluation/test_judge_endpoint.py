"""The endpoint judge against a server of our own that answers, favours a seat, babbles, fails and is not there."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from rlhf.config import REPO
from rlhf.errors import ConfigError, GuardStop
from rlhf.evaluation.judges import load_judge
from rlhf.evaluation.statistics import win_rate
from tests.evaluation.helpers import Handler, Server

KEY = "sk-planted-0123456789"
N = 8
OURS = [{"prompt": f"question {i}", "reply": f"a right answer {i}"} for i in range(N)]
THEIRS = [{"prompt": f"question {i}", "reply": f"a false answer {i}"} for i in range(N)]


def shown(question):
    """The two replies of a question, in the order in which they were shown."""
    return re.findall(r"<reply [AB]>\n(.*?)\n</reply", question, re.DOTALL)


def reads(question):
    return "A" if "right" in shown(question)[0] else "B"


@pytest.fixture
def endpoint(monkeypatch, tmp_path, request):
    """`endpoint(answer)`: the judge and the server that it asks."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def start(answer):
        server = Server(answer)
        request.addfinalizer(lambda: (server.shutdown(), server.server_close()))
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
        return judge(tmp_path), server

    return start


def judge(folder):
    found = load_judge("openai:m", None, None, folder)
    found.backoff = 0.01
    return found


def failing(answer, times, status):
    """Fails each question so many times before it answers."""
    seen = {}

    def then(question):
        seen[question] = seen.get(question, 0) + 1
        return (status, b"") if seen[question] <= times else answer(question)

    return then


def test_a_judge_who_reads_finds_the_better_reply_in_both_orders(endpoint):
    asking, server = endpoint(reads)
    found = asking.compare(OURS, THEIRS)
    assert found.shown_first == found.shown_second == [1.0] * N and found.abstained == 0 == found.flip_rate
    assert asking.compare(THEIRS, OURS).outcomes == [0.0] * N
    assert asking.scores(OURS) is None
    assert len(server.asked) == 2 * N, "the same questions the other way round are the same questions"
    assert all(re.search(r"<conversation>\nquestion \d\n</conv", messages[0]["content"]) for messages in server.asked)
    assert server.keys == {f"Bearer {KEY}"}


def test_all_turns_of_a_conversation_are_shown(endpoint):
    asking, server = endpoint(reads)
    turns = [
        {"role": "user", "content": "{hello}"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "?"},
    ]
    asking.compare([OURS[0] | {"messages": json.dumps(turns)}], THEIRS[:1])
    assert "<conversation>\nuser: {hello}\nassistant: hi\nuser: ?\n</conversation>" in server.asked[0][0]["content"]


def test_an_always_first_judge_is_unmasked_by_the_swap(endpoint):
    found = endpoint(lambda _: "A")[0].compare(OURS, THEIRS)
    assert found.flip_rate == 1.0 and win_rate(found.outcomes).rate == 0.5
    assert found.shown_first == [1.0] * N and found.shown_second == [0.0] * N


def test_equal_replies_are_ties_that_nobody_is_asked_about(endpoint):
    asking, server = endpoint(lambda _: "A")
    assert asking.compare(OURS, OURS).outcomes == [0.5] * N and not server.asked
    assert endpoint(lambda _: "C")[0].compare(OURS, THEIRS).outcomes == [0.5] * N


@pytest.mark.parametrize(
    ("said", "outcome"),
    [("B", 0.0), (" a.", 1.0), ("**C**", 0.5), ("Answer: B", 0.0), ("<think>A or B?</think>\n\nA", 1.0)],
)
def test_answers_that_can_be_read(endpoint, said, outcome):
    assert endpoint(lambda _: said)[0].compare(OURS[:1], THEIRS[:1]).shown_first == [outcome]


def test_nonsense_is_asked_for_once_more_and_then_an_abstention(endpoint, tmp_path):
    nonsense = iter(["Both have their merits.", "A good reply is B", "", None])

    def sometimes(question):
        return next(nonsense) if "question 3" in question else reads(question)

    asking, server = endpoint(sometimes)
    found = asking.compare(OURS, THEIRS)
    assert found.abstained == 1 and found.shown_first[3] is found.shown_second[3] is None
    assert found.outcomes == [1.0] * 3 + [0.5] + [1.0] * 4
    assert sorted(len(messages) for messages in server.asked) == [1] * 2 * N + [3, 3]
    assert all("one letter" in messages[-1]["content"] for messages in server.asked)
    assert judge(tmp_path).compare(OURS, THEIRS) == found and len(server.asked) == 2 * N + 2, (
        "an abstention is kept too"
    )


def test_a_judge_who_mostly_abstains_is_refused(endpoint, tmp_path):
    asking, server = endpoint(lambda question: reads(question) if "question 1" in question else "I can't judge people.")
    with pytest.raises(GuardStop, match=r"judge=openai:m at 127.0.0.1:\d+ abstained on 7 of 8 prompts.*neither"):
        asking.compare(OURS, THEIRS)
    asked = len(server.asked)
    with pytest.raises(GuardStop):
        judge(tmp_path).compare(OURS, THEIRS)
    assert len(server.asked) == asked == 2 + 2 * 14


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_waited_for(endpoint, status):
    asking, server = endpoint(failing(reads, 2, status))
    assert asking.compare(OURS, THEIRS).outcomes == [1.0] * N and len(server.asked) == 3 * 2 * N


def test_waits_grow_and_a_server_may_ask_for_longer(endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    asking, _ = endpoint(lambda _: (500, b""))
    asking.backoff = 1.0
    with pytest.raises(ConfigError):
        asking.compare(OURS[:1], THEIRS[:1])
    assert sorted(waits) == [1, 1, 2, 2, 4, 4]
    monkeypatch.setattr(Handler, "more", {"Retry-After": "9"})
    waits.clear()
    with pytest.raises(ConfigError):
        asking.compare(OURS[:1], THEIRS[:1])
    assert waits == [9] * 6


def test_what_fails_is_an_abstention_that_is_asked_again(endpoint, tmp_path):
    asking, server = endpoint(lambda question: (500, b"") if "question 5" in question else reads(question))
    assert asking.compare(OURS, THEIRS).abstained == 1
    server.answer, before = reads, len(server.asked)
    assert judge(tmp_path).compare(OURS, THEIRS).outcomes == [1.0] * N and len(server.asked) == before + 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((500, b""), "the last with HTTP 500"),
        (b"<html>Welcome</html>", "something that is not a chat completion"),
        ((400, b'{"error": "no temperature, sk-planted-0123456789"}'), 'HTTP 400: {"error": "no temperature, ***"}'),
    ],
)
def test_an_endpoint_that_fails_stops_the_questions_and_keeps_the_answers(endpoint, tmp_path, answer, told):
    asking, server = endpoint(reads)
    asking.compare(OURS[:3], THEIRS[:3])
    server.answer = lambda _: answer
    with pytest.raises(ConfigError) as caught:
        asking.compare(OURS, THEIRS)
    message = str(caught.value)
    assert "failed 4 questions" in message and told in message and "OPENAI_BASE_URL" in message and KEY not in message
    assert f"127.0.0.1:{server.server_port} failed" in message and "/v1" not in message
    server.answer, before = reads, len(server.asked)
    assert judge(tmp_path).compare(OURS, THEIRS).outcomes == [1.0] * N and len(server.asked) == before + 2 * 5


def test_a_dead_port_is_a_clear_error(endpoint):
    asking, server = endpoint(reads)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConfigError, match="Connection refused.*\n  fix: check OPENAI_BASE_URL"):
        asking.compare(OURS, THEIRS)
    with pytest.raises(ConfigError, match="failed 2 questions"):  # too few to fail four times
        asking.compare(OURS[:1], THEIRS[:1])


def test_a_server_that_hangs_is_left(endpoint):
    asking, _ = endpoint(lambda _: time.sleep(0.3) or "A")
    asking.timeout = 0.05
    with pytest.raises(ConfigError, match="timed out|TimeoutError"):
        asking.compare(OURS[:1], THEIRS[:1])


@pytest.mark.parametrize(
    ("piece", "pause", "status", "told"),
    [
        (b" ", 0.02, 200, "an answer that took over 0.2 s"),
        (b" " * 2**18, 0.0, 200, "an answer of over 1048576 bytes"),
        (b"x" * 100, 0.02, 400, "HTTP 400"),
    ],
)
def test_an_answer_that_never_ends_is_left(endpoint, monkeypatch, piece, pause, status, told):
    def answers(handler):
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(status)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(piece)
            time.sleep(pause)

    monkeypatch.setattr(Handler, "do_POST", answers)
    asking, _ = endpoint(reads)
    asking.timeout = 0.2
    began = time.monotonic()
    with pytest.raises(ConfigError, match=told):
        asking.compare(OURS, THEIRS)
    assert time.monotonic() - began < 30  # 100 pieces for each of 4 tries at 4 questions would take longer


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_is_an_error_at_once(endpoint, status):
    asking, server = endpoint(lambda _: (status, f"bad key {KEY[:8]}...{KEY[-4:]} ".encode() + KEY.encode()))
    with pytest.raises(ConfigError, match=f"answered HTTP {status}.*\n  fix: the key in OPENAI_API_KEY") as caught:
        asking.compare(OURS, THEIRS)
    assert KEY not in str(caught.value) and len(server.asked) < 2 * N
    assert (KEY[:8] in str(caught.value)) == (status == 404)


def test_a_redirect_does_not_carry_the_key_away(endpoint):
    elsewhere = Server(reads)
    target = f"http://127.0.0.1:{elsewhere.server_port}/v1/chat/completions".encode()
    with pytest.raises(ConfigError, match="answered HTTP 302"):
        endpoint(lambda _: (302, target))[0].compare(OURS, THEIRS)
    assert not elsewhere.asked
    elsewhere.server_close()


def test_a_half_written_line_is_asked_again(endpoint, tmp_path):
    asking, server = endpoint(reads)
    asking.compare(OURS, THEIRS)
    whole = asking.file.read_text()
    assert len(whole.splitlines()) == 2 * N
    asking.file.write_text(whole[:-20])
    assert judge(tmp_path).compare(OURS, THEIRS).outcomes == [1.0] * N and len(server.asked) == 2 * N + 1
    assert judge(tmp_path).compare(OURS, THEIRS).outcomes == [1.0] * N and len(server.asked) == 2 * N + 1


def test_an_answer_belongs_to_its_model_prompt_and_replies(endpoint, tmp_path):
    asking, server = endpoint(reads)
    asking.compare(OURS[:1], THEIRS[:1])
    asking.compare([OURS[0] | {"prompt": "another"}], THEIRS[:1])
    asking.compare([OURS[0] | {"reply": "another right one"}], THEIRS[:1])
    assert len(server.asked) == 3 * 2
    other = load_judge("openai:m2", None, None, tmp_path)
    server.answer = lambda _: "C"
    assert other.compare(OURS[:1], THEIRS[:1]).outcomes == [0.5] and len(server.asked) == 4 * 2


def test_a_killed_judge_goes_on_where_it_stopped(endpoint, tmp_path, capsys):
    _, server = endpoint(lambda question: time.sleep(0.05) or reads(question))
    code = (
        "import sys; from pathlib import Path; from rlhf.evaluation.judges import load_judge; "
        f"load_judge('openai:m', None, None, Path(sys.argv[1])).compare({OURS!r}, {THEIRS!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], env=os.environ | {"PYTHONPATH": str(REPO / "src")}
    )
    file, until = tmp_path / "judge.jsonl", time.time() + 300
    while not (file.exists() and file.read_text().count("\n") >= 5) and process.poll() is None and time.time() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = file.read_text().count("\n")
    assert 5 <= kept < 2 * N, "it must be killed in the middle"
    assert judge(tmp_path).compare(OURS, THEIRS).outcomes == [1.0] * N
    assert f": {2 * N - kept} questions" in capsys.readouterr().out


def test_the_key_is_in_no_file_and_nothing_that_prints(endpoint, tmp_path, capsys):
    asking, _ = endpoint(reads)
    asking.compare(OURS, THEIRS)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any(KEY in file.read_text() for file in files)
    assert KEY not in repr(asking) + capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "OPENAI_API_KEY is not set"),
        ({"OPENAI_API_KEY": "sk-é1"}, "OPENAI_API_KEY holds a space"),
        ({"OPENAI_API_KEY": "sk-1\nsk-2"}, "OPENAI_API_KEY holds a space"),
        ({"OPENAI_BASE_URL": "file:///etc"}, "OPENAI_BASE_URL is not the base"),
        ({"OPENAI_BASE_URL": "http://me:sk-1@host/v1"}, "OPENAI_BASE_URL is not the base"),
        ({"OPENAI_BASE_URL": "https://host/v1?key=sk-1"}, "OPENAI_BASE_URL is not the base"),
    ],
)
def test_an_environment_that_cannot_work_is_refused(monkeypatch, tmp_path, variables, message):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as caught:
        load_judge("openai:m", None, None, tmp_path)
    assert "sk-" not in str(caught.value)
