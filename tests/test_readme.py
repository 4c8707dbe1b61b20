"""The README, the guide and what else is to be read say what is true."""

import inspect
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml

import datamodules
from datamodules import snippets
from datamodules.reader import Reader
from experiments import __main__ as experiments
from experiments.catalogue import groups_of
from lightning_modules import LanguageModel, SentimentRegressor
from reproduction.table import main as table
from training.trainer import Trainer

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
README, RESULTS, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "RESULTS.md", "docs/guide.md"))


@pytest.mark.parametrize(
    ("file", "tables"),
    [
        ("README.md", ["--experiment", "ptb", "--size", "medium"]),
        ("RESULTS.md", ["--experiment", "ptb", "sentiment"]),
    ],
)
def test_tables_in_the_texts_are_those_of_the_result_files(file, tables):
    table(["--results", str(ROOT / "results"), *tables, "--readme", str(ROOT / file), "--check"])


def test_every_make_target_in_the_texts_exists():
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README + RESULTS + GUIDE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "reproduce-ptb"} <= named
    assert named <= targets


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (RESULTS, ROOT), (GUIDE, ROOT / "docs")])
def test_every_file_named_in_the_texts_exists(text, folder):
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    names = re.findall(r"`((?:docs|configs|tests|examples)/[\w/.]+\.\w+|[A-Z]+\.md)`", text)
    assert links
    assert [link for link in links if not (folder / link).exists()] == []
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_readme_is_read_in_five_minutes():
    prose = re.sub(r"```.*?```|^\|.*?$|<details>.*?</details>", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) < 5 * 240  # words a minute


def test_the_example_in_the_readme_runs():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["samples"].shape == (10, 7, 3, 20)
    assert names["samples"].std(dim=0).max() > 0


def test_the_example_of_prediction_runs(tmp_path, monkeypatch):
    [example] = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    words = ["<pad>", "<start>", "<unk>", "<unused>", "a", "warm", ",", "funny", "film", "dull"]
    model = SentimentRegressor(10, embedding_size=5, hidden_size=4, output_dropout=0.5)
    [path] = re.findall(r'load\("(.*?)"\)', example)
    (tmp_path / path).parent.mkdir(parents=True)
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "model": "SentimentRegressor",
        "reader": Reader(tuple(words), "words", chunk_length=4).state(),
        "curve": [],
        "provenance": [],
    }
    torch.save(checkpoint, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["ratings"].samples.shape == (50, 2)
    assert names["ratings"].std.min() > 0


@pytest.mark.slow
def test_the_example_on_texts_of_ones_own_runs(tmp_path):
    [example] = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL) if "PlainText" in block]
    for here, there in (
        (".venv/bin/python", sys.executable),
        (" main.py", f" {ROOT}/main.py"),
    ):
        example = example.replace(here, there)
    file = tmp_path / "data/snippets" / snippets.FILE
    file.parent.mkdir(parents=True)
    source, words = random.Random(0), [f"w{i}" for i in range(3000)]
    lines = [f"{i}\t{source.uniform(-4, 4)}\t{' '.join(source.choices(words, k=4))}" for i in range(10_605)]
    file.write_text("\r\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        ["bash", "-e", "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "#### mine, text" in done.stdout
    assert "#### mine, reviews" in done.stdout
    assert "| Constant predictor " in done.stdout


# --- commands ---------------------------------------------------------------------------------------------------------

TEXTS = ["README.md", "docs/guide.md", "cluster/README.md", "benchmarks/README.md"]


def commands(text: str) -> list[list[str]]:
    """The words of each command in the blocks and tables of a text, with the variables of its shell put in."""
    content = (ROOT / text).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", content, flags=re.DOTALL)
    in_tables = re.findall(r"^\|.*`(make [^`]*=[^`]*)`.*\|$", content, flags=re.MULTILINE)
    found, variables = [], dict[str, str]()
    for line in "\n".join(blocks + in_tables).replace("\\\n", " ").splitlines():
        words = shlex.split(line.rpartition(" | ")[2], comments=True)
        if len(words) == 1 and "=" in words[0]:
            variables.update([words[0].split("=")])
        elif words and not any("..." in word for word in words):
            found.append([re.sub(r"^\$\{?(\w+).*", lambda m: variables.get(m[1], m[0]), word) for word in words])
    return found


MAKE = [words[words.index("make") + 1 :] for text in TEXTS for words in commands(text) if "make" in words]
MAIN = [words[words.index("main.py") + 1 :] for text in TEXTS for words in commands(text) if "main.py" in words]
MAIN += [words[words.index("cluster/run.sbatch") + 1 :] for words in commands("cluster/README.md") if "sbatch" in words]


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def runs_of_make(monkeypatch: pytest.MonkeyPatch, target: str, *variables: str) -> list[list[str]]:
    """What follows main.py in what make would run."""
    runs: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "start_here", lambda plans, jobs: runs.extend(each.arguments for each in plans))
        patch.setattr(experiments, "submit", lambda plans, *_: runs.extend(each.arguments for each in plans))
        patch.setattr(
            experiments, "_call", lambda *words: runs.append([*map(str, words[1:])]) if "main.py" in words else None
        )
        patch.setattr(experiments.grid, "show", lambda *_: None)
        patch.setattr(experiments.grid, "start_agent", lambda *_: None)
        patch.setattr(experiments.status, "show", lambda *_: None)
        given = dict(variable.split("=", maxsplit=1) for variable in variables)
        for name, value in given.items():
            patch.setenv(name, value)
        experiments.main(target, experiments.Variables.read(given))
    return runs


