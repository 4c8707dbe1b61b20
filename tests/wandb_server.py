"""A stand-in for the W&B server on the loop-back: it records what it was sent, and answers what tests ask."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "someone"


class Server(ThreadingHTTPServer):
    """A server.

    Attributes:
        queries: of GraphQL, each with its variables.
        streams: by run id, the lines of its history.
        commands: for an agent of a sweep, which gets one at each of its heartbeats.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.queries: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.streams: dict[str, list[dict[str, Any]]] = {}

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no news."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send W&B here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "a" * 40}

    def sent(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every query that has this operation."""
        return [query.get("variables") or {} for query in self.queries if operation in query["query"]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            query = json.loads(body)
            self.server.queries.append(query)
            address = self.server.environment["WANDB_BASE_URL"]
            answer = {"data": answer_to(query["query"], query.get("variables") or {}, address)}
            if "sweep(" in query["query"]:
                [config] = {sent["config"] for sent in self.server.sent("upsertSweep")}
                sweep = {
                    "id": "s1",
                    "name": "s1",
                    "method": "grid",
                    "state": "RUNNING",
                    "config": config,
                    "runs": {"edges": []},
                }
                answer["data"]["project"]["sweep"] = sweep
            if "agentHeartbeat" in query["query"]:
                commands = [self.server.commands.pop(0)] if self.server.commands else []
                answer["data"]["agentHeartbeat"] = {"agent": {"id": "g1"}, "commands": json.dumps(commands)}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.streams.setdefault(self.path.split("/")[-2], []).extend(map(json.loads, lines))
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_GET  # noqa: N815


def answer_to(query: str, variables: dict[str, Any], address: str) -> dict[str, Any]:
    project = {"id": "p1", "internalId": "p1", "name": "variational-rnn", "entity": {"id": "e1", "name": ENTITY}}
    if "upsertBucket" in query:
        bucket = {"id": "r1", "name": variables["name"], "displayName": "", "config": "{}", "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket | {"sweepName": None, "project": project}, "inserted": True}}
    if "createArtifact(" in query:
        artifact = {"id": "a1", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a1"}}}
        return {"createArtifact": {"artifact": artifact}}
    if "createRunFiles(" in query:
        files = [{"name": name, "uploadUrl": f"{address}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r1", "uploadHeaders": [], "files": files}}
    if "useArtifact(" in query:
        return {"useArtifact": {"artifact": {"id": "a1"}}}
    if "upsertSweep" in query:
        return {
            "upsertSweep": {"sweep": {"id": "s1", "name": "s1", "project": project}, "configValidationWarnings": []}
        }
    if "createAgent" in query:
        return {"createAgent": {"agent": {"id": "g1"}}}
    if "upsertView" in query:
        view = {
            "id": "v1",
            "name": variables.get("name") or "",
            "type": "runs",
            "displayName": variables["displayName"],
        }
        more = {"description": variables.get("description") or "", "spec": variables["spec"], "project": project}
        return {"upsertView": {"view": view | more | {"entityName": ENTITY}, "inserted": True}}
    if "upsertModel" in query:
        return {"upsertModel": {"model": project, "project": project, "inserted": True}}
    if "serverInfo" in query and "features" in query:
        return {"serverInfo": {"features": []}}
    if "viewer" in query:
        viewer = {"id": "u1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
        return {
            "viewer": viewer | {"flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}},
            "serverInfo": None,
        }
    if "models(" in query or "projects(" in query:
        node = project | {"entityName": ENTITY, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        page = {"edges": [{"node": node, "cursor": ""}], "pageInfo": {"endCursor": "", "hasNextPage": False}}
        return {"models": page, "projects": page}
    if "project(" in query or "model(" in query:
        return {"project": project | {"artifact": None}, "model": project | {"bucket": None}}
    return {}


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
