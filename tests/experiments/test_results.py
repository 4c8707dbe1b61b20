import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.catalogue import groups_of
from experiments.results import ResultError, groups_with, load_results
from reproduction.tables import to_markdown

WriteResult = Callable[..., Path]


def test_results_come_in_the_order_of_the_table(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "variational_tied", seed=1)
    write_result("ptb", "small", "variational_tied", seed=0)
    write_result("ptb", "small", "non_regularized")
    write_result("ptb", "small", "zaremba")
    assert [(run.row, run.seed) for run in load_results(folder)] == [
        ("non_regularized", 0),
        ("zaremba", 0),
        ("variational_tied", 0),
        ("variational_tied", 1),
    ]


def test_a_sweep_is_shown_with_the_rows_that_it_begins_and_ends_with(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure3", "pu0_pe0")
    write_result("sentiment", "figure3", "pu0.5_pe0")
    write_result("sentiment", "figure3", "pu0_pe0.5")
    assert groups_with("sentiment", load_results(folder))["recurrent_sweep"] == [], "nothing of its own was run"
    write_result("sentiment", "recurrent_sweep", "pu0.3_pe0")
    groups = groups_with("sentiment", load_results(folder))
    assert [run.row for run in groups["recurrent_sweep"]] == ["pu0_pe0", "pu0.3_pe0", "pu0.5_pe0"]
    assert [run.row for run in groups["figure3"]] == ["pu0_pe0", "pu0.5_pe0", "pu0_pe0.5"]


def test_what_stands_beside_a_group_is_a_planned_row_of_another() -> None:
    for name, group in groups_of("sentiment").items():
        for row, (source, theirs) in group.beside.items():
            assert source != name
            assert theirs in groups_of("sentiment")[source].planned
            assert row not in group.planned


def test_metrics_that_were_not_computed_are_absent(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure2", "naive_lstm")
    (run,) = load_results(folder)
    assert run.metrics == {"train_rmse": 0.12, "test_rmse": 0.15, "constant_rmse": 0.1915}
    assert run.points("test_rmse_mc") == ([], [])


def test_a_truncated_file_is_named_with_what_to_do(folder: Path, write_result: WriteResult) -> None:
    path = write_result("ptb", "small", "moon")
    path.write_text(path.read_text()[:100])
    with pytest.raises(
        ResultError, match=r"moon/seed0\.json: not valid JSON .*; if a run wrote it, delete the file and repeat the run"
    ):
        load_results(folder)


def test_a_file_that_is_not_text_is_named(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "moon").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultError, match=r"moon/seed0\.json: not valid JSON"):
        load_results(folder)


@pytest.mark.parametrize("key", ["group", "seed", "metrics", "curve", "provenance", "planned_epochs"])
def test_a_missing_key_is_named(folder: Path, write_result: WriteResult, key: str) -> None:
    path = write_result("ptb", "small", "moon")
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(ResultError, match=rf"seed0\.json: the file has no '{key}'"):
        load_results(folder)


def test_a_missing_key_of_the_provenance_is_named(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "moon", provenance={"date": "2026-01-02", "dirty": False, "hardware": {}})
    with pytest.raises(ResultError, match=r"provenance has no 'wall_time_s'"):
        load_results(folder)


def test_a_key_of_the_wrong_type_is_named(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "moon", metrics=[1.0])
    with pytest.raises(ResultError, match=r"'metrics' of the file has the wrong type: \[1\.0\]"):
        load_results(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {"valid_ppl": "abc"}}, "'valid_ppl' of metrics has the wrong type: 'abc'"),
        (
            {"curve": [{"epoch": 1}, {"epoch": 2, "valid_ppl": "abc"}]},
            "'valid_ppl' of curve[1] has the wrong type: 'abc'",
        ),
        ({"curve": [{"epoch": 1}, {"epoch": 2.5}]}, "'epoch' of curve[1] has the wrong type: 2.5"),
        ({"curve": [3]}, "curve[0] is not a JSON object"),
        ({"config": {"trainer": "abc"}}, "'trainer' of config has the wrong type: 'abc'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_file_and_field(
    folder: Path, write_result: WriteResult, changes: dict[str, Any], said: str
) -> None:
    path = write_result("ptb", "small", "moon", **changes)
    with pytest.raises(ResultError, match=re.escape(f"{path}: {said}; if a run wrote it, delete the file and repeat")):
        load_results(folder)