@pytest.fixture
def accepts(call: Callable[..., Any]) -> Callable[[list[str]], None]:
    """See that main.py finds nothing wrong with the options; the models that are named are not there."""

    def check(words: list[str]) -> None:
        if "--config" in words:
            at = words.index("--config") + 1
            outcome = call(*words[:at], words[at], *words[at + 1 :], "--print_config")
            assert outcome.status == 0, outcome.err
        else:
            outcome = call(*words)
            assert outcome.status == 2
            assert "--help" not in outcome.err

    return check


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_every_make_command_in_the_texts_starts_what_main_py_accepts(
    words: list[str], tmp_path: Path, accepts: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    [handed_over] = re.findall(r"^HANDED_OVER := ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE)
    others = re.findall(r"^([a-z-]+): ## ", MAKEFILE, flags=re.MULTILINE)
    words = [word for word in words if not word.startswith("-")]
    assert words[0] in others
    if words[0] not in handed_over.split():
        return
    monkeypatch.chdir(tmp_path)
    if words[0] in ("ensemble", "ablation"):
        for run in runs_of_make(monkeypatch, "reproduce-ptb", *words[1:]):
            for file in (value(run, "--result"), f"{value(run, '--trainer.default_root_dir')}/checkpoints/last.ckpt"):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).touch()
    for run in runs_of_make(monkeypatch, *words)[:1]:
        accepts(run)


@pytest.mark.parametrize("words", MAIN, ids=" ".join)
def test_every_command_of_main_py_in_the_texts_is_accepted(
    words: list[str], accepts: Callable[[list[str]], None]
) -> None:
    accepts(words)


@pytest.mark.parametrize("command", ["fit", "reproduce"])
def test_defaults_that_the_guide_names_are_those_of_main_py(command: str, call: Callable[..., Any]) -> None:
    prose = " ".join(GUIDE.split())
    assert "every ten minutes (`--trainer.checkpoint_minutes`)" in prose
    assert "without one it is `runs/unnamed`" in prose
    config = "demo/sentiment/variational"
    trainer = yaml.safe_load(call(command, "--config", config, "--print_config").out)["trainer"]
    assert (trainer["checkpoint_minutes"], trainer["default_root_dir"]) == (10.0, "runs/unnamed")


def test_the_commands_of_all_texts_are_found() -> None:
    targets = {words[0] for words in MAKE}
    assert targets >= {"demo", "test", "reproduce-ptb", "ensemble", "ablation", "predict", "status", "bench"}
    assert {words[0] for words in MAIN} == {"fit", "test", "reproduce", "predict", "export"}


@pytest.mark.parametrize("text", [*TEXTS, "CONTRIBUTING.md", "RESULTS.md"])
def test_every_option_of_main_py_in_the_texts_exists(text: str) -> None:
    owners: dict[str, list[Any]] = {
        "model": [LanguageModel, SentimentRegressor],
        "data": [getattr(datamodules, name) for name in datamodules.__all__],
        "trainer": [Trainer, lightning.Trainer],
    }
    content = (ROOT / text).read_text(encoding="utf-8")
    for owner, name in re.findall(r"--(model|data|trainer)\.(?:init_args\.)?(\w+)", content):
        assert any(name in inspect.signature(known).parameters for known in owners[owner]), f"--{owner}.{name}"


def test_the_guide_names_every_variable_size_row_and_figure() -> None:
    table_of_variables = GUIDE[GUIDE.index("| variable | meaning |") : GUIDE.index("Values are text:")]
    meaning = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table_of_variables, flags=re.MULTILINE))
    variables = set(re.findall(r"`([A-Z_]+)`", " ".join(meaning)))
    [known] = re.findall(r"^VARIABLES := (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert variables == set(known.split()) - {"PYTHON", "CONSTRAINTS"}

    def named(variable: str) -> set[str]:
        return {word for code in re.findall("`([^`]+)`", meaning[f"`{variable}`"]) for word in code.split()}

    rows = {row for size in ("small", "medium", "large") for row in groups_of("ptb")[size].own}
    assert set(groups_of("ptb")) <= named("SIZE")
    assert rows <= named("ROWS")
    assert set(groups_of("sentiment")) <= named("FIGURES")


# --- numbers in prose -------------------------------------------------------------------------------------------------


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}/seed0.json").read_text(encoding="utf-8"))


