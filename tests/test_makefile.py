"""What Make runs, and what it has no need to run."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = ["non_regularized", "moon", "moon_embedding", "zaremba", "variational_tied", "variational_untied"]
GRU_CURVES = ["naive_gru", "standard_gru", "variational_gru", "variational_gru_p0.5"]
CURVES = [*GRU_CURVES, "naive_lstm", "standard_lstm", "variational_lstm"]
CORNERS = ["pu0_pe0", "pu0_pe0.5", "pu0.5_pe0", "pu0.5_pe0.5"]
FIGURES = [
    *("figure2", "figure3", "figure10", "figure2_modern", "figure10_modern", "fair", "fair_split1", "fair_split2"),
    *("recurrent_sweep", "recurrent_sweep_words", "word_sweep", "decay_sweep", "length_sweep", "window_masks"),
]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run make in the repository; results are looked for in tmp_path, and variables of the outer make are forgotten."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", f"RESULTS={tmp_path}", *arguments],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def runs_of(make: Make) -> Callable[..., list[str]]:
    """The runs that `make -n` would start, as `main.py ...` command lines."""

    def find(*arguments: str) -> list[str]:
        done = make("-n", *arguments)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines if "main.py reproduce" in line]

    return find


@pytest.fixture
def write_result(tmp_path: Path) -> Callable[..., None]:
    """A result as `Trainer.reproduce` writes it, of `epochs` out of `planned_epochs`."""

    def write(name: str, epochs: int, planned_epochs: int) -> None:
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "experiment": "ptb",
            "epochs": epochs,
            "planned_epochs": planned_epochs,
            "tested_epoch": epochs,
            "curve": [{"epoch": 1, "epochs": 77}],
            "config": {"trainer": {"max_epochs": 13}, "epochs": 99},
        }
        path.write_text(json.dumps(report, indent=2) + "\n")

    return write


SIZES = [
    *("gal1250", "large", "medium", "medium_constant", "small", "v1"),
    *("inan_small", "inan_medium", "inan_large", "press_small", "press_large"),
]
SMALL = ("reproduce-ptb", "SIZE=small", "ROWS=variational_tied")


def test_help_is_the_default_and_lists_every_target(make: Make) -> None:
    by_default, asked = make(), make("help")
    assert by_default.returncode == 0
    assert by_default.stdout == asked.stdout
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    targets = set(phony.split()) - {"FORCE"}
    assert targets >= {"setup", "demo", "test", "lint", "table", "figures", "reproduce-ptb", "reproduce-sentiment"}
    listed = dict(re.findall(r"^  ([a-z-]+) +(\S.*)$", asked.stdout, flags=re.MULTILINE))
    assert targets <= listed.keys()


def test_help_says_where_to_look_for_what_has_no_target(make: Make) -> None:
    line = "To train on your own texts, and to save and share a model, is for main.py: see docs/guide.md"
    assert line in make("help").stdout.splitlines()


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[str], None]:
    """An empty file where a run's checkpoint is."""

    def write(run: str) -> None:
        folder = tmp_path / "runs" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()

    return write


def test_every_documented_target_exists(
    make: Make, write_result: Callable[..., None], write_checkpoint: Callable[[str], None]
) -> None:
    write_result("ptb/small/zaremba/seed0", epochs=39, planned_epochs=39)  # an ablation is of a finished run
    for seed in (0, 1):
        write_checkpoint(f"ptb/small/zaremba/seed{seed}")
    for target in re.findall(r"^  ([a-z-]+) +\S", make("help").stdout, flags=re.MULTILINE):
        done = make(
            "-n",
            target,
            "SIZE=small",
            "ROWS=zaremba",
            "SEEDS=0 1",
            "A=one",
            "B=other",
            "NAME=ptb_dropout",
            "MODEL=last.ckpt",
        )
        assert done.returncode == 0, f"{target}: {done.stderr}"


