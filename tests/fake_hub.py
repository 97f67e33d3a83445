"""A hub on this machine: what huggingface_hub asks of one to make a repository and to commit files, small ones and large (LFS)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"


@dataclass
class FakeHub:
    """What it holds, and how it behaves."""

    repos: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> private, files, messages
    role: str = "write"  # of the token
    large: tuple[str, ...] = (".safetensors",)  # endings of what goes by LFS
    fails: dict[str, int] = field(default_factory=dict)  # part of a path -> status
    asked: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)  # sha256 -> content
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON."""
        self.asked.append(f"{method} {path}")
        for part, status in self.fails.items():
            if part in path:
                return status, {"error": f"told to fail at {part}"}
        if path.startswith("/lfs/"):
            self.blobs[path.removeprefix("/lfs/")] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            orgs = [{"name": "acme"}]
            return 200, {"name": "me", "type": "user", "orgs": orgs, "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name, _, verb = path.removeprefix("/api/models/").removesuffix("/main").rpartition("/")
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._place(one) for one in json.loads(body)["objects"]]}
        if path.startswith("/api/models/") and f"{name}/{verb}" in self.repos and method == "GET":
            return 200, {"id": f"{name}/{verb}", "private": self.repos[f"{name}/{verb}"]["private"]}
        if name in self.repos and verb == "preupload":
            return 200, {"files": [self._mode(one["path"]) for one in json.loads(body)["files"]]}
        if name in self.repos and verb == "commit":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": "Repository not found"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        status = 409 if name in self.repos else 200
        self.repos.setdefault(name, {"private": private, "files": {}, "messages": []})
        return status, {"url": f"{self.url}/{name}", "name": name}

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(self.large) else "regular", "shouldIgnore": False}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        return one | {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}", "header": {}}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repo = self.repos[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo["messages"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.blobs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                repo["files"][value["path"]] = content
        return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1", "success": True}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve one on a free port of 127.0.0.1."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, told = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = serve

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
