import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.results import load_result
from reproduction.compare import differences, main, measures

WriteResult = Callable[..., Path]


def test_only_keys_that_differ_are_shown_dotted_with_both_values() -> None:
    a = {"seed": 0, "model": {"size": 200, "args": {"p": 0.5, "mask": "tied"}}, "rates": [1, 2], "only_a": None}
    b = {"seed": 1, "model": {"size": 200, "args": {"p": 0.25, "mask": "tied"}}, "rates": [1, 3], "only_b": "1"}
    assert differences(a, b) == [
        ("seed", "0", "1"),
        ("model.args.p", "0.5", "0.25"),
        ("rates", "[1, 2]", "[1, 3]"),
        ("only_a", "null", "–"),
        ("only_b", "–", '"1"'),
    ]
    assert differences(a, a) == []


def test_a_value_is_not_the_text_of_it() -> None:
    assert differences({"devices": 1}, {"devices": "1"}) == [("devices", "1", '"1"')]


def test_numbers_have_their_difference_and_its_share_of_the_first(write_result: WriteResult) -> None:
    more = {"test_log_likelihood": -2.0, "nothing": 0.0}
    a = write_result("ptb", "small", "moon", metrics={"valid_ppl": 100.0, "test_ppl": 80.0, **more})
    less = {"test_log_likelihood": -1.0, "nothing": 1.0, "test_ppl": None}
    b = write_result("ptb", "small", "zaremba", metrics={"valid_ppl": 125.0, **less}, parameters=4_650_010)
    assert measures(load_result(a), load_result(b)) == [
        ("parameters", "4,650,000", "4,650,010", "+10", "+0.00%"),
        ("valid_ppl", "100", "125", "+25", "+25.00%"),
        ("test_ppl", "80", "–", "–", "–"),
        ("test_log_likelihood", "-2", "-1", "+1", "+50.00%"),
        ("nothing", "0", "1", "+1", "–"),
        ("wall_time_s", "3723.4", "3723.4", "+0", "+0.00%"),
    ]


def test_runs_are_named_by_file_or_below_the_results_and_compared_in_80_columns(
    folder: Path, tmp_path: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model": {"init_args": {"recurrent_dropout": 0.5, "callbacks": ["[red]" * 20], "same": 1}}}
    write_result("ptb", "small", "zaremba", config=config, metrics={"valid_ppl": 1e8 / 3, "test_ppl_mc_window_100": 1})
    data = json.loads(write_result("ptb", "small", "moon", epochs=2).read_text())
    data["provenance"] |= {"commit": "fedcba9876543210", "versions": {"torch": "2.14.0"}}
    data["provenance"]["hardware"]["gpu"] = "Some GPU"
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(data))
    main(["ptb/small/zaremba/seed0", str(moved), "--results", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split() for line in lines]
    assert lines[0] == f"A  {folder}/ptb/small/zaremba/seed0.json"
    assert lines[1] == "   2026-01-02, a curve of 3 epochs, 3 planned, tested after 3"
    assert "   2026-01-02, a curve of 2 epochs, 3 planned, tested after 2" in lines
    assert ["model.init_args.recurrent_dropout", "0.5", "–"] in printed
    assert ["commit", '"0123456"', '"fedcba9"'] in printed
    assert ["hardware.gpu", "null", '"Some', 'GPU"'] in printed
    assert ["versions.torch", '"2.13.0"', '"2.14.0"'] in printed
    assert ["valid_ppl", "3.33333e+07", "90", "-3.33332e+07", "-100.00%"] in printed
    assert "[red]" in "".join(lines)
    assert max(len(line) for line in lines if not line.startswith(("A  ", "B  "))) <= 80


def test_runs_that_differ_in_nothing_but_numbers_say_so(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result("ptb", "small", "zaremba")
    main(["ptb/small/zaremba/seed0", "ptb/small/zaremba/seed0", "--results", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert "Configuration: no difference" in lines
    assert "Provenance: no difference" in lines


def test_a_run_that_is_not_there_is_answered_with_those_that_are(folder: Path, write_result: WriteResult) -> None:
    with pytest.raises(SystemExit, match=r"^zaremba: neither a file nor a run below .*; the runs there: none$"):
        main(["zaremba", "moon", "--results", str(folder)])
    write_result("ptb", "small", "zaremba", seed=3)
    write_result("sentiment", "figure3", "pu0.5_pe0")
    with pytest.raises(
        SystemExit, match=r"the runs there:\n  ptb/small/zaremba/seed3\n  sentiment/figure3/pu0.5_pe0/seed0$"
    ):
        main(["ptb/small/zaremba/seed3", "ptb/small/zaremba/seed4", "--results", str(folder)])


@pytest.mark.parametrize("content", [{"seeds": [0, 1], "epochs": "13", "metrics": {}}, {"splits": {}}, {}])
def test_a_good_file_that_is_not_the_result_of_one_run_is_not_to_be_deleted(
    folder: Path, write_result: WriteResult, content: dict[str, Any]
) -> None:
    run = write_result("ptb", "small", "zaremba")
    file = run.with_name("ensemble.json")
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"ensemble\.json: not the result of one run: that is ") as refused:
        main([str(file), str(run), "--results", str(folder)])
    assert "delete" not in str(refused.value)


def test_runs_on_other_texts_differ_in_the_files_whose_hashes_do(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        file = write_result("mine", "text", "row", seed=seed)
        data = json.loads(file.read_text())
        data["provenance"]["corpus"] = {"name": "mine", "sha256": {"train.txt": "00", "test.txt": f"{seed}1"}}
        file.write_text(json.dumps(data))
    main(["mine/text/row/seed0", "mine/text/row/seed1", "--results", str(folder)])
    assert [line.split() for line in capsys.readouterr().out.splitlines() if "sha256" in line] == [
        ["corpus.sha256.test.txt", '"01"', '"11"']
    ]


def test_epochs_planned_epochs_and_the_tested_epoch_are_told_apart(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result("ptb", "small", "zaremba", epochs=5, planned_epochs=9, tested_epoch=2)
    main(["ptb/small/zaremba/seed0", "ptb/small/zaremba/seed0", "--results", str(folder)])
    assert capsys.readouterr().out.count("a curve of 5 epochs, 9 planned, tested after 2") == 2


def test_a_run_with_uncommitted_changes_is_told_from_one_without(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, dirty in enumerate(("false", "true")):
        path = write_result("ptb", "small", "zaremba", seed=seed)
        path.write_text(path.read_text().replace('"dirty": false', f'"dirty": {dirty}'))
    main(["ptb/small/zaremba/seed0", "ptb/small/zaremba/seed1", "--results", str(folder)])
    assert ["uncommitted", "changes", "false", "true"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