@pytest.mark.parametrize(
    ("arguments", "value", "choices"),
    [
        (["reproduce-ptb", "SIZE=foo"], 'SIZE="foo"', SIZES),
        (["reproduce-ptb", "SIZE=small", "ROWS=foo"], 'ROWS="foo"', ROWS),
        (["reproduce-ptb", "SIZE=small", "ROWS=moon foo zaremba"], 'ROWS="foo"', ROWS),
        (["reproduce-sentiment", "CURVES=foo"], 'CURVES="foo"', ["all", *CURVES, *CORNERS]),
        (["reproduce-sentiment", "FIGURES=foo"], 'FIGURES="foo"', FIGURES),
        (["reproduce-ptb", "SIZE=small", "ROWS=common"], 'ROWS="common"', ROWS),
    ],
)
def test_unknown_choices_stop_make_with_the_known_ones(
    arguments: list[str], value: str, choices: list[str], make: Make
) -> None:
    done = make("-n", *arguments)
    assert done.returncode == 2
    assert f"{value} is unknown; choose from:" in done.stderr
    offered = done.stderr.split("choose from:")[1].split(";")[0].strip().removesuffix(".  Stop.").split()
    assert sorted(offered) == sorted(choices)
    assert "main.py" not in done.stdout


def test_a_curve_of_a_figure_that_was_not_named_is_refused_with_the_figures(make: Make) -> None:
    done = make("-n", "reproduce-sentiment", "CURVES=t20")
    assert done.returncode == 2
    wanted = f'; or name another FIGURES="figure2 figure3 figure10", of: {" ".join(sorted(FIGURES))}.'
    assert wanted in re.sub(r"of: (.*)\.  Stop", lambda m: f"of: {' '.join(sorted(m[1].split()))}.  Stop", done.stderr)


def test_a_missing_result_is_run(runs_of: Callable[..., list[str]], tmp_path: Path) -> None:
    [command] = runs_of(*SMALL, "SEEDS=4", "DATA_DIR=/some/data", "RUNS=/some/runs")
    assert command == (
        ".venv/bin/python main.py reproduce --config configs/ptb/small/variational_tied.yaml --seed_everything 4 "
        '--data.init_args.data_dir "/some/data" '
        "--trainer.default_root_dir /some/runs/ptb/small/variational_tied/seed4 --trainer.devices 1 "
        f"--trainer.num_nodes 1 --result {tmp_path}/ptb/small/variational_tied/seed4.json"
    )


def test_epochs_devices_and_further_options_reach_the_command(runs_of: Callable[..., list[str]]) -> None:
    [command] = runs_of(*SMALL, "EPOCHS=2", "DEVICES=4", "ARGS=--model.init_args.mc_samples 10")
    assert " --trainer.devices 4 " in command
    assert command.endswith(" --epochs 2 --model.init_args.mc_samples 10")


def test_a_size_runs_every_row_once_for_every_seed(runs_of: Callable[..., list[str]]) -> None:
    commands = runs_of("reproduce-ptb", "SIZE=medium", "SEEDS=0 1 2")
    found = [
        re.findall(r"--config configs/ptb/medium/(\w+)\.yaml --seed_everything (\d) ", line)[0] for line in commands
    ]
    assert sorted(found) == sorted((row, seed) for row in ROWS for seed in "012")


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ("inan_small", ["vd", "vd_al", "vd_re", "vd_real"]),
        ("press_small", ["non_regularized_wt", "non_regularized_pr", "non_regularized_wt_pr"]),
        ("press_large", ["zaremba_wt", "bd_wd", "bd_wt"]),
    ],
)
def test_sizes_beyond_the_paper_run_all_their_rows(
    size: str, rows: list[str], runs_of: Callable[..., list[str]]
) -> None:
    commands = runs_of("reproduce-ptb", f"SIZE={size}")
    assert [re.findall(rf"--config configs/ptb/{size}/(\w+)\.yaml", line)[0] for line in commands] == rows


def test_several_sizes_run_those_of_the_rows_that_they_have(runs_of: Callable[..., list[str]]) -> None:
    commands = runs_of("reproduce-ptb", "SIZE=small gal1250", "ROWS=zaremba variational_untied")
    found = [re.findall(r"--config configs/ptb/(\w+/\w+)\.yaml", line)[0] for line in commands]
    assert found == ["small/zaremba", "small/variational_untied", "gal1250/variational_untied"]


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_without_a_gpu_the_sizes_of_200_units_are_the_default(runs_of: Callable[..., list[str]]) -> None:
    commands = runs_of("reproduce-ptb", "ROWS=zaremba")
    assert [re.findall(r"--config configs/ptb/(\w+)/", line)[0] for line in commands] == ["small", "v1"]


def test_what_is_missing_is_measured_before_it_runs_where_there_is_no_gpu(
    make: Make, write_result: Callable[..., None]
) -> None:
    write_result("ptb/small/moon/seed0", 13, 13)
    arguments = ("-n", "reproduce-ptb", "SIZE=small", "ROWS=moon zaremba", "GPU=")
    first, *others = [line for line in make(*arguments).stdout.splitlines() if ".venv/bin/python" in line]
    assert first.startswith(".venv/bin/python -m benchmarks.cost 'reproduce --config configs/ptb/small/zaremba.yaml")
    assert "moon" not in first
    assert "main.py reproduce" in others[0]
    assert "benchmarks.cost" not in make(*arguments[:-1], "GPU=/dev/nvidia0").stdout
    write_result("ptb/small/zaremba/seed0", 13, 13)
    assert "benchmarks.cost" not in make(*arguments).stdout


def test_several_gpus_make_the_medium_column_the_default(runs_of: Callable[..., list[str]]) -> None:
    for gpus in ("GPU=/dev/nvidia3", "GPU=/dev/nvidia2 /dev/nvidia3"):
        [command] = runs_of("reproduce-ptb", "ROWS=zaremba", gpus)
        assert "--config configs/ptb/medium/zaremba.yaml" in command


def test_each_run_says_which_of_those_that_are_missing_it_is(make: Make, write_result: Callable[..., None]) -> None:
    write_result("ptb/small/moon/seed0", 13, 13)
    done = make("-n", "reproduce-ptb", "SIZE=small", "ROWS=moon zaremba variational_tied", "GPU=")
    counts = [line for line in done.stdout.splitlines() if line.startswith("printf")]
    said = [subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout for line in counts]
    assert said == ["run 1 of 2\n", "run 2 of 2\n"]


def test_tables_of_the_reproduction_are_logged_to_wandb(make: Make) -> None:
    for target in ("reproduce-ptb", "reproduce-sentiment", "wandb-table"):
        assert re.search(r"reproduction\.table .*--wandb \S+runs", make("-n", target).stdout), target


def test_a_comparison_needs_two_runs(make: Make, tmp_path: Path) -> None:
    for missing, given in (("A", ["B=x"]), ("B", ["A=x"]), ("A", [])):
        done = make("-n", "compare", *given)
        assert done.returncode == 2
        assert f'{missing}="": name two runs, A=EXPERIMENT/GROUP/ROW/seedK B=' in done.stderr
    command = make("-n", "compare", "A=ptb/small/moon/seed0", "B=some file.json").stdout.splitlines()[-1]
    assert command == (
        f".venv/bin/python -m reproduction.compare --results {tmp_path} 'ptb/small/moon/seed0' 'some file.json'"
    )


def test_predict_reads_a_text_or_standard_input_with_a_model(make: Make) -> None:
    command = ".venv/bin/python main.py predict 'runs/a b/last.ckpt'"
    assert make("-n", "predict", "MODEL=runs/a b/last.ckpt").stdout.strip() == command
    [line] = make("-n", "predict", "MODEL=runs/a b/last.ckpt", "TEXT=my text", "ARGS=--whole").stdout.splitlines()
    assert line == f"{command} 'my text' --whole"
    assert 'MODEL="": name a checkpoint' in make("-n", "predict").stderr


def test_one_model_is_no_ensemble(make: Make) -> None:
    assert 'SEEDS="0": an ensemble needs several' in make("-n", "ensemble", "SIZE=small").stderr


def test_an_ensemble_predicts_with_the_weights_that_were_tested_and_averages(
    make: Make, write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    def commands(*arguments: str) -> list[str]:
        lines = make("-n", "ensemble", f"RUNS={tmp_path}/runs", *arguments).stdout.replace("\\\n", " ").splitlines()
        return [" ".join(line.split()) for line in lines if ".venv/bin/python" in line]

    for row in ("medium/zaremba", "medium/non_regularized", "inan_small/vd"):
        for seed in (0, 1):
            write_checkpoint(f"ptb/{row}/seed{seed}")
    first, second, average = commands("SIZE=medium", "ROWS=zaremba", "SEEDS=0 1")
    folder = f"{tmp_path}/runs/ptb/medium/zaremba"
    assert "main.py predict --config configs/ptb/medium/zaremba.yaml --seed_everything 0 " in first
    assert second.endswith(f"--ckpt_path {folder}/seed1/checkpoints/last.ckpt")
    assert average == (
        f".venv/bin/python -m inference.ensemble {folder}/seed0/predictions.pt {folder}/seed1/predictions.pt "
        f"--output {tmp_path}/ptb/medium/zaremba/ensemble.json"
    )
    assert commands("SIZE=medium", "ROWS=non_regularized", "SEEDS=0 1")[0].endswith("/checkpoints/best.ckpt")
    assert commands("SIZE=inan_small", "ROWS=vd", "SEEDS=0 1")[0].endswith("/checkpoints/best.ckpt")  # for all its rows
    for seed in (0, 1):
        (tmp_path / f"runs/ptb/medium/zaremba/seed{seed}/predictions.pt").touch()
    assert commands("SIZE=medium", "ROWS=zaremba", "SEEDS=0 1") == [average]
    (tmp_path / "runs/ptb/medium/zaremba/seed0/checkpoints/last.ckpt").touch()  # trained on
    assert len(commands("SIZE=medium", "ROWS=zaremba", "SEEDS=0 1")) == 2


def test_runs_without_a_checkpoint_are_named_before_any_is_read(
    make: Make, write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    write_checkpoint("ptb/small/zaremba/seed1")
    rows = ("-n", "SIZE=small", "ROWS=zaremba", "SEEDS=0 1 2", f"RUNS={tmp_path}/runs")
    message = f'RUNS="{tmp_path}/runs" has no checkpoint of ptb/small/zaremba/seed0'
    assert f"{message} ptb/small/zaremba/seed2; train first: make reproduce-ptb" in make("ensemble", *rows).stderr
    result = tmp_path / "ptb/small/zaremba/seed0.json"
    result.parent.mkdir(parents=True)
    result.touch()
    assert f"{message}; train first" in make("ablation", *rows).stderr
    result.with_name("ablation_seed0.json").touch()
    assert not make("ablation", *rows).stderr


def test_sentiment_runs_the_chosen_curves_of_the_chosen_figures(runs_of: Callable[..., list[str]]) -> None:
    def configs(*arguments: str) -> list[str]:
        commands = runs_of("reproduce-sentiment", *arguments)
        return sorted(re.findall(r"--config configs/sentiment/(\S+)\.yaml", line)[0] for line in commands)

    assert configs("CURVES=standard_gru naive_lstm") == ["figure10/standard_gru", "figure2/naive_lstm"]
    assert configs("FIGURES=fair figure2", "CURVES=naive_lstm") == ["fair/naive_lstm", "figure2/naive_lstm"]
    assert {name.split("/")[0] for name in configs()} == {"figure2", "figure3", "figure10"}
    assert len(configs()) == len(CURVES) + len(CORNERS)
    every = sorted(
        str(file.relative_to(ROOT / "configs/sentiment"))[: -len(".yaml")]
        for file in (ROOT / "configs/sentiment").glob("*/*.yaml")
        if file.name != "common.yaml"
    )
    assert configs("CURVES=all") == every


def test_demo_runs_three_models_of_both_experiments(runs_of: Callable[..., list[str]]) -> None:
    configs = sorted(re.findall(r"--config configs/demo/(\S+)\.yaml", line)[0] for line in runs_of("demo"))
    variants = ("naive", "standard", "variational")
    assert configs == [f"{kind}/{name}" for kind in ("language_model", "sentiment") for name in variants]


@pytest.mark.parametrize(
    ("epochs", "asked", "runs"),
    [
        (13, "", 0),
        (13, "EPOCHS=13", 0),
        (13, "EPOCHS=2", 0),
        (13, "EPOCHS=40", 0),  # more than the schedule has
        (3, "", 1),
        (3, "EPOCHS=5", 1),
        (3, "EPOCHS=12", 1),  # as a text, "12" would come before "3"
        (3, "EPOCHS=40", 1),
        (3, "EPOCHS=3", 0),
        (3, "EPOCHS=2", 0),
    ],
)
def test_a_result_is_continued_only_if_more_epochs_are_asked_for(
    epochs: int, asked: str, runs: int, runs_of: Callable[..., list[str]], write_result: Callable[..., None]
) -> None:
    write_result("ptb/small/variational_tied/seed0", epochs, 13)
    assert len(runs_of(*SMALL, *filter(None, [asked]))) == runs


def test_only_what_is_missing_is_run(runs_of: Callable[..., list[str]], write_result: Callable[..., None]) -> None:
    write_result("ptb/small/moon/seed0", 13, 13)
    write_result("ptb/small/zaremba/seed1", 13, 13)
    commands = runs_of("reproduce-ptb", "SIZE=small", "ROWS=moon zaremba", "SEEDS=0 1")
    found = [re.findall(r"small/(\w+)\.yaml --seed_everything (\d) ", line)[0] for line in commands]
    assert sorted(found) == [("moon", "1"), ("zaremba", "0")]


def test_make_says_which_results_are_there_already(
    make: Make, write_result: Callable[..., None], tmp_path: Path
) -> None:
    write_result("ptb/small/variational_tied/seed0", 13, 13)
    assert f"{tmp_path}/ptb/small/variational_tied/seed0.json is there and not run again" in make("-n", *SMALL).stdout
    assert "not run again" not in make("-n", *SMALL, "SEEDS=1").stdout
    write_result("ptb/small/variational_tied/seed0", 3, 13)
    said = make("-n", *SMALL, "RUNS=mine").stdout
    assert "not run again" not in said
    assert "variational_tied/seed0.json has 3 of 13 epochs: it goes on where RUNS=mine has its checkpoint, else" in said
    assert "trained anew; EPOCHS=3 leaves it\n" in said
    assert "is there and not run again" in make("-n", *SMALL, "EPOCHS=3").stdout


def test_a_shortened_demo_is_continued_too(
    runs_of: Callable[..., list[str]], write_result: Callable[..., None]
) -> None:
    for kind in ("language_model", "sentiment"):
        for row in ("naive", "standard", "variational"):
            write_result(f"demo/{kind}/{row}/seed0", 8, 8)
    assert runs_of("demo") == []
    write_result("demo/sentiment/naive/seed0", 2, 8)
    assert len(runs_of("demo")) == 1


def test_slurm_is_given_what_is_missing_and_nothing_runs_here(
    make: Make, write_result: Callable[..., None], tmp_path: Path
) -> None:
    write_result("ptb/small/moon/seed0", 13, 13)
    write_result("ptb/small/moon/seed1", 3, 13)
    slurm = ("-n", "reproduce-ptb", "LAUNCH=slurm", "SIZE=small", "GPU=", "DEVICES=4", "NODES=2")
    done = make(*slurm, "ROWS=moon zaremba", "SEEDS=0 1", "SLURM=--partition=gpu --time=8:00:00")
    [submission] = [line for line in done.stdout.replace("\\\n", " ").splitlines() if ".venv/bin/python" in line]
    assert f"-m experiments.slurm --logs {tmp_path}/runs/slurm --runs 'reproduce --config" in submission
    assert re.findall(r"--result \S+/small/(\S+)\.json", submission) == ["moon/seed1", "zaremba/seed0", "zaremba/seed1"]
    assert submission.count("--trainer.devices 4 --trainer.num_nodes 2") == 3
    assert submission.endswith(
        "-- --partition=gpu --time=8:00:00 --job-name=reproduce-ptb --nodes=2 --ntasks-per-node=4"
    )
    assert "nothing to submit" in make(*slurm, "ROWS=moon").stdout
    sentiment = make("-n", "reproduce-sentiment", "LAUNCH=slurm", "CURVES=naive_gru").stdout
    assert "--result" in sentiment
    assert "baselines" not in sentiment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce-ptb", "LAUNCH=pbs"], 'LAUNCH="pbs" is unknown; choose from: here slurm'),
        (
            ["demo", "LAUNCH=slurm"],
            'LAUNCH="slurm" submits reproduce-ptb and reproduce-sentiment; leave it out for demo',
        ),
        (["reproduce-ptb", "NODES=2"], 'NODES="2": several machines need LAUNCH=slurm, or torchrun'),
        (["reproduce-ptb", "NODES=two", "LAUNCH=slurm"], 'NODES="two" is not a number'),
        (["reproduce-ptb", "NODES=0", "LAUNCH=slurm"], 'NODES="0": at least one is needed'),
        (["reproduce-ptb", "DEVICES=two"], 'DEVICES="two" is not a number'),
    ],
)
def test_a_launch_that_cannot_be_is_refused(arguments: list[str], message: str, make: Make) -> None:
    done = make("-n", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("wrong", ['EPOCHS="two"', 'EPOCHS="1 2"', 'EPOCHS="0"', 'SEEDS=""', 'SEEDS="0 one"'])
def test_numbers_that_cannot_be_are_refused(wrong: str, make: Make) -> None:
    done = make("-n", *SMALL, wrong.replace('"', ""))
    assert done.returncode != 0
    assert wrong in done.stderr


def test_a_misspelt_variable_is_refused(make: Make) -> None:
    done = make("-n", "reproduce-ptb", "ROW=zaremba")
    assert done.returncode != 0
    assert "ROW is no variable" in done.stderr
    assert "ROWS" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], []),
        (["SIZE=v1", "ROWS=moon"], ["ptb/v1/moon/seed0"]),
        (["ROWS=moon", "SIZE=v1", "SEEDS=0 2"], ["ptb/v1/moon/seed0", "ptb/v1/moon/seed2"]),
        (["FIGURES=figure3", "CURVES=pu0_pe0"], ["sentiment/figure3/pu0_pe0/seed0"]),
        (
            ["SIZE=v1", "ROWS=moon", "FIGURES=figure3", "CURVES=pu0_pe0"],
            ["ptb/v1/moon/seed0", "sentiment/figure3/pu0_pe0/seed0"],
        ),
    ],
)
def test_status_is_of_the_runs_that_are_asked_for(arguments: list[str], shown: list[str], make: Make) -> None:
    [line] = make("-n", "status", *arguments).stdout.replace("\\\n", " ").splitlines()
    assert re.findall(r"\S+/seed\d+", line) == shown


