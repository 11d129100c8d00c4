"""A chat endpoint on a port of this machine, which answers as a test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


class Server(ThreadingHTTPServer):
    """Answers with `answer(question)`, a text or an HTTP status with a body, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.keys, self.lock = answer, [], set(), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    more: ClassVar[dict[str, str]] = {}  # headers of every answer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0 and body["model"] in ("m", "m2")
        with self.server.lock:
            self.server.asked.append(body["messages"])
            self.server.keys.add(self.headers["Authorization"])
            said = self.server.answer(body["messages"][0]["content"])
        status, said = said if isinstance(said, tuple) else (200, said)
        if status == 200 and not isinstance(said, bytes):
            said = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", said.decode())
        for header in self.more.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass
