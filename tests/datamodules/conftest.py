import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import unquote

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from lightning import LightningDataModule


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    cache = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(cache / "downloads"))
        patch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(cache / "extracted"))
        yield


@pytest.fixture(scope="session")
def real_corpus() -> Callable[[str], Path]:
    """The folder that holds a real corpus, or a skipped test."""

    def find(name: str) -> Path:
        data_dir = Path(os.environ.get("DATA_DIR", "data"))
        if not (data_dir / name).is_dir():
            pytest.skip(f"no folder {name} in {data_dir}: set DATA_DIR to the folder that holds it")
        return data_dir

    return find


@pytest.fixture
def as_rank() -> Callable[..., None]:
    """Lets a data module believe that it runs in one of several processes."""

    def attach(datamodule: LightningDataModule, rank: int, world_size: int) -> None:
        datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world_size, accumulate_grad_batches=1, overfit_batches=0, training=False
        )

    return attach


@pytest.fixture
def loopback_hub() -> Iterator[Callable[..., str]]:
    """Starts a hub that has one data set, of tables by the names of parquet files; returns its address."""
    servers = []

    def start(name: str, tables: dict[str, dict[str, list]], revision: str = "main") -> str:
        servers.append(_hub(name, tables, revision))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _hub(name: str, tables: dict[str, dict[str, list]], revision: str) -> ThreadingHTTPServer:
    files: dict[str, bytes] = {}
    for file, columns in tables.items():
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(columns), sink)
        files[file] = sink.getvalue().to_pybytes()
    repository = f"/datasets/{name}"
    commit = "0" * 40

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            resolved = path.removeprefix(f"{repository}/resolve/")
            file = resolved.removeprefix(f"{revision}/").removeprefix(f"{commit}/")
            if path == f"/api{repository}" or path.startswith(f"/api{repository}/revision/"):
                self.reply(json.dumps({"id": name, "sha": commit, "siblings": []}).encode())
            elif path.startswith(f"/api{repository}/tree/"):
                folder = path.removeprefix(f"/api{repository}/tree/").removeprefix(revision)
                folder = folder.removeprefix(commit).strip("/")
                inside = [PurePosixPath(file) for file in files if PurePosixPath(folder) in PurePosixPath(file).parents]
                folders = {parent for file in inside for parent in file.parents[:-1]} - {PurePosixPath(folder)}
                tree = [{"type": "directory", "path": str(child), "oid": commit} for child in sorted(folders)]
                tree += [{"type": "file", "path": str(f), "oid": commit, "size": len(files[str(f)])} for f in inside]
                if "recursive=true" not in self.path.lower():
                    tree = [entry for entry in tree if str(PurePosixPath(entry["path"]).parent) == (folder or ".")]
                self.reply(json.dumps(tree).encode())
            elif file in files:
                self.reply(files[file])
            else:
                self.reply(b"", status=404)

        do_HEAD = do_GET  # noqa: N815

        def reply(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)
