"""A real Slurm: controller and two nodes on this machine, with keys, ports and folders of their own."""

import functools
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=60 State=UP
"""


# Not of a job or a make around the tests; tables as wide as they like.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PL_", "MAKE"))
} | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "COLUMNS": "300"}
CONFIG = "ptb/small/variational_tied"
TINY = "--config tests/cluster/tiny.yaml"
MEASURED = {"words_per_s", "seconds"}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """All numbers of two result files are equal, to rounding, but for times."""
    assert len(one["curve"]) == len(other["curve"])
    for a, b in [(one["metrics"], other["metrics"]), *zip(one["curve"], other["curve"], strict=True)]:
        assert a.keys() == b.keys()
        for name in a.keys() - MEASURED:
            assert a[name] == pytest.approx(b[name], rel=1e-6), name


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The result of a run in one process, uninterrupted."""

    @functools.cache
    def run(*options: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("one_process")
        result = folder / "ptb/small/row/seed0.json"
        place = ["--trainer.default_root_dir", str(folder / "run"), "--result", str(result)]
        command = [sys.executable, "main.py", "reproduce", "--config", CONFIG, *options, *place]
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, timeout=300)
        return json.loads(result.read_text())

    return run


class Slurm:
    """Commands of a Slurm that runs.

    Attributes:
        environment: of processes that use it.
    """

    def __init__(self, folder: Path) -> None:
        # Its nodes have no names that a resolver knows, so the processes of a job are told where the first one is.
        self.environment = ENVIRONMENT | {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}

    def __call__(self, *command: str) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def states(self) -> list[str]:
        """Of the tasks in the queue."""
        return self("squeue", "--array", "--noheader", "--format=%T").split()

    def wait(self, until: Callable[[], object], seconds: float, log: Path) -> None:
        """Wait for something to hold; what is below `log` is the message if it does not."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                logs = "\n".join(f"{file}:\n{file.read_text()}" for file in sorted(log.glob("*.log")))
                pytest.fail(f"not within {seconds} s; the queue:\n{self('squeue', '--array')}\n{logs}")
            time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Started before the first test that uses it, stopped after the last."""
    os_path = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has the daemons
    if absent := [name for name in NEEDED if shutil.which(name, path=os_path) is None]:
        pytest.skip(f"there is no Slurm here: no {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # short: a socket's path has at most 107 characters
    folder.chmod(0o755)  # munge wants its socket to be reached by all
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(3))
    )
    slurm = Slurm(folder)
    munge = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    commands = [
        ["munged", "--foreground", f"--key-file={key}"]
        + [f"--{name}{'' if name == 'socket' else '-file'}={file}" for name, file in munge.items()],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "node1"],
        ["slurmd", "-D", "-N", "node2"],
    ]
    daemons = []
    try:
        for command in commands:
            output = (folder / f"{command[0]}{command[-1]}.out".replace("/", "_")).open("w")
            daemons.append(
                subprocess.Popen(
                    [shutil.which(command[0], path=os_path) or "", *command[1:]],
                    env=slurm.environment,
                    stdout=output,
                    stderr=output,
                )
            )
            if command[0] == "munged":
                slurm.wait(munge["socket"].exists, 10, folder)
        idle = ["sinfo", "--noheader", "--Node", "--format=%T"]
        slurm.wait(lambda: slurm(*idle).split() == ["idle", "idle"], 30, folder)
        yield slurm
        slurm("scancel", "--me", "--full")
        slurm.wait(lambda: not slurm.states(), 30, folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)
