"""The routes of the page that ranks: what is acknowledged is kept once, nothing tells which run wrote a reply, bad input is refused in
words; and what the door refuses before it serves."""

import json
import os
import socket
import sqlite3
import tempfile
from pathlib import Path

import pytest

from rlhf.errors import DataError, Refusal
from rlhf.feedback.schema import VERSION, Reply
from rlhf.feedback.store import Store
from rlhf.web.gate import BODY
from tests.helpers import door_module
from tests.web.servers import TOKEN, Server

RUNS = ("mine/sft-one", "mine/ppo-two")


def filled(path, count=6):
    with Store(path) as store, store.transaction():
        for number in range(count):
            replies = [Reply(f"reply {number} {run[-3:]}", run, f"id of {run}", "beef") for run in RUNS]
            store.add([{"role": "user", "content": f"question {number}"}], {"truth": "secret"}, "one", replies)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    filled(root / "mine/feedback.sqlite")
    return root


@pytest.fixture(scope="module")
def server(root):
    started = Server.start("src/annotate.py", "recipe=mine", "port=0", "shared=0", f"run.root={root}", "annotator=zoe")
    yield started
    started.kill()


def ask(server, path, body=None):
    sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = server.ask("GET" if body is None else "POST", path, sent)
    told = json.loads(answer)
    return status, told if status == 200 else told["error"]["message"]


def judgement(server, name):
    """What the page sends of the item that an annotator is handed."""
    _, told = ask(server, "/api/next", {"annotator": name})
    shown = [reply["key"] for reply in told["item"]["replies"]]
    said = {"annotator": name, "item": told["item"]["id"], "shown": shown, "ranks": [0, 1], "outcome": "ranked"}
    return said | {"tags": {}, "better": None, "milliseconds": 5}


def kept(root, name):
    with Store(root / "mine/feedback.sqlite", write=False) as store:
        return [one for one in store.judgements() if one.annotator == name]


@pytest.mark.parametrize(
    "path", ["/", "/figures", "/annotate.js", "/figures.js", "/parts.js", "/annotate.css", "/icon.svg"]
)
def test_the_pages_are_our_own_files_without_script_or_style_in_them(server, path):
    status, headers, body = server.ask("GET", path)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert status == 200 and headers["content-type"].startswith(kinds.get(path.rpartition(".")[2], "text/html"))
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    text = body.decode()
    assert "innerHTML" not in text and " style=" not in text and "<style" not in text and " onclick" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere


def test_nothing_that_reaches_the_browser_tells_where_a_reply_comes_from(server, root):
    for path, body in (("/api/start", None), ("/api/next", {"annotator": "blind"}), ("/api/figures", None)):
        status, told = ask(server, path, body)
        text = json.dumps(told)
        assert status == 200 and not any(word in text for word in (*RUNS, "beef", "secret", "id of"))
    _, told = ask(server, "/api/next", {"annotator": "blind"})
    assert set(told["item"]) == {"id", "turns", "replies"}
    assert all(set(reply) == {"key", "text"} and len(reply["key"]) == 16 for reply in told["item"]["replies"])
    assert ask(server, "/api/start")[1]["annotator"] == "zoe"


def test_an_acknowledged_judgement_is_kept_once_and_another_word_is_refused(server, root):
    said = judgement(server, "ann")
    status, told = ask(server, "/api/judge", said)
    (one,) = kept(root, "ann")
    assert status == 200 and told["judgement"] == one.id and one.milliseconds == 5
    assert ask(server, "/api/judge", said | {"milliseconds": 99})[1] == told  # the answer was lost
    status, why = ask(server, "/api/judge", said | {"ranks": [1, 0]})
    assert status == 400 and "has judged item" in why and "fix: undo" in why
    assert kept(root, "ann") == [one]
    status, told = ask(server, "/api/undo", {"annotator": "ann", "item": said["item"]})
    assert status == 200 and told["said"]["ranks"] == [0, 1] and told["item"]["id"] == said["item"]
    assert ask(server, "/api/undo", {"annotator": "ann", "item": said["item"]})[1] == told
    assert ask(server, "/api/judge", said | {"ranks": [1, 1], "tags": {said["shown"][0]: ["safe"]}})[0] == 200
    assert [list(one.ranks) for one in kept(root, "ann")] == [[0, 1], [0, 0]]
    assert ask(server, "/api/here", {"annotator": "ann", "item": said["item"]})[1]["progress"]["everyone"]["ann"] == 1
    status, told = ask(server, "/api/figures")
    assert status == 200 and told["judgements"]["ann"] == 1 and told["undone"] == 1 and told["position"] is not None


