"""A stand-in for the Hugging Face hub on the loop-back: repositories of models, as huggingface_hub asks for them.

Large files go by Git LFS. The hub's newer protocol for them, xet, is not stood in for: `redirect` switches it off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants


class Server(ThreadingHTTPServer):
    """A server.

    Attributes:
        models: files of each repository, by OWNER/NAME.
        created: what was asked for with each new repository.
        objects: of Git LFS, by SHA-256.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def redirect(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Send huggingface_hub here, as HF_ENDPOINT does before it is imported, with its cache in a folder."""
        monkeypatch.setattr(constants, "ENDPOINT", self.address)
        template = f"{self.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.+))?", path)
        files = self.server.models.get(match[2]) if match else None
        if match is None or files is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if match[3] == "revision":
            return self.answer({"id": match[2], "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if match[3] == "tree":
            entries = [(name, len(content), hashlib.sha1(content).hexdigest()) for name, content in files.items()]
            return self.answer([{"type": "file", "path": n, "size": size, "oid": oid} for n, size, oid in entries])
        if match[5] not in files:
            return self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = hashlib.sha1(files[match[5]]).hexdigest()
        return self.answer(files[match[5]], ETag=f'"{etag}"', X_Repo_Commit=commit)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.startswith("/upload/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/upload/")
            self.server.objects[path.removeprefix("/upload/")] = body
            return self.answer({})
        if not self.headers.get("Authorization"):
            return self.answer({"error": "Invalid username or password."}, 401)
        if path.endswith("/commit/main"):
            model = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.models[model][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.models[model][value["path"]] = self.server.objects[value["oid"]]
            return self.answer({"commitUrl": f"{self.server.address}/{model}/commit/{'0' * 40}", "commitOid": "0" * 40})
        asked = json.loads(body)
        if path == "/api/repos/create":
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.models.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}"})
        if path.endswith("/preupload/main"):
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked["files"]}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            upload = f"{self.server.address}/upload/"
            wanted = [o | {"actions": {"upload": {"href": upload + o["oid"]}}} for o in asked["objects"]]
            return self.answer({"transfer": "basic", "objects": wanted})
        return self.answer({"errors": [], "warnings": []})  # of /api/validate-yaml

    do_PUT = do_POST  # noqa: N815


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