def test_status_of_seeds_is_of_both_experiments(make: Make) -> None:
    line = make("-n", "status", "SEEDS=3").stdout
    assert {"ptb/small/moon/seed3", "sentiment/figure2/naive_lstm/seed3"} <= set(re.findall(r"\S+/seed3", line))


def test_an_ablation_is_of_the_weights_that_were_tested_of_each_finished_run(
    make: Make, write_result: Callable[..., None], write_checkpoint: Callable[[str], None], tmp_path: Path
) -> None:
    asked = ("-n", "ablation", "SIZE=medium", "ROWS=variational_tied non_regularized", "SEEDS=0 1", "ARGS=--x 1")
    assert "none of these runs is finished, make reproduce-ptb runs them" in make(*asked).stderr
    for row, seed in (("variational_tied", 0), ("variational_tied", 1), ("non_regularized", 0)):
        write_result(f"ptb/medium/{row}/seed{seed}", 39, 39)
        write_checkpoint(f"ptb/medium/{row}/seed{seed}")

    def commands() -> list[str]:
        return [line for line in make(*asked).stdout.replace("\\\n", "").splitlines() if "main.py ablate" in line]

    assert len(commands()) == 3
    assert "--config configs/ptb/medium/variational_tied.yaml --seed_everything 1 " in "".join(commands())
    for row, weights in (("variational_tied", "last"), ("non_regularized", "best")):
        [first] = [line for line in commands() if f"/{row}/seed0.json" in line]
        assert " --x 1 " in first
        assert first.endswith(f"{row}/seed0/checkpoints/{weights}.ckpt --result {tmp_path}/ptb/medium/{row}/seed0.json")
    (tmp_path / "ptb/medium/variational_tied/ablation_seed0.json").touch()
    assert len(commands()) == 2, "what is there is not evaluated again"
