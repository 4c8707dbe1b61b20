"""Processes started by torchrun, on one machine and on two "machines" that are both this one."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import CONFIG, ENVIRONMENT, ROOT, TINY, free_ports, same


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "devices"), [(1, 2), (2, 1)])
def test_torchrun_has_the_result_of_one_process(
    nodes: int, devices: int, tmp_path: Path, one_process: Callable[..., dict[str, Any]]
) -> None:
    result = tmp_path / "ptb/small/row/seed0.json"
    [port] = free_ports(1)
    launchers = [
        subprocess.Popen(
            [
                *(".venv/bin/torchrun", f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={devices}"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", "main.py", "reproduce", "--config", CONFIG),
                *("--trainer.num_nodes", str(nodes), "--trainer.devices", str(devices), "--epochs", "2", *TINY.split()),
                *("--trainer.default_root_dir", str(tmp_path / "run"), "--result", str(result)),
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        for node in range(nodes)
    ]
    try:
        assert [launcher.wait(300) for launcher in launchers] == [0] * nodes
    finally:
        for launcher in launchers:
            launcher.terminate()
    report = json.loads(result.read_text())
    assert report["provenance"]["hardware"]["devices"] == 2
    same(report, one_process(*TINY.split(), "--epochs", "2"))