def places(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index of what a JSON file says."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


@pytest.mark.parametrize("value", [None, "x", [], [None], {}, {"a": None}, -1, 1e308, float("nan"), True])
def test_a_value_of_any_kind_in_place_of_any_other_is_shown_or_ends_with_a_message_that_names_a_file(
    value: Any, folder: Path, write_result: WriteResult
) -> None:
    init = {"class_path": "datamodules.PennTreebank", "init_args": {"window": 5}}
    corpus = {"name": "penn-treebank", "sha256": {"ptb.train.txt": "aa"}}
    path = write_result("ptb", "small", "zaremba", config={"data": init, "trainer": {"max_epochs": 3}})
    result = json.loads(path.read_text())
    result["provenance"] |= {"corpus": corpus, "resumed": []}
    origin = {"dirty": False, "commit": "aa", "run": [{"date": result["provenance"]["date"]}]}
    choice = {"mean": "approximation", "masks": None, "samples": 0, "temperature": 1.0}
    contents = {
        path: result,
        path.with_name("ensemble.json"): {
            "seeds": [0, 1],
            "epochs": "3",
            "mc_samples": 0,
            "diverged": [],
            "metrics": {"test_ppl": [85.0, 80.0]},
            "provenance": [origin, origin],
        },
        path.with_name("ablation_seed0.json"): {
            "tested_epoch": 3,
            "choices": [choice | {"test_ppl": 85.0, "test_ppl_tempered": 84.0}],
            "config": {"data": init},
            "provenance": origin,
        },
    }
    for file, content in contents.items():
        file.write_text(json.dumps(content))
    assert "test-time choices" in to_markdown(load_results(folder), ["ptb"])
    for file, content in contents.items():
        for *above, last in places(content):
            changed = json.loads(json.dumps(content))
            part = changed
            for key in above:
                part = part[key]
            part[last] = value
            file.write_text(json.dumps(changed))
            message = str(file.parent)
            try:
                to_markdown(load_results(folder), ["ptb"])
            except ResultError as error:
                message = str(error)
            assert str(file.parent) in message, (above, last)
        file.write_text(json.dumps(content))


def test_a_trainer_without_options_may_be_null(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "moon", config={"trainer": None})
    [run] = load_results(folder)
    assert run.length == "3"
    assert "Some CPU (2 cores), 1 h 2 min" in to_markdown([run], ["ptb"])


def test_a_file_in_the_wrong_place_is_an_error(folder: Path, write_result: WriteResult) -> None:
    path = write_result("ptb", "small", "moon")
    path.rename(path.with_name("seed1.json"))
    with pytest.raises(ResultError, match=r"is ptb/small/moon/seed0\.json but lies at ptb/small/moon/seed1\.json"):
        load_results(folder)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"no such folder; .* \(--results; RESULTS=\.\.\. for make\)"):
        load_results(tmp_path / "nowhere")


def test_a_run_on_parts_of_an_epoch_says_so_in_its_length(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba", config={"trainer": {"limit_train_batches": 100, "limit_val_batches": None}})
    [result] = load_results(folder)
    assert result.length.endswith(", limit_train_batches=100")


def test_the_length_of_a_run_is_its_epochs_whichever_of_them_was_tested(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba", epochs=3, planned_epochs=3, tested_epoch=1)
    write_result("ptb", "small", "zaremba", seed=1, epochs=2, planned_epochs=3, tested_epoch=1)
    assert [run.length for run in load_results(folder)] == ["3", "2 of 3 epochs"]


def test_a_group_with_results_of_both_tasks_is_refused(folder: Path, write_result: WriteResult) -> None:
    write_result("mine", "a", "row")
    write_result("mine", "a", "other", metrics={"test_rmse": 0.2})
    with pytest.raises(
        ResultError, match=r"a/(row|other)/seed0.json are of different tasks: give one .* another group"
    ):
        load_results(folder)
