"""Nobody is let in who does not hold the token, from another page, or with a body that is too large; one server, one store."""

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.web.servers import REPO, TOKEN, Server

ECHO = str(REPO / "tests/web/echo.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server.start(ECHO, f"store={tmp_path_factory.mktemp('store') / 'feedback.sqlite'}")
    yield started
    started.kill()


def test_the_token_is_a_bearer_or_a_cookie_that_a_page_of_its_address_gets(server: Server):
    assert server.ask("GET", "/")[::2] == (200, b"0")
    status, headers, _ = server.ask("GET", f"/?token={TOKEN}", authorization="")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and str(server.port) in cookie
    assert server.ask("GET", "/", authorization="", cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer another-token-altogether"}, 401),
        ({"authorization": "", "cookie": "rlhf=x"}, 401),
        ({"authorization": "Bearer ü"}, 401),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1:1"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content_length": "52428800"}, 413),
    ],
)
def test_who_is_not_let_in(server: Server, sent, status):
    found, headers, body = server.ask("POST", "/", b"x", **sent)
    assert found == status and b'"message"' in body
    assert TOKEN.encode() not in body and "default-src 'none'" in headers["content-security-policy"]


def test_its_own_pages_are_let_in(server: Server):
    assert server.ask("POST", "/", b"four", origin=f"http://127.0.0.1:{server.port}")[::2] == (200, b"4")
    assert server.ask("GET", "/", host=f"localhost:{server.port}")[0] == 200


def test_a_body_without_a_length_is_counted_as_it_comes_and_is_not_kept(server: Server):
    """A client that says no length sends chunks."""
    before = memory(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(OSError):
            for _ in range(800):  # 50 MB
                line.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413")
    assert server.ask("GET", "/")[0] == 200
    assert memory(server) - before < 10e6


def memory(server: Server) -> float:
    """Bytes that the server holds in memory."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_one_server_a_store_and_a_port(server: Server, tmp_path):
    store = next(word for word in server.process.args if str(word).startswith("store="))  # type: ignore
    with pytest.raises(AssertionError, match=f"(?s)ended with 2: .*another server .process {server.process.pid}"):
        Server.start(ECHO, store)
    with pytest.raises(AssertionError, match=f"(?s)ended with 2: error: port={server.port}: cannot be had.*port=0"):
        Server.start(ECHO, f"store={tmp_path / 'feedback.sqlite'}", f"port={server.port}")
    with pytest.raises(AssertionError, match="(?s)ended with 2: error: RLHF_TOKEN=.hidden."):
        Server.start(ECHO, f"store={tmp_path / 'feedback.sqlite'}", RLHF_TOKEN="short")


def test_a_killed_server_lets_go_of_its_store(tmp_path):
    store = f"store={tmp_path / 'feedback.sqlite'}"
    Server.start(ECHO, store).kill()
    again = Server.start(ECHO, store)
    assert again.ask("GET", "/")[0] == 200
    again.stop()
