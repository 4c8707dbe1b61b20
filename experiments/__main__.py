"""What `make` hands over: `python -m experiments COMMAND`, with the variables of the Makefile in the environment."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments import grid, print_any_text, status
from experiments.catalogue import Group, find_row, groups_of
from experiments.launch import Plan, plan, run_python, start_here, submit
from experiments.runs import Run

FIGURES = ("figure2", "figure10", "figure3")  # by default


@dataclass(frozen=True)
class Variables:
    """The variables of the Makefile, checked; what was not given has its default.

    Attributes:
        given: names of those that were given.
        is_gpu: whether there is a GPU.
    """

    given: frozenset[str]
    results: Path
    runs: Path
    data_dir: str
    sizes: list[str]
    rows: list[str]
    figures: list[str]
    curves: list[str]
    seeds: list[int]
    epochs: int | None
    devices: int
    nodes: int
    jobs: int
    launch: str
    slurm: list[str]
    name: str
    args: list[str]
    is_gpu: bool

    @classmethod
    def read(cls, environment: dict[str, str]) -> Variables:
        """Read them.

        Raises:
            ValueError: one is out of range, or no known choice; names the variable, the value and what is allowed.
        """
        words_of_make = re.split(r"(?<!\\)\s+", environment.get("MAKEFLAGS", ""))  # it escapes blanks within values
        on_command_line = {found[1] for word in words_of_make if (found := re.match(r"(\w+)=", word))}
        given = on_command_line | {name for name, value in environment.items() if value}

        def words(name: str, default: str = "") -> list[str]:
            return (environment.get(name) or default).split()

        def numbers(name: str, default: str) -> list[int]:
            found = words(name, "" if name in given else default)
            for word in found:
                if not word.isascii() or not word.isdecimal():
                    raise ValueError(f'{name}="{environment[name]}": {word!r} is not a number')
            return [int(word) for word in found]

        def number(name: str, default: str = "1") -> int:
            found = numbers(name, default) or [int(default)]
            if len(found) > 1:
                raise ValueError(f'{name}="{environment[name]}": one number is needed')
            if found[0] < 1:
                raise ValueError(f'{name}="{found[0]}": at least one is needed')
            return found[0]

        is_gpu = bool(environment.get("GPU"))
        results = Path(environment.get("RESULTS") or "results")
        sizes, figures, curves = words("SIZE", "medium" if is_gpu else "small v1"), words("FIGURES"), words("CURVES")
        ptb, sentiment = groups_of("ptb"), groups_of("sentiment")
        figures = figures or list(sentiment if "all" in curves else FIGURES)
        _check("SIZE", sizes, ptb)
        _check("FIGURES", figures, sentiment)
        rows = words("ROWS")
        _check("ROWS", rows, dict.fromkeys(row for size in sizes for row in ptb[size].own))
        known = dict.fromkeys(row for figure in figures for row in sentiment[figure].own)
        others = f'; or name another FIGURES="{" ".join(figures)}", of: {" ".join(sentiment)}'
        _check("CURVES", curves, {"all": None, **known}, others)
        seeds = numbers("SEEDS", "0")
        if not seeds:
            raise ValueError('SEEDS="": at least one is needed')
        launch = environment.get("LAUNCH") or "here"
        _check("LAUNCH", [launch], ("here", "slurm"))
        nodes = number("NODES")
        if launch == "here" and nodes > 1:
            raise ValueError(
                f'NODES="{nodes}": several machines need LAUNCH=slurm, or torchrun as in cluster/README.md'
            )
        return cls(
            given=frozenset(given),
            results=results,
            runs=Path(environment.get("RUNS") or ("runs" if results == Path("results") else results / "runs")),
            data_dir=environment.get("DATA_DIR") or "data",
            sizes=sizes,
            rows=rows,
            figures=figures,
            curves=[curve for curve in curves if curve != "all"],
            seeds=seeds,
            epochs=number("EPOCHS") if words("EPOCHS") else None,
            devices=number("DEVICES"),
            nodes=nodes,
            jobs=number("JOBS"),
            launch=launch,
            slurm=_split("SLURM", environment),
            name=environment.get("NAME", ""),
            args=_split("ARGS", environment),
            is_gpu=is_gpu,
        )

    def ptb_runs(self) -> list[Run]:
        """The Penn Treebank runs that are chosen."""
        return self._of([groups_of("ptb")[size] for size in self.sizes], self.rows)

    def sentiment_runs(self) -> list[Run]:
        """The sentiment runs that are chosen."""
        return self._of([groups_of("sentiment")[figure] for figure in self.figures], self.curves)

    def _of(self, groups: list[Group], chosen: list[str]) -> list[Run]:
        return [
            Run.of_row(f"{group.name}/{row}", seed)
            for group in groups
            for row in group.own
            if row in (chosen or group.planned)
            for seed in self.seeds
        ]

    def options(self, run: Run, configuration: list[str] | None = None) -> list[str]:
        """Options of main.py for a run, whose configuration is that of its row by default."""
        return [
            *(configuration or ["--config", run.row_name]),
            *("--seed_everything", str(run.seed)),
            *("--data.init_args.data_dir", self.data_dir),
            *("--trainer.default_root_dir", str(run.folder(self.runs))),
            *("--trainer.devices", str(self.devices), "--trainer.num_nodes", str(self.nodes)),
        ]

    def plan(self, run: Run, configuration: list[str] | None = None) -> Plan:
        """Whether a run is done, and how it is started."""
        epochs = ["--epochs", str(self.epochs)] if self.epochs else []
        result = ["--result", str(run.result(self.results))]
        arguments = ["reproduce", *self.options(run, configuration), *result, *epochs, *self.args]
        return plan(run, self.results, self.runs, arguments, self.epochs)


def _split(name: str, environment: dict[str, str]) -> list[str]:
    try:
        return shlex.split(environment.get(name, ""))
    except ValueError as error:
        raise ValueError(f"{name}={environment[name]!r} has an open quote: close it") from error


def _check(name: str, chosen: list[str], known: Collection[str], more: str = "") -> None:
    if unknown := [word for word in chosen if word not in known]:
        raise ValueError(f'{name}="{" ".join(unknown)}" is unknown; choose from: {" ".join(known)}{more}')


def main(command: str, variables: Variables) -> None:
    """Do what a target of the Makefile says.

    Raises:
        ValueError: a variable does not fit the command.
        OSError: Slurm does not answer, or a file cannot be read or written.
    """
    v = variables
    if v.launch == "slurm" and command in ("demo", "grid"):
        raise ValueError(f'LAUNCH="slurm" submits reproduce-ptb and reproduce-sentiment; leave it out for {command}')
    if command == "demo":
        demo = [Run.of_row(row.name, 0) for group in groups_of("demo").values() for row in group.own.values()]
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small
        _reproduce(command, v, [v.plan(run) for run in demo], jobs=max(2, v.jobs))
        _module("reproduction.table", "--results", v.results, "--experiment", "demo")
        _module("reproduction.figures", "--results", v.results, "--experiment", "demo")
        print(f"Open {v.results}/figures/demo.png: training error dashed, held-out error solid.")
    elif command == "reproduce-ptb":
        plans = [v.plan(run) for run in v.ptb_runs()]
        if _reproduce(command, v, plans, has_cost=not v.is_gpu):
            shown = ["--experiment", "ptb", "--size", *v.sizes, "--wandb", str(v.runs)]
            _module("reproduction.table", "--results", v.results, *shown)
    elif command == "reproduce-sentiment":
        if v.launch == "here" and not (v.results / "sentiment/baselines.json").is_file():
            output = v.results / "sentiment/baselines.json"
            _module("training.baselines", "--data_dir", v.data_dir, "--output", output)
        if _reproduce(command, v, [v.plan(run) for run in v.sentiment_runs()]):
            _module("reproduction.table", "--results", v.results, "--experiment", "sentiment", "--wandb", v.runs)
            _module("reproduction.figures", "--results", v.results, "--experiment", "sentiment")
    elif command == "cost":
        missing = [each for each in map(v.plan, v.ptb_runs()) if each.state != "done"]
        if missing:
            _cost(missing)
        else:
            print("All runs are there: nothing to do.")
    elif command == "status":
        is_ptb, is_sentiment = v.given & {"SIZE", "ROWS"}, v.given & {"FIGURES", "CURVES"}
        both = "SEEDS" in v.given and not is_ptb and not is_sentiment
        runs = [*(v.ptb_runs() if is_ptb or both else []), *(v.sentiment_runs() if is_sentiment or both else [])]
        status.show([str(run) for run in runs], v.results, v.runs)
    elif command == "ensemble":
        _ensemble(v)
    elif command == "ablation":
        _ablation(v)
    elif command == "grid":
        points = grid.points(grid.load(v.name))
        runs = [Run("sweeps", v.name, point, seed) for seed in v.seeds for point in points]
        _reproduce(command, v, [v.plan(run, grid.options(grid.load(v.name), run.row)) for run in runs])
        grid.show(v.name, v.results)
    elif command == "sweep":
        os.environ["DATA_DIR"] = v.data_dir  # the points read it
        grid.start_agent(v.name, v.args)
    else:
        _show(command, v, os.environ)


def _show(command: str, v: Variables, environment: os._Environ[str]) -> None:
    """The targets that call one other program."""
    if command == "table":
        _module("reproduction.table", "--results", v.results, "--experiment", "ptb", "sentiment")
        for name, shown in (("RESULTS.md", ("ptb", "sentiment")), ("README.md", ("ptb", "--size", "medium"))):
            _module("reproduction.table", "--results", v.results, "--readme", name, "--experiment", *shown)
    elif command == "compare":
        for name in ("A", "B"):
            if not environment.get(name):
                raise ValueError(f'{name}="": name two runs, A=EXPERIMENT/GROUP/ROW/seedK B=..., or their result files')
        _module("reproduction.compare", "--results", v.results, environment["A"], environment["B"])
    elif command == "predict":
        if not environment.get("MODEL"):
            raise ValueError('MODEL="": name a checkpoint, MODEL=runs/.../checkpoints/last.ckpt')
        text = [environment["TEXT"]] if environment.get("TEXT") else []
        _call("main.py", "predict", environment["MODEL"], *text, *v.args)
    elif command == "wandb-table":
        _module("reproduction.table", "--results", v.results, "--wandb", v.runs)
    elif command == "wandb-report":
        _module("reproduction.wandb_report", "--results", v.results, *v.args)
    elif command == "sync":
        _module("training.tracking", v.runs)
    elif command in ("figures", "report"):
        _module(f"reproduction.{command}", "--results", v.results)
    elif command in ("bench", "bench-gpu"):
        _module("benchmarks.speed", *(["--device", "cuda"] if command == "bench-gpu" else []), *v.args)
    elif command == "bench-scaling":
        _module("benchmarks.scaling", *v.args)
    else:
        raise ValueError(f"there is no command {command!r}; `make help` lists them")


def _reproduce(command: str, v: Variables, plans: list[Plan], jobs: int = 0, has_cost: bool = False) -> bool:
    """Start what is missing; whether all of it has run, here."""
    for each in plans:
        if each.note:
            print(each.note, flush=True)
    missing = [each for each in plans if each.state != "done"]
    if v.launch == "slurm":
        if missing:
            machines = [f"--job-name={command}", f"--nodes={v.nodes}", f"--ntasks-per-node={v.devices}"]
            submit(missing, v.runs / "slurm", [*v.slurm, *machines])
        else:
            print(f"All runs are there: nothing to submit. Without LAUNCH=slurm, make {command} shows the table.")
        return False
    if missing and has_cost:
        _cost(missing)
    start_here(missing, jobs or v.jobs)
    return True


def _cost(missing: list[Plan]) -> None:
    _module("benchmarks.cost", *(shlex.join(each.arguments) for each in missing))


def _tested(run: Run, v: Variables) -> Path:
    """The checkpoint that a run was tested with."""
    weights = find_row(run.row_name).config["trainer"].get("tested_weights", "last")
    for option, value in zip(v.args, [*v.args[1:], ""], strict=False):
        if option.partition("=")[0] == "--trainer.tested_weights":
            weights = option.partition("=")[2] or value
    return run.folder(v.runs) / "checkpoints" / f"{weights}.ckpt"


def _check_checkpoints(runs: list[Run], v: Variables) -> None:
    if lacking := [str(run) for run in runs if not (run.folder(v.runs) / "checkpoints/last.ckpt").exists()]:
        raise ValueError(
            f'RUNS="{v.runs}" has no checkpoint of {" ".join(lacking)}; train first: make reproduce-ptb, with '
            "RESULTS=mine there and here if their results came without checkpoints"
        )


def _ensemble(v: Variables) -> None:
    """Predict by each run whose predictions are missing or older than its checkpoint, and average them."""
    if len(v.seeds) < 2:
        raise ValueError(f'SEEDS="{" ".join(map(str, v.seeds))}": an ensemble needs several')
    runs = v.ptb_runs()
    files = {run: run.folder(v.runs) / "predictions.pt" for run in runs}
    _check_checkpoints([run for run in runs if not files[run].exists()], v)
    for run, file in files.items():
        last = file.parent / "checkpoints/last.ckpt"
        if not file.exists() or (last.exists() and last.stat().st_mtime > file.stat().st_mtime):
            checkpoint = ["--ckpt_path", str(_tested(run, v))]
            _call("main.py", "predict", *v.options(run), "--trainer.logger", "false", *v.args, *checkpoint)
    for row in dict.fromkeys(run.row_name for run in runs):
        members = [file for run, file in files.items() if run.row_name == row]
        _module("inference.ensemble", *members, "--output", v.results / row / "ensemble.json")


def _ablation(v: Variables) -> None:
    """Evaluate the test-time choices of each finished run that has no file of them."""
    finished = [run for run in v.ptb_runs() if run.result(v.results).exists()]
    if not finished:
        chosen = f'SIZE="{" ".join(v.sizes)}" ROWS="{" ".join(v.rows)}" SEEDS="{" ".join(map(str, v.seeds))}"'
        raise ValueError(f"{chosen}: none of these runs is finished, make reproduce-ptb runs them")
    missing = [run for run in finished if not run.ablation(v.results).exists()]
    _check_checkpoints(missing, v)
    for run in missing:
        checkpoint = ["--ckpt_path", str(_tested(run, v)), "--result", str(run.result(v.results))]
        _call("main.py", "ablate", *v.options(run), "--trainer.logger", "false", *v.args, *checkpoint)


def _module(name: str, *arguments: str | Path) -> None:
    _call("-m", name, *arguments)


def _call(*arguments: str | Path) -> None:
    """Run Python with these arguments; end with its status if it fails."""
    sys.stdout.flush()
    if failed := run_python({"": [str(word) for word in arguments]}):
        sys.exit(failed[""])


if __name__ == "__main__":
    print_any_text()
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "", Variables.read(dict(os.environ)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
