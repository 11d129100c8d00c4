"""A server of the project as a process of its own, and plain requests to it."""

import http.client
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

REPO = Path(__file__).parents[2]
TOKEN = "a-token-for-these-tests"


@dataclass
class Server:
    """A running command that printed its address."""

    process: subprocess.Popen
    port: int
    lines: list[str]

    @classmethod
    def start(cls, *command: str, **environment: str) -> "Server":
        """`command` is a Python file with its arguments; waits for the line with the address."""
        env = os.environ | {"PYTHONPATH": str(REPO / "src"), "RLHF_TOKEN": TOKEN} | environment
        process = subprocess.Popen(
            [sys.executable, *command], cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if "http://127.0.0.1:" in line:
                return cls(process, urlsplit(line.split()[-1]).port or 0, lines)
        raise AssertionError(f"ended with {process.wait()}: {''.join(lines)}")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
        """Status, headers and body; the token is sent unless `authorization` is given. Names in `headers` hold _ for -."""
        sent = {"authorization": f"Bearer {TOKEN}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
