"""Submit to Slurm the runs that are not in its queue, as one array: `python -m experiments.slurm --help`."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from experiments import print_any_text

SCRIPT = Path("cluster/run.sbatch")
RESULT = re.compile(r"--result[= ](\S+)")


class Job(NamedTuple):
    """A run in the queue: the id of its job, and whether it has begun."""

    id: str
    is_running: bool


def queue() -> dict[Path, Job]:
    """The user's jobs in Slurm's queue, by the result file that each is to write; none where there is no Slurm.

    Raises:
        OSError: Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return {}
    jobs = {}
    for line in _output("squeue", "--me", "--array", "--noheader", "--format=%i\t%K\t%T\t%Z\t%o").splitlines():
        job, task, state, folder, command = line.split("\t", maxsplit=4)
        results = RESULT.findall(command)
        if SCRIPT.name in command and results:
            result = results[int(task) if task.isdecimal() else 0]
            jobs[Path(folder, result).resolve()] = Job(job, state in ("RUNNING", "COMPLETING"))
    return jobs


def submit(runs: list[str], logs: Path, options: list[str]) -> str:
    """Submit an array of runs.

    Args:
        runs: what follows main.py, for each.
        logs: folder of the jobs' logs.
        options: of sbatch.

    Returns:
        The array's id.

    Raises:
        OSError: there is no sbatch, or it refuses.
    """
    logs.mkdir(parents=True, exist_ok=True)
    array = [f"--array=0-{len(runs) - 1}", f"--output={logs}/%A_%a.log"]
    return _output("sbatch", "--parsable", *options, *array, str(SCRIPT), *runs).split(";")[0].strip()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{command[0]} failed with status {done.returncode}")
    return done.stdout


def main(arguments: list[str] | None = None) -> None:
    """Submit what is not in the queue, and say what was."""
    parser = argparse.ArgumentParser(prog="python -m experiments.slurm", description="Submit runs to Slurm.")
    parser.add_argument("options", nargs="*", help="of sbatch, after --: -- --partition=gpu --time=8:00:00")
    parser.add_argument(
        "--runs", nargs="+", required=True, help='what follows main.py, each in quotes: "reproduce ..."'
    )
    parser.add_argument("--logs", type=Path, required=True, help="folder of the jobs' logs")
    chosen = parser.parse_args(arguments)
    if shutil.which("sbatch") is None:
        sys.exit('LAUNCH="slurm": there is no sbatch here; use a login node of a cluster, or leave LAUNCH out')
    try:
        queued = queue()
        missing = []
        for run in chosen.runs:
            result = Path(RESULT.findall(run)[0])
            if job := queued.get(result.resolve()):
                print(f"{result} is not submitted again: job {job.id} is {'running' if job.is_running else 'queued'}")
            else:
                missing.append(run)
        if missing:
            job_id = submit(missing, chosen.logs, chosen.options)
            print(f"job {job_id}: {len(missing)} submitted; `make status` shows them, logs are in {chosen.logs}")
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    print_any_text()
    main()