WRONG = [
    ({"annotator": ""}, "1 to 40 letters"),
    ({"annotator": " \n "}, "1 to 40 letters"),
    ({"annotator": None}, "annotator=None: must be a text"),
    ({"annotator": "\ud800"}, "must be a text"),
    ({"item": 99}, "is not in the store"),
    ({"item": "1"}, "item='1': must be a whole number"),
    ({"item": True}, "must be a whole number"),
    ({"item": 10**30}, "must be a whole number"),
    ({"shown": ["1", "2"]}, "are not the replies of item"),
    ({"shown": "ab"}, "shown='ab': must be a list"),
    ({"ranks": [0]}, "one for each of 2"),
    ({"ranks": [0, 7]}, "0 to 1, 0 is best"),
    ({"ranks": [0, -1]}, "must be a whole number from 0"),
    ({"ranks": [0, 0.5]}, "must be a whole number"),
    ({"outcome": "fine"}, "allowed: ranked"),
    ({"outcome": "skipped"}, "one for each of"),
    ({"better": 7}, "better=7: must be a text"),
    ({"better": "\ud800"}, "must be a text"),
    ({"tags": []}, "tags=[]: must be an object"),
    ({"tags": {"": ["rude"]}}, "allowed: kind"),
    ({"tags": {"": "kind"}}, "must be a list"),
    ({"milliseconds": -5}, "must be a whole number from 0"),
    ({"milliseconds": None}, "must be a whole number"),
]


def test_what_is_no_judgement_is_refused_in_words(server, root):
    said = judgement(server, "bad")
    for wrong, words in WRONG:
        status, why = ask(server, "/api/judge", said | wrong)
        assert status == 400 and words in why, (wrong, why)
    for body, words in (
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100000, "not JSON"),
        (b"[1]", "not a JSON object"),
    ):
        status, why = ask(server, "/api/judge", body)
        assert status == 400 and words in why, why
    assert ask(server, "/api/judge", b"x" * (BODY + 1))[0] == 413
    assert ask(server, "/api/judge")[0] == 405 and ask(server, "/api/none")[0] == 404
    assert kept(root, "bad") == [] and ask(server, "/api/judge", said)[0] == 200


def test_a_body_of_50_mb_is_refused_before_it_is_read(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        head = f"POST /api/judge HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        line.sendall(f"{head}Content-Length: {50 << 20}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 413")


def test_a_store_that_another_process_keeps_locked_is_said_and_the_judgement_can_be_sent_again(server, root):
    said = judgement(server, "late")
    with Store(root / "mine/feedback.sqlite") as other, other.transaction():
        status, why = ask(server, "/api/judge", said)
        assert status == 400 and "locked for 3 seconds\n  fix: end that process" in why
    assert ask(server, "/api/judge", said)[0] == 200 and len(kept(root, "late")) == 1


def test_two_servers_and_no_store(server, root):
    with pytest.raises(AssertionError, match="(?s)ended with 2: .*another server .process"):
        Server.start("src/annotate.py", "recipe=mine", "port=0", f"run.root={root}")
    with pytest.raises(
        AssertionError, match=f"ended with 3: .*no feedback is there\n  fix: .*run=other/sft run.root={root}"
    ):
        Server.start("src/annotate.py", "recipe=other", f"run.root={root}")
    assert not (root / "other").exists()


def annotate(root, **more):
    module = door_module("annotate")
    module.main(module.Arguments("mine", run_root=str(root), **more))


def test_a_store_that_cannot_be_used_is_refused_and_stays_as_it_is(tmp_path):
    path = filled(tmp_path / "mine/feedback.sqlite")
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(Refusal, match=f"its tables are of version {VERSION + 1}"):
        annotate(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    with Store(path):
        pass
    with pytest.raises(DataError, match=r"no replies are there\n  fix: python src/collect.py run=mine/sft"):
        annotate(tmp_path)


def test_a_store_that_cannot_be_written_is_refused_with_the_fix():
    with tempfile.TemporaryDirectory() as folder:
        path = filled(Path(folder, "mine/feedback.sqlite"))
        Path(folder).chmod(0o755)
        path.chmod(0o444)
        path.parent.chmod(0o555)
        root = os.geteuid() == 0
        if root:  # whom no mode stops
            os.seteuid(65534)
        try:
            with pytest.raises(Refusal, match=r"cannot be written .*\n  fix: chmod u\+w"):
                annotate(folder)
        finally:
            if root:
                os.seteuid(0)
            path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"shared": 1.5}, "a share from 0 to 1"),
        ({"mode": "terminal"}, "fix: mode=terminal annotator=ann"),
        ({"annotator": " "}, "1 to 40 letters"),
        ({"rules": "none.txt"}, "rules=none.txt: no such file"),
    ],
)
def test_what_the_door_refuses(tmp_path, more, words):
    with pytest.raises(Refusal, match=words):
        annotate(tmp_path, **more)


def test_the_packages_of_the_web_are_asked_for_where_they_are_needed(tmp_path, monkeypatch, capsys):
    """The page needs them, the terminal does not."""
    filled(tmp_path / "mine/feedback.sqlite", 1)
    monkeypatch.setattr("rlhf.web.find_spec", lambda name: None)
    with pytest.raises(Refusal, match="(?s)web=starlette, uvicorn, openai: is not installed.*fix: make web"):
        annotate(tmp_path)
    monkeypatch.setattr("builtins.input", lambda _: "quit")
    annotate(tmp_path, mode="terminal", annotator="ann")
    assert "question 0" in capsys.readouterr().out
