"""A hub on this machine: as much of its interface as an upload needs, keeping what it is sent."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """`address` to be given as HF_ENDPOINT; `files` are those of the commits, `created` the repositories as they were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        self.tokens: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, body: dict, code: int = 200) -> None:
                content = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self):
                self.answer({"id": "me/mine", "siblings": [], "sha": "0" * 40})

            def do_POST(self):
                length = self.headers.get("Content-Length")
                body = self.rfile.read(int(length)) if length else self.chunks()
                hub.tokens.add(self.headers.get("Authorization", ""))
                if self.headers.get("Authorization") != "Bearer hf_test":
                    self.answer({"error": "Invalid username or password."}, 401)
                elif self.path == "/api/repos/create":
                    hub.created.append(json.loads(body))
                    self.answer({"url": f"{hub.address}/me/mine", "id": "me/mine"})
                elif self.path == "/api/validate-yaml":
                    self.answer({"errors": [], "warnings": []})
                elif "/preupload/" in self.path:
                    asked = json.loads(body)["files"]
                    self.answer(
                        {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                    )
                elif re.search("/commit/", self.path):
                    for line in filter(None, body.decode().split("\n")):
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    self.answer(
                        {
                            "success": True,
                            "commitOid": "0" * 40,
                            "commitUrl": f"{hub.address}/me/mine/commit/0",
                            "hookOutput": "",
                        }
                    )
                else:
                    self.answer({}, 404)

            def chunks(self) -> bytes:
                found = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                return found

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