def curve(name: str, metric: str = "test_rmse") -> list[float]:
    return [entry[metric] for entry in result(f"sentiment/{name}")["curve"]]


SENTIMENT = [
    str(file.parent.relative_to(ROOT / "results/sentiment")) for file in ROOT.glob("results/sentiment/*/*/seed0.json")
]


def test_times_in_the_guide_are_those_of_the_runs() -> None:
    prose = " ".join(GUIDE.split())
    means: dict[str, list[float]] = {"lstm": [], "gru": []}
    for name in SENTIMENT:
        if name.split("/")[0] in ("figure2", "figure3", "figure10"):
            seconds = curve(name, "seconds")
            means["gru" if "gru" in name else "lstm"].append(sum(seconds) / len(seconds))
    [said] = re.findall(r"an epoch took (\d+) to (\d+) seconds for an LSTM and (\d+) to (\d+) for a GRU", prose)
    assert [*map(int, said)] == [round(f(means[cell])) for cell in ("lstm", "gru") for f in (min, max)]
    hours = 250 * sum(means["lstm"] + means["gru"]) / 3600
    assert "are about 42 hours for one core" in prose
    assert hours == pytest.approx(42, abs=1)

    [row, epoch] = map(
        int, re.findall(r"a small row took (\d+) minutes .*? about (\d+) minutes, beside other jobs", prose)[0]
    )
    small = ROOT / "benchmarks/results/bf16/ptb/small/variational_untied/seed0.json"
    assert json.loads(small.read_text())["provenance"]["wall_time_s"] == pytest.approx(60 * row, rel=0.1)
    for name in ("zaremba", "variational_tied", "variational_untied"):
        seconds = sorted(entry["seconds"] for entry in result(f"ptb/medium/{name}")["curve"])
        assert seconds[len(seconds) // 2] == pytest.approx(60 * epoch, rel=0.2)


def test_exact_perplexities_in_the_protocol_follow_from_the_printed_ones() -> None:
    protocol = " ".join((ROOT / "docs/protocol.md").read_text(encoding="utf-8").split())
    factor = 105 / (3687 / 35)  # windows that are summed, and what the sum is divided by
    assert f"f = 105/105.343 = {factor:.6f}" in protocol
    pairs = re.findall(r"(\d+\.\d+)→(\d+\.\d)", protocol)
    assert len(pairs) >= 12
    assert [exact for _, exact in pairs] == [f"{float(printed) ** (1 / factor):.1f}" for printed, _ in pairs]


def test_arithmetic_in_the_protocol_follows_from_the_numbers_of_tokens() -> None:
    protocol = " ".join((ROOT / "docs/protocol.md").read_text(encoding="utf-8").split())
    rows = 929_589 // 20
    steps, steps_of_v1 = (rows - 1) // 35, (rows - 1) // 20
    decay_of_v1 = (1 - 1e-5) ** (180 * steps_of_v1)
    for said in (
        f"Train R={rows:,}, valid R={73_760 // 20:,}. Nine train tokens fall between columns",
        f"{steps:,} for T=35, {steps_of_v1:,} for T=20. The last {rows - 1 - 35 * steps} (T=35) rows",
        f"One epoch = {20 * 35 * steps:,} (T=35) predicted tokens",
        f"wd=1e-7 shrinks weights by {100 * (1 - (1 - 1e-7) ** (55 * steps)):.2f} % over the whole run",
        f"N_seq = {20 * steps:,} windows",
        f"1e-5 × {180 * steps_of_v1 / 1000:.0f}k steps the decay is not negligible (factor .{1000 * decay_of_v1:03.0f}",
    ):
        assert said in protocol
    assert 929_589 % 20 == 9


def test_the_augmented_loss_costs_what_the_guide_says() -> None:
    measured = json.loads((ROOT / "benchmarks/results/cpu_amx.json").read_text(encoding="utf-8"))["models"]
    prose = " ".join(GUIDE.split())
    assert "takes about one and a half times as long as one without" in prose
    assert "(`vd_al_stop`) it takes about a tenth longer" in prose
    for seconds in measured.values():
        assert seconds["VD-LSTM + AL"] / seconds["ours"] == pytest.approx(1.5, abs=0.1)
        assert seconds["VD-LSTM + AL, y fixed"] / seconds["ours"] == pytest.approx(1.1, abs=0.05)


def test_findings_on_film_reviews_in_the_readme_are_those_of_the_runs() -> None:
    standard, naive, variational = (curve(f"figure2/{name}_lstm") for name in ("standard", "naive", "variational"))
    assert {standard.index(min(standard)) + 1, naive.index(min(naive)) + 1} <= {3, 4}
    assert 190 <= variational.index(min(variational)) + 1 <= 235
    assert variational[235] > 1.2 * variational[234]  # it breaks down at epoch 236
    assert min(variational) == pytest.approx(min(naive), rel=0.01)
    pairs = zip(curve("figure2_modern/standard_lstm"), curve("figure2_modern/variational_lstm"), strict=True)
    assert all(without < with_dropout for without, with_dropout in pairs)
    smaller = curve("figure10/variational_gru_l2_1e-4")
    assert len(smaller) == 150
    assert sum(smaller[-25:]) / 25 < 1.03 * min(sum(smaller[i : i + 5]) / 5 for i in range(145))
    assert (
        min(curve("figure10/variational_gru"))
        > 0.999 * result("sentiment/figure10/variational_gru")["metrics"]["constant_rmse"]
    )


def test_no_network_is_more_than_3_percent_better_than_ridge_regression() -> None:
    baselines = json.loads((ROOT / "results/sentiment/baselines.json").read_text(encoding="utf-8"))
    ridge = baselines["splits"]["0"]["ridge"]["test_rmse"]
    assert min(min(curve(name)) for name in SENTIMENT) > 0.97 * ridge


def test_mc_is_within_3_percent_of_the_approximation_by_chunk_and_not_by_review() -> None:
    for name in SENTIMENT:
        metrics = result(f"sentiment/{name}")["metrics"]
        if metrics.get("test_rmse_mc"):
            assert metrics["test_rmse_mc"] == pytest.approx(metrics["test_rmse"], rel=0.03)
    metrics = result("sentiment/figure2/variational_lstm")["metrics"]
    assert metrics["test_rmse_review_mc"] / metrics["test_rmse_review"] == pytest.approx(1.06, abs=0.005)
