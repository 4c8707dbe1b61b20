import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from experiments.catalogue import catalogue, find_row, groups_of
from experiments.results import groups_with, load_results
from reproduction.table import main
from reproduction.tables import (
    BEGIN,
    END,
    ablation_table,
    ensemble_table,
    language_model_table,
    print_tables,
    ptb_table,
    sections,
    sentiment_table,
    to_latex,
    to_markdown,
)
from training.ablation import TEMPERATURES

WriteResult = Callable[..., Path]


def perplexities(valid: float = 90.0, test: float = 85.0, **more: Any) -> dict[str, Any]:
    return {"valid_ppl": valid, "valid_ppl_lua": valid - 1, "test_ppl": test, "words_per_s": 31_200.0, **more}


def line(table: pd.DataFrame, row: str) -> dict[str, str]:
    (found,) = table[table["row"] == row].to_dict("records")
    return found


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("size", "row", "metric", "number"),
    [
        ("medium", "non_regularized", "test", 121.7),
        ("medium", "moon_embedding", "valid", 88.9),
        ("medium", "variational_untied", "test_mc", [78.6, 0.1]),
        ("large", "zaremba", "test", 78.4),
        ("large", "variational_tied", "valid", [77.3, 0.2]),
        ("large", "variational_untied", "test_mc", [73.4, 0.0]),
        ("small", "non_regularized", "valid", 120.7),
        ("small", "non_regularized", "test", 114.5),
        ("inan_small", "vd_real", "test", 82.7),
        ("inan_medium", "vd_re", "valid", 77.1),
        ("inan_large", "vd_al", "test", 71.2),
        ("press_small", "non_regularized_wt_pr", "valid", 104.9),
        ("press_large", "bd_wt", "test", 73.2),
    ],
)
def test_published_numbers_are_those_of_the_papers(size: str, row: str, metric: str, number: Any) -> None:
    assert find_row(f"ptb/{size}/{row}").published[metric] == number


@pytest.mark.parametrize(("size", "row", "kwps"), [("medium", "moon", 4.8), ("large", "variational_untied", 1.6)])
def test_published_speeds_are_those_of_the_paper(size: str, row: str, kwps: float) -> None:
    assert find_row(f"ptb/{size}/{row}").published["kwps"] == kwps


def test_what_else_is_published_on_the_authors_log_stands_below_its_table() -> None:
    text = to_markdown([], ["ptb"], ["gal1250"])
    source = "Source: the author in github.com/keras-team/keras, pull request 2523."
    for said in (
        f"Variational (untied), three runs: valid 79.1 ± 0.2, test 76.3 ± 0.3. {source}",
        f"Variational (tied), three runs: valid 79.3 ± 0.1, test 76.7 ± 0.1. {source}",
        "Variational (untied), the run of the log, MC with K = 100: test with MC 75.3. Source: ",
    ):
        assert f"Also published: {said}" in text


def test_every_published_number_has_a_source() -> None:
    for group in groups_of("ptb").values():
        assert group.sources or not any(row.published for row in group.rows.values())
        assert all(paper["source"] for paper in [*group.ensembles, *group.further])


def test_rows_that_were_not_run_say_so_beside_the_published_numbers() -> None:
    table = ptb_table("large", [])
    assert list(table["row"]) == [
        "Non-regularised",
        "Moon et al.",
        "Moon + emb dropout",
        "Zaremba et al.",
        "Variational (tied)",
        "Variational (tied, MC)",
        "Variational (untied)",
        "Variational (untied, MC)",
    ]
    assert set(table["test, ours"]) == {"not run"}
    assert line(table, "Variational (untied)")["valid, paper"] == "77.9 ± 0.3"
    assert line(table, "Variational (untied, MC)")["test, paper"] == "73.4 ± 0.0"


def test_rows_beyond_the_paper_have_tables_with_their_published_numbers_once_one_was_run(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "inan_small", "vd_real", metrics=perplexities(valid=87.3, test=83.1))
    text = to_markdown(load_results(folder), ["ptb"])
    assert "#### Beyond the paper: Inan et al. (2016), small (2 × 200 units)" in text
    table = ptb_table("inan_small", load_results(folder))
    assert list(table["row"]) == ["VD-LSTM", "VD-LSTM + AL", "VD-LSTM + RE", "VD-LSTM + REAL"]
    real = line(table, "VD-LSTM + REAL")
    assert [real[name] for name in ("valid, paper", "valid, exact", "test, paper", "test, ours")] == [
        *("86.3", "87.3"),
        *("82.7", "83.1"),
    ]
    assert line(table, "VD-LSTM + AL")["test, ours"] == "not run"
    assert "Not run: " in text
    assert "Beyond the paper: Press & Wolf (2016), small (2 × 200 units)" in text.split("Not run: ")[1]


def test_a_setting_without_published_numbers_says_so() -> None:
    table = ptb_table("v1", [])
    assert set(table["test, paper"]) == {"n/a"}


def test_one_seed_has_no_spread_and_three_have_the_sample_standard_deviation(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "medium", "zaremba", metrics=perplexities(valid=87.0))
    for seed, valid in enumerate([80.0, 82.0, 87.0]):  # mean 83, sample sd √13 = 3.6, population sd 2.9
        write_result("ptb", "medium", "variational_tied", seed=seed, metrics=perplexities(valid=valid))
    table = ptb_table("medium", load_results(folder))
    assert line(table, "Zaremba et al.")["valid, exact"] == "87.0"
    tied = line(table, "Variational (tied)")
    assert (tied["valid, exact"], tied["valid, as printed"], tied["seeds"]) == ("83.0 ± 3.6", "82.0 ± 3.6", "3")


def test_speed_stands_beside_that_of_the_paper_in_its_table(folder: Path, write_result: WriteResult) -> None:
    config = {"data": {"class_path": "datamodules.PennTreebank", "init_args": {"batch_size": 20, "window": 35}}}
    for seed, seconds in enumerate((200.0, 400.0)):  # 4.6 and 2.3 thousand words/s
        curve = [{"epoch": 1, "seconds": 9000.0}, {"epoch": 2, "seconds": seconds}, {"epoch": 3, "seconds": seconds}]
        write_result("ptb", "medium", "zaremba", seed=seed, curve=curve, config=config)
    table = ptb_table("medium", load_results(folder))
    shown = line(table, "Zaremba et al.")
    assert (shown["words/s, paper"], shown["words/s"]) == ("5.5K", "3.5K")
    assert line(table, "Variational (untied)")["words/s"] == "–"
    assert line(table, "Variational (untied, MC)")["words/s, paper"] == "–"
    assert "words/s, paper" in ptb_table("large", [])
    assert "words/s, paper" not in ptb_table("v1", [])


def test_seeds_with_other_settings_have_a_line_of_their_own_that_says_what_differs(
    folder: Path, write_result: WriteResult
) -> None:
    for seed, (precision, valid) in enumerate((("bf16-mixed", 70.0), (None, 80.0), (None, 82.0))):
        config = {"trainer": {"precision": precision}}
        write_result("ptb", "medium", "variational_tied", seed=seed, config=config, metrics=perplexities(valid=valid))
    table = ptb_table("medium", load_results(folder))
    exact, bf16 = line(table, "Variational (tied) [32-true]"), line(table, "Variational (tied) [bf16-mixed]")
    assert (exact["valid, exact"], exact["seeds"]) == ("81.0 ± 1.4", "2")
    assert (bf16["valid, exact"], bf16["seeds"]) == ("70.0", "1")
    assert line(table, "Variational (tied, MC) [bf16-mixed]")["test, ours"] == "not run"


def mc_run(samples: int, masks: str, mc: float, **more: float) -> dict[str, Any]:
    return {
        "metrics": perplexities(test_ppl_mc=mc, mc_samples=samples, **more),
        "config": {"model": {"init_args": {"mc_samples": samples, "mc_masks": masks}}},
    }


def test_mc_is_averaged_over_seeds_with_the_same_samples_and_masks_and_leaves_the_line_above_whole(
    folder: Path, write_result: WriteResult
) -> None:
    runs = (mc_run(100, "stream", 79.0), mc_run(100, "both", 81.0), mc_run(1000, "both", 78.0))
    for seed, run in enumerate(runs):
        write_result("ptb", "medium", "variational_tied", seed=seed, **run)
    table = ptb_table("medium", load_results(folder))
    assert line(table, "Variational (tied)")["seeds"] == "3"
    mc = table[table["row"] == "Variational (tied, MC)"]
    assert mc[["K", "test, ours", "seeds"]].to_numpy().tolist() == [["100", "80.0 ± 1.4", "2"], ["1000", "78.0", "1"]]


def test_mc_by_other_masks_is_a_line_that_says_so(folder: Path, write_result: WriteResult) -> None:
    for seed, masks in enumerate(("stream", "window")):
        write_result("ptb", "medium", "variational_tied", seed=seed, **mc_run(10, masks, 80.0))
    names = list(ptb_table("medium", load_results(folder))["row"])
    assert [name for name in names if "tied, MC" in name and "un" not in name] == [
        "Variational (tied, MC) [MC masks stream, MC word dropout False]",
        "Variational (tied, MC) [MC masks window, MC word dropout True]",
    ]


def test_where_mc_has_no_line_of_its_own_its_means_are_told_apart_by_their_samples(
    folder: Path, write_result: WriteResult
) -> None:
    for seed, (samples, mc) in enumerate(((10, 0.15), (50, 0.14), (50, 0.16))):
        metrics = {"test_rmse": 0.15, "test_rmse_mc": mc, "mc_samples": samples}
        write_result("sentiment", "figure2", "variational_lstm", seed=seed, metrics=metrics)
    shown = line(sentiment_table("sentiment", "figure2", load_results(folder)), "Variational LSTM")
    assert (shown["test, MC"], shown["K"], shown["seeds"]) == ("0.1500; 0.1500 ± 0.0141", "10; 50", "3")


def test_monte_carlo_rows_have_their_own_test_perplexity_and_number_of_samples(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "medium", "variational_tied", metrics=perplexities(test_ppl_mc=79.04, mc_samples=1000))
    write_result("ptb", "medium", "variational_untied", metrics=perplexities())
    table = ptb_table("medium", load_results(folder))
    assert (line(table, "Variational (tied, MC)")["test, ours"], line(table, "Variational (tied, MC)")["K"]) == (
        "79.0",
        "1000",
    )
    assert line(table, "Variational (untied, MC)")["test, ours"] == "not run"
    assert line(table, "Variational (untied)")["test, ours"] == "85.0"


def test_a_shortened_run_is_marked_and_never_averaged_with_full_runs(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba", seed=0, epochs=3, metrics=perplexities(valid=120.0))
    write_result("ptb", "small", "zaremba", seed=1, epochs=2, metrics=perplexities(valid=200.0))
    table = ptb_table("small", load_results(folder))
    lines = table[table["row"] == "Zaremba et al."]
    assert list(lines["epochs"]) == ["3", "2 of 3 epochs"]
    assert list(lines["valid, exact"]) == ["120.0", "200.0"]


@pytest.mark.parametrize("diverged", [math.nan, math.inf, 181.0])
def test_a_diverged_seed_is_discarded_and_counted(folder: Path, write_result: WriteResult, diverged: float) -> None:
    for seed, valid in enumerate([89.0, 90.0, diverged]):
        write_result("ptb", "small", "zaremba", seed=seed, metrics=perplexities(valid=valid))
    results = load_results(folder)
    zaremba = line(ptb_table("small", results), "Zaremba et al.")
    assert (zaremba["valid, exact"], zaremba["seeds"]) == ("89.5 ± 0.7", "2 of 3")
    assert "Discarded seeds" in to_markdown(results, ["ptb"])


def test_a_row_of_which_every_seed_diverged_says_so(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "moon", metrics=perplexities(valid=math.nan))
    assert line(ptb_table("small", load_results(folder)), "Moon et al.")["test, ours"] == "diverged"


def test_a_result_of_an_unplanned_row_or_group_is_shown(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba_weight_tied")
    write_result("sentiment", "figure4", "some_curve")
    text = to_markdown(load_results(folder), ["ptb", "sentiment"])
    assert "| zaremba_weight_tied" in text  # no link: it has no configuration
    assert "[Zaremba et al.](configs/ptb/small.yaml)" in text
    assert "#### sentiment, figure4" in text


def test_film_review_tables_start_with_the_constant_predictor(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure10", "variational_gru", epochs=30, planned_epochs=30)
    table = sentiment_table("sentiment", "figure10", load_results(folder))
    assert table["row"][0] == "Constant predictor"
    assert (table["test"][0], table["train, all"][0], table["test, MC"][0]) == ("0.1915", "0.1839", "–")
    variational = line(table, "Variational GRU")
    assert (variational["train"], variational["test"], variational["test, MC"]) == ("0.1200", "0.1500", "not run")
    assert variational["test, lowest"] == "0.1033"
    expected = 0.1 + sum(0.1 / epoch for epoch in range(6, 31)) / 25
    assert variational["test, end"] == f"{expected:.4f}"


def test_a_curve_of_another_figure_stands_beside_those_that_it_is_compared_with(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("sentiment", "figure2", "variational_lstm")
    write_result("sentiment", "decay_sweep", "l2_1e-5")
    text = to_markdown(load_results(folder), ["sentiment"])
    text = text.split("weight of the penalty (appendix)")[1].split("####")[0]
    sweep, figure2 = "configs/sentiment/decay_sweep.yaml", "configs/sentiment/figure2.yaml"
    assert re.findall(r"^\| (\[\S.*?) +\|", text, re.MULTILINE) == [
        f"[l2 = 1e-6]({sweep})",
        f"[l2 = 1e-5]({sweep})",
        f"[l2 = 1e-4]({sweep})",
        f"[l2 = 1e-3]({figure2})",
        f"[l2 = 1e-3, on all weights]({sweep})",
    ]
    assert "- l2 = 1e-5, seed 0" in text
    assert "- l2 = 1e-3, seed 0" not in text, "where it comes from stands below Figure 2"


def test_sequences_of_other_lengths_have_another_constant_predictor(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "length_sweep", "t20", metrics={"test_rmse": 0.17, "constant_rmse": 0.1893})
    table = sentiment_table("sentiment", "length_sweep", load_results(folder))
    assert "Constant predictor" not in set(table["row"])
    assert (line(table, "T = 20")["constant"], line(table, "T = 50")["constant"]) == ("0.1893", "not run")
    assert "constant" not in sentiment_table("sentiment", "figure2", [])


def test_the_error_of_mc_by_review_stands_beside_that_of_the_approximation(
    folder: Path, write_result: WriteResult
) -> None:
    reviews = {"test_rmse": 0.15, "test_rmse_review": 0.13, "test_rmse_mc": 0.155, "test_rmse_review_mc": 0.135}
    write_result("sentiment", "figure2", "variational_lstm", metrics=reviews | {"mc_samples": 50})
    found = line(sentiment_table("sentiment", "figure2", load_results(folder)), "Variational LSTM")
    assert (found["test, by review"], found["test, by review, MC"]) == ("0.1300", "0.1350")


def test_the_demo_measures_its_own_constant_predictor(folder: Path, write_result: WriteResult) -> None:
    assert "Constant predictor" not in set(sentiment_table("demo", "sentiment", [])["row"])
    write_result("demo", "sentiment", "naive", metrics={"test_rmse": 0.2, "constant_rmse": 0.25})
    write_result("demo", "language_model", "naive", metrics={"valid_ppl": 50.0, "test_ppl": 40.0})
    runs = load_results(folder)
    table = sentiment_table("demo", "sentiment", [run for run in runs if run.group == "sentiment"])
    assert line(table, "Constant predictor")["test"] == "0.25000"
    models = language_model_table("demo", "language_model", [run for run in runs if run.group == "language_model"])
    assert line(models, "Naive dropout")["test"] == "40.0"
    assert line(models, "Variational dropout")["test"] == "not run"


def test_the_origin_of_each_result_stands_below_its_table(folder: Path, write_result: WriteResult) -> None:
    path = write_result("ptb", "small", "zaremba", seed=4)
    path.write_text(path.read_text().replace('"dirty": false', '"dirty": true'))
    assert (
        "- Zaremba et al., seed 4: commit 0123456 with uncommitted changes, 2026-01-02, Some CPU (2 cores), 1 h 2 min, "
        "tested after epoch 3 of 3, valid 90.00, valid as printed 88.70, test 85.00\n"
    ) in to_markdown(load_results(folder), ["ptb"])


def test_the_origin_of_a_run_says_what_differs_from_its_configuration_and_its_mc(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "medium", "variational_tied", **mc_run(100, "stream", 79.0, test_ppl_mc_window=79.5))
    assert (
        "MC 79.00, MC with masks per window 79.50; unlike its configuration: K 100, MC masks stream\n"
        in to_markdown(load_results(folder), ["ptb"])
    )


def test_the_origin_of_a_run_in_lower_precision_says_so(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba", config={"trainer": {"precision": "bf16-mixed"}})
    assert "Some CPU (2 cores), bf16-mixed, 1 h 2 min, tested after" in to_markdown(load_results(folder), ["ptb"])


def test_size_leaves_out_the_other_sizes() -> None:
    text = to_markdown([], ["ptb"], ["large"])
    assert "2 × 1500 units" in text
    assert "2 × 650 units" not in text


def test_readme_is_replaced_between_the_markers_only(folder: Path, readme: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba")
    arguments = ["--results", str(folder), "--readme", str(readme)]
    main(arguments)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text.splitlines()
    assert "| [Zaremba et al.]" in text
    main([*arguments, "--check"])
    main(arguments)
    assert readme.read_text(encoding="utf-8") == text
    assert {path.name for path in readme.parent.iterdir()} == {"README.md", "results"}


def test_check_fails_on_stale_text_and_writes_nothing(folder: Path, readme: Path, write_result: WriteResult) -> None:
    arguments = ["--results", str(folder), "--readme", str(readme)]
    write_result("ptb", "small", "moon")
    main(arguments)
    text = readme.read_text(encoding="utf-8")
    write_result("ptb", "small", "zaremba")
    with pytest.raises(SystemExit, match=r"README\.md: the results are stale; run `make table`"):
        main([*arguments, "--check"])
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("experiments", "said"),
    [
        (
            ["ptb", "sentiment"],
            "no results of ptb, sentiment; run `make reproduce-ptb` or `make reproduce-sentiment` first",
        ),
        (["sentiment"], "no results of sentiment; run `make reproduce-sentiment` first"),
    ],
)
def test_tables_without_results_replace_no_others(
    folder: Path, readme: Path, tmp_path: Path, experiments: list[str], said: str, write_result: WriteResult
) -> None:
    write_result("demo", "language_model", "naive")
    text = readme.read_text(encoding="utf-8")
    for option, where in (("--readme", readme), ("--wandb", tmp_path / "runs")):
        with pytest.raises(SystemExit, match=f"^{folder}: {said}$"):
            main(["--results", str(folder), "--experiment", *experiments, option, str(where)])
    assert readme.read_text(encoding="utf-8") == text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["no markers", f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_a_readme_without_the_two_markers_is_an_error(
    folder: Path, readme: Path, text: str, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba")
    readme.write_text(text)
    with pytest.raises(SystemExit, match=r"README\.md must contain the line <!-- results:begin -->"):
        main(["--results", str(folder), "--readme", str(readme)])
    assert readme.read_text() == text


def test_a_corrupted_result_ends_with_one_message(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba").write_text("{")
    with pytest.raises(SystemExit, match=r"zaremba/seed0\.json: not valid JSON"):
        main(["--results", str(folder)])


def test_without_a_terminal_the_tables_are_printed_as_markdown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--results", str(folder), "--experiment", "demo"])
    assert "| Variational dropout" in capsys.readouterr().out


def test_in_a_terminal_of_100_columns_no_number_is_cut_off(folder: Path, write_result: WriteResult) -> None:
    for seed, valid in enumerate([80.0, 82.0]):
        write_result("ptb", "medium", "variational_untied", seed=seed, metrics=perplexities(valid=valid))
        errors = dict.fromkeys(("train_rmse", "test_rmse", "test_rmse_mc"), 0.15 + seed / 100) | {
            "constant_rmse": 0.1915
        }
        write_result("sentiment", "figure2", "variational_lstm", seed=seed, metrics=errors | {"mc_samples": 50})
    output = io.StringIO()
    print_tables(Console(file=output, width=100), load_results(folder), ["ptb", "sentiment", "demo"])
    text = output.getvalue()
    assert "Variational (untied, MC)" in text
    assert "81.0±1.4" in text
    assert "0.1550±.0071" in text
    assert "0.1915" in text
    assert "…" not in text


def test_the_trajectory_holds_our_validation_perplexity_against_the_authors_log(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [{"epoch": epoch, "valid_ppl_lua": ppl} for epoch, ppl in ((1, 300.0), (2, 200.0), (3, 170.0))]
    write_result("ptb", "gal1250", "variational_untied", curve=curve)
    text = to_markdown(load_results(folder), ["ptb"], ["gal1250"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["1", "292.8", "300.0", "1.025"] in lines
    assert ["3", "172.9", "170.0", "0.984"] in lines
    assert ["55", "79.1", "not run", "–"] in lines


def test_every_format_has_the_same_cells(folder: Path, write_result: WriteResult, capsys: Any) -> None:
    write_result("ptb", "small", "zaremba")
    arguments = ["--results", str(folder), "--experiment", "ptb", "--size", "small", "--format"]
    main([*arguments, "csv"])
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype=str)
    assert table["config"][0] == "configs/ptb/small.yaml"
    [line] = table[table["row"] == "Zaremba et al."].to_dict("records")
    assert (line["table"], line["test, ours"]) == ("Penn Treebank, small (2 × 200 units)", "85.0")
    main([*arguments, "html"])
    text = capsys.readouterr().out
    cells = re.findall(r"<tr>\s*<td>(.*?)</td>", text)
    assert [re.sub(r"<.*?>", "", cell) for cell in cells] == table["row"].tolist()
    assert '<a href="configs/ptb/small.yaml">Zaremba et al.</a>' in cells
    assert "<td>85.0</td>" in text
    main([*arguments, "latex"])
    latex = capsys.readouterr().out
    assert r"\caption{Penn Treebank, small (2 $\times$ 200 units). Some CPU (2 cores)}" in latex
    assert "Zaremba et al. &" in latex


def test_latex_says_what_the_runs_of_a_table_were_on(folder: Path, write_result: WriteResult) -> None:
    for row, precision in (("zaremba", None), ("moon", "bf16-mixed")):
        write_result("ptb", "small", row, config={"trainer": {"precision": precision}})
    write_result("my_texts", "a", "b")
    latex = to_latex(load_results(folder), ["ptb", "my_texts"])
    machines = "Some CPU (2 cores), bf16-mixed; Some CPU (2 cores)"
    assert rf"\caption{{Penn Treebank, small (2 $\times$ 200 units). {machines}}}" in latex
    assert r"\caption{my\_texts, a. Some CPU (2 cores)}" in latex


def test_mc_with_masks_per_window_has_a_line_of_its_own_where_it_was_run(
    folder: Path, write_result: WriteResult
) -> None:
    metrics = {"valid_ppl": 90.0, "test_ppl": 85.0, "test_ppl_mc": 83.0, "mc_samples": 10.0}
    write_result("ptb", "small", "variational_tied", metrics=metrics | {"test_ppl_mc_window": 84.0})
    write_result("ptb", "small", "variational_untied", metrics=metrics)
    table = ptb_table("small", load_results(folder)).set_index("row")["test, ours"]
    assert table["Variational (tied, MC)"] == "83.0"
    assert table["Variational (tied, MC, masks per window)"] == "84.0"
    assert "Variational (untied, MC, masks per window)" not in table


def test_hours_are_the_mean_of_the_seeds_and_hardware_is_for_machines_to_read(
    folder: Path, write_result: WriteResult
) -> None:
    for seed, seconds in enumerate((3600.0, 10_800.0)):
        path = write_result("ptb", "small", "zaremba", seed=seed)
        path.write_text(path.read_text().replace("3723.4", str(seconds)))
    zaremba = line(ptb_table("small", load_results(folder)), "Zaremba et al.")
    assert (zaremba["hours"], zaremba["hardware"]) == ("2.0", "Some CPU (2 cores)")
    assert "hardware" not in to_markdown(load_results(folder), ["ptb"])


def test_sliding_windows_have_a_column_where_they_were_run(folder: Path, write_result: WriteResult) -> None:
    assert "test, sliding" not in ptb_table("v1", [])
    write_result("ptb", "v1", "zaremba", metrics=perplexities(test_ppl_sliding=101.26))
    table = ptb_table("v1", load_results(folder))
    assert line(table, "Zaremba et al.")["test, sliding"] == "101.3"
    assert line(table, "Variational (tied)")["test, sliding"] == "not run"


def test_what_others_built_stands_beside_what_they_built_on(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "press_small", "non_regularized_wt", metrics=perplexities())
    assert list(ptb_table("press_small", groups_with("ptb", load_results(folder))["press_small"])["row"])[:1] == [
        "Non-regularised + WT"
    ]
    write_result("ptb", "small", "non_regularized", metrics=perplexities(test=80.0))
    table = ptb_table("press_small", groups_with("ptb", load_results(folder))["press_small"])
    plain = line(table, "Non-regularised")
    assert (plain["valid, paper"], plain["test, paper"], plain["test, ours"]) == ("120.7", "114.5", "80.0")
    assert plain["config"] == "configs/ptb/small.yaml"
    assert line(table, "Non-regularised + PR")["config"] == "configs/ptb/press_small.yaml"


@pytest.mark.parametrize(
    "content", ["", "null", "[]", '{"splits": {"0": {"constant": 3}}}', '{"splits": {"0": {"x": {}}}}']
)
def test_damaged_baselines_and_notes_end_with_one_message_that_names_the_file(
    content: str, folder: Path, write_result: WriteResult
) -> None:
    path = write_result("sentiment", "figure2", "naive_lstm")
    notes, baselines = path.parents[1] / "notes.md", folder / "sentiment/baselines.json"
    baselines.write_text(content)
    with pytest.raises(SystemExit, match=rf"{baselines}.*delete"):
        main(["--results", str(folder), "--experiment", "sentiment"])
    baselines.unlink()
    notes.write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match=rf"{notes} cannot be read as text"):
        main(["--results", str(folder), "--experiment", "sentiment"])


def set_test_perplexity(path: Path, perplexity: float) -> None:
    """Give a result this test perplexity."""
    data = json.loads(path.read_text())
    data["metrics"]["test_ppl"] = perplexity
    path.write_text(json.dumps(data))


def write_ensemble(path: Path, **metrics: list[float]) -> None:
    seeds = list(range(len(metrics["test_ppl"])))
    origin = {"commit": "ab" * 9, "dirty": False}
    provenance = [origin for _ in seeds]
    report = {"seeds": seeds, "epochs": "39", "mc_samples": 100, "metrics": metrics, "provenance": provenance}
    set_test_perplexity(path, metrics["test_ppl"][0])
    path.with_name("ensemble.json").write_text(json.dumps(report))


def test_ensembles_stand_beside_the_published_ones_by_the_number_of_models(
    folder: Path, write_result: WriteResult
) -> None:
    row = write_result("ptb", "medium", "zaremba")
    write_ensemble(row, test_ppl=[82.0, 77.1, 75.0], valid_ppl=[86.0, 80.5, 79.0])
    single, mc = [79.0, 75.0], [78.0, 74.04]
    write_ensemble(write_result("ptb", "large", "variational_untied"), test_ppl=single, test_ppl_mc=mc)
    table = ensemble_table(load_results(folder)).set_index(["row", "models"])
    valid = table[["valid, paper", "valid, ours"]]
    assert list(valid.loc["medium, Zaremba et al.", "2"]) == ["80.6", "80.5"]
    assert list(valid.loc["medium, Zaremba et al.", "5"]) == ["76.7", "not run"]
    assert list(valid.loc["large, Variational (untied, MC)", "2"]) == ["n/a", "–"]
    table = table[["test, paper", "test, ours", "seeds"]]
    assert list(table.loc["medium, Zaremba et al.", "2"]) == ["77.0", "77.1", "0, 1"]
    assert list(table.loc["medium, Zaremba et al.", "3"]) == ["n/a", "75.0", "0, 1, 2"]
    assert list(table.loc["medium, Zaremba et al.", "5"]) == ["73.3", "not run", "–"]
    assert list(table.loc["large, Variational (untied, MC)", "2"]) == ["n/a", "74.0", "0, 1"]
    assert list(table.loc["large, Variational (untied, MC)", "10"]) == ["68.7", "not run", "–"]
    assert list(table.loc["small, Non-regularised", "2"]) == ["96.1", "not run", "–"]
    text = to_markdown(load_results(folder), ["ptb"], ["medium"])
    assert "- medium, Zaremba et al., ensemble of seeds 0, 1, 2: predicted by commit abababa" in text
    assert "large, Zaremba" not in text
    without = to_markdown(load_results(folder), ["ptb"], ["small"])
    assert "several models averaged" not in without
    write_ensemble(write_result("ptb", "small", "mine"), test_ppl=[90.0, 80.0])
    assert "| small, mine " in to_markdown(load_results(folder), ["ptb"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"test_ppl": [2.01, 1.9]}}, r"test_ppl of seed 0 alone is 2\.01, but seed0\.json says 85"),
        ({"metrics": {"test_ppl": [85.0]}}, "'test_ppl' does not have one value for each number of models"),
        ({"provenance": [{"dirty": False}]}, "not have one provenance for each of its seeds"),
        (
            {"provenance": [{"dirty": False, "run": [{"date": "2016-01-01"}]}, {"dirty": False}]},
            "seed 0 is of a run begun 2016-01-01, but its result is of one begun 2026-01-02",
        ),
    ],
)
def test_an_ensemble_of_other_runs_than_the_results_beside_it_is_refused(
    folder: Path, write_result: WriteResult, changes: dict[str, Any], message: str
) -> None:
    row = write_result("ptb", "small", "zaremba")
    write_ensemble(row, test_ppl=[85.0, 80.0])
    assert "ensemble of seeds 0, 1" in to_markdown(load_results(folder), ["ptb"])
    file = row.with_name("ensemble.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(SystemExit, match=rf"zaremba/ensemble\.json: .*{message}.*delete the file"):
        main(["--results", str(folder)])


@pytest.mark.parametrize("text", ["{", "{}", '{"seeds": 3}'])
def test_an_ensemble_that_cannot_be_read_ends_with_one_message(
    folder: Path, write_result: WriteResult, text: str
) -> None:
    write_result("ptb", "small", "zaremba").with_name("ensemble.json").write_text(text)
    with pytest.raises(SystemExit, match=r"zaremba/ensemble\.json: .*delete the file"):
        main(["--results", str(folder)])


def write_ablation(
    path: Path, temperature: float, *perplexities: tuple[str, str | None, int, float], **changes: Any
) -> None:
    for mean, _, _, ppl in perplexities:
        if mean == "approximation":
            set_test_perplexity(path, ppl)
    choices = [
        {"mean": mean, "masks": masks, "samples": samples, "test_ppl": ppl}
        | {"temperature": temperature, "test_ppl_tempered": ppl - 1}
        for mean, masks, samples, ppl in perplexities
    ]
    report = {"tested_epoch": 3, "choices": choices, "provenance": {"commit": "ab" * 9, "dirty": False}} | changes
    path.with_name(f"ablation_{path.name}").write_text(json.dumps(report))


def test_test_time_choices_have_a_table_where_they_were_evaluated(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba")
    assert ablation_table(load_results(folder)).empty
    assert "test-time choices" not in to_markdown(load_results(folder), ["ptb"])
    for seed, temperature, ppl in ((0, 0.9, 80.0), (1, 0.95, 82.0)):
        path = write_result("ptb", "medium", "variational_tied", seed=seed)
        write_ablation(path, temperature, ("approximation", None, 0, ppl), ("geometric", "stream", 20, ppl + 4))
    first, second = (line for _, line in ablation_table(load_results(folder)).iterrows())
    assert list(first)[:7] == [
        *("medium, Variational (tied)", "approximation", "–", "–"),
        *("81.0 ± 1.4", "80.0 ± 1.4", "0.9, 0.95"),
    ]
    assert list(second[["mean", "masks per", "K", "test", "seeds"]]) == ["geometric", "stream", "20", "85.0 ± 1.4", "2"]
    text = to_markdown(load_results(folder), ["ptb"])
    assert "#### Beyond the paper: test-time choices" in text
    assert "- medium, Variational (tied), seed 1: evaluated by commit abababa" in text
    assert ablation_table(load_results(folder), ["small"]).empty


def test_a_discarded_seed_is_none_of_an_ablation_even_if_no_other_was_evaluated(
    folder: Path, write_result: WriteResult
) -> None:
    paths = [
        write_result("ptb", "small", "zaremba", seed=seed, metrics=perplexities(valid))
        for seed, valid in enumerate((130.0, 131.0, 400.0))
    ]
    write_ablation(paths[2], 1.0, ("approximation", None, 0, 390.0))
    assert ablation_table(load_results(folder)).empty
    write_ablation(paths[0], 1.0, ("approximation", None, 0, 120.0))
    [row] = ablation_table(load_results(folder)).to_dict("records")
    assert (row["test"], row["seeds"]) == ("120.0", "1 of 2")


def test_an_ablation_says_which_words_were_dropped_where_it_is_not_as_usual(
    folder: Path, write_result: WriteResult
) -> None:
    kept = {"config": {"model": {"init_args": {"mc_masks": "both", "mc_word_dropout": False}}}}
    for seed, changes in ((0, {}), (1, kept)):
        path = write_result("ptb", "v1", "variational_tied", seed=seed)
        write_ablation(path, 1.0, ("arithmetic", "stream", 2, 90.0), ("arithmetic", "window", 2, 95.0), **changes)
    table = ablation_table(load_results(folder))
    assert dict(zip(table["masks per"], table["seeds"], strict=True)) == {
        "stream": "2",
        "window": "1",
        "window, words kept": "1",
    }


def test_a_temperature_at_an_end_of_the_range_is_marked(folder: Path, write_result: WriteResult) -> None:
    for seed, temperature in enumerate((TEMPERATURES[0], 1.0, TEMPERATURES[-1])):
        path = write_result("ptb", "small", "zaremba", seed=seed)
        write_ablation(path, temperature, ("approximation", None, 0, 90.0))
    [row] = ablation_table(load_results(folder)).to_dict("records")
    assert row["temperature"] == "≤ 0.7, 1, ≥ 1.3"
    assert "of 0.7, 0.75, ..., 1.3 the one" in to_markdown(load_results(folder), ["ptb"])


def test_mc_has_a_line_in_every_row_that_was_tested_by_it(folder: Path, write_result: WriteResult) -> None:
    metrics = perplexities(test_ppl_mc=81.0, mc_samples=20)
    path = write_result("ptb", "inan_small", "vd_real", metrics=metrics)
    table = ptb_table("inan_small", load_results(folder))
    assert list(table["row"]) == ["VD-LSTM", "VD-LSTM + AL", "VD-LSTM + RE", "VD-LSTM + REAL", "VD-LSTM + REAL, MC"]
    assert line(table, "VD-LSTM + REAL, MC")["test, ours"] == "81.0"
    write_ensemble(path, test_ppl=[85.0, 83.0], test_ppl_mc=[81.0, 80.0])
    ensembles = ensemble_table(load_results(folder))
    assert line(ensembles, "inan_small, VD-LSTM + REAL, MC")["test, ours"] == "80.0"


def test_an_ablation_of_other_weights_or_that_cannot_be_read_ends_with_one_message(
    folder: Path, write_result: WriteResult
) -> None:
    path = write_result("ptb", "small", "zaremba")
    write_ablation(path, 1.0, ("approximation", None, 0, 85.0))
    assert "test-time choices" in to_markdown(load_results(folder), ["ptb"])
    set_test_perplexity(path, 87.0)
    with pytest.raises(SystemExit, match=r"ablation_seed0\.json: the test_ppl of seed 0 alone is 85, .* says 87"):
        main(["--results", str(folder)])
    write_ablation(path, 1.0, provenance={"dirty": False, "run": [{"date": "2016-01-01"}]})
    with pytest.raises(
        SystemExit, match=r"ablation_seed0\.json: .* of a run begun 2016-01-01, but .* begun 2026-01-02"
    ):
        main(["--results", str(folder)])
    write_ablation(path, 1.0, tested_epoch=2)
    with pytest.raises(SystemExit, match=r"ablation_seed0\.json: of the weights after epoch 2, .* run `make ablation`"):
        main(["--results", str(folder)])
    for text in ("{", "{}", '{"tested_epoch": 3, "choices": [1], "provenance": {}}'):
        path.with_name("ablation_seed0.json").write_text(text)
        with pytest.raises(SystemExit, match=r"zaremba/ablation_seed0\.json: .*delete the file"):
            main(["--results", str(folder)])


def test_other_readings_of_a_row_stand_beside_its_published_numbers(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "medium", "moon_loop")
    table = ptb_table("medium", load_results(folder))
    assert line(table, "Moon, scaled in the loop")["valid, paper"] == "100.7"
    write_result("ptb", "inan_small", "vd_al_stop")
    table = ptb_table("inan_small", load_results(folder))
    assert line(table, "VD-LSTM + AL, y fixed")["valid, paper"] == "86.3"


def test_a_constant_learning_rate_has_the_lowest_perplexity_beside_the_last(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [{"epoch": 1, "valid_ppl": 95.0}, {"epoch": 2, "valid_ppl": 88.0}, {"epoch": 3, "valid_ppl": 90.0}]
    write_result("ptb", "medium_constant", "zaremba", curve=curve)
    table = ptb_table("medium_constant", load_results(folder))
    assert line(table, "Zaremba et al.")["valid, lowest"] == "88.0"
    assert "valid, lowest" not in ptb_table("medium", [])


def test_the_first_paragraph_of_notes_stands_below_a_table_and_the_others_are_folded(
    folder: Path, write_result: WriteResult
) -> None:
    (write_result("ptb", "small", "zaremba").parents[1] / "notes.md").write_text("What was tried.\n\nAnd how.\n")
    shown, folded = to_markdown(load_results(folder), ["ptb"]).split("<details>")[:2]
    assert "\n\nWhat was tried.\n\n" in shown
    assert "\n\nAnd how.\n\n</details>" in folded


# --- texts of one's own -----------------------------------------------------------------------------------------------


def test_groups_of_ones_own_have_the_table_of_their_task_without_published_numbers(
    folder: Path, write_result: WriteResult
) -> None:
    for seed, ppl in enumerate((80.0, 90.0)):
        metrics = perplexities(valid=ppl, test=ppl + 1, train_eval_ppl=ppl - 1, test_ppl_sliding=ppl / 2)
        curve = [{"epoch": epoch, "words_per_s": speed} for epoch, speed in ((1, 3e4), (2, 3e4), (3, 1e4))]
        write_result("mine", "gal1250", "variational_untied", seed=seed, metrics=metrics, curve=curve)
    rmse = {
        "train_rmse": 8.0,
        "train_rmse_all": 9.0,
        "test_rmse": 12.0,
        "test_rmse_review": 10.0,
        "constant_rmse": 25.0,
    }
    write_result("mine", "length_sweep", "my row", metrics=rmse, curve=[{"epoch": 1, "test_rmse": 11.0}])
    language, ratings = sections("mine", load_results(folder))
    assert (language.title, ratings.title) == ("mine, gal1250", "mine, length_sweep")
    shown = line(language.table, "Variational (untied)")
    assert [shown[name] for name in ("train", "valid", "test", "test, sliding")] == [
        *("84.0 ± 7.1", "85.0 ± 7.1", "86.0 ± 7.1", "42.5 ± 3.5")
    ]
    assert shown["test, MC"] == "–", "which nobody planned"
    assert line(ratings.table, "Constant predictor")["test"] == "25.0000"
    assert [line(ratings.table, "my row")[name] for name in ("train", "test", "test, lowest")] == [
        *("8.0000", "12.0000", "11.0000")
    ]
    assert "held out" not in ratings.table
    text = to_markdown(load_results(folder), ["mine"])
    assert "paper" not in text
    assert "not run" not in text
    assert shown["words/s, training"] == "30.0K", "the median of the epochs"


def test_predictive_distributions_on_ones_own_texts_are_shown_where_some_were_held_out(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("mine", "a", "row", metrics={"test_rmse": 2.0, "valid_rmse": 2.5, "test_log_likelihood": -1.25})
    [section] = sections("mine", load_results(folder))
    assert line(section.table, "row")["held out"] == "2.5000"
    assert line(section.table, "row")["log likelihood"] == "-1.250"


def test_a_group_on_different_texts_has_no_common_constant_predictor(folder: Path, write_result: WriteResult) -> None:
    for row, constant in (("a", 1.0), ("b", 2.0)):
        write_result("mine", "group", row, metrics={"test_rmse": 0.5, "constant_rmse": constant})
    assert list(sections("mine", load_results(folder))[0].table["row"]) == ["a", "b"]


def test_all_experiments_are_shown_but_sweeps_and_an_unknown_one_is_answered_with_those_there(
    folder: Path, write_result: WriteResult, capsys: pytest.CaptureFixture[str]
) -> None:
    for experiment in ("mine", "sweeps"):
        write_result(experiment, "group", "row")
    main(["--results", str(folder)])
    shown = capsys.readouterr().out
    assert "#### mine, group" in shown
    assert "sweeps, group" not in shown
    with pytest.raises(SystemExit, match=r"no experiment 'yours'; choose from: ptb, sentiment, demo, mine$"):
        main(["--results", str(folder), "--experiment", "yours"])


# --- every column is that of its name ---------------------------------------------------------------------------------


def test_every_column_of_ratings_has_the_metric_of_its_name(folder: Path, write_result: WriteResult) -> None:
    metrics = {
        "train, all": "train_rmse_all",
        "train": "train_rmse",
        "test": "test_rmse",
        "test, MC": "test_rmse_mc",
        "test, by review": "test_rmse_review",
        "test, by review, MC": "test_rmse_review_mc",
        "held out": "valid_rmse",
        "log likelihood": "test_log_likelihood",
        "log likelihood, MC": "test_log_likelihood_mc",
        "within 50 %": "test_coverage_50",
        "within 50 %, MC": "test_coverage_50_mc",
        "within 90 %": "test_coverage_90",
        "within 90 %, MC": "test_coverage_90_mc",
    }
    values = {metric: 0.11 + i / 100 for i, metric in enumerate(metrics.values())}
    for seed in (0, 1):
        changed = values | {"constant_rmse": 0.1915, "mc_samples": 50}
        write_result("sentiment", "fair", "variational_lstm", seed=seed, metrics=changed)
    [section] = [part for part in sections("sentiment", load_results(folder)) if part.name == "sentiment_fair"]
    shown = line(section.table, "Variational LSTM")
    assert {column: float(shown[column].split(" ± ")[0]) for column in metrics} == pytest.approx(
        {column: values[metric] for column, metric in metrics.items()}
    )
    assert (shown["K"], shown["seeds"]) == ("50", "2")


def test_every_column_of_perplexities_has_the_metric_of_its_name(folder: Path, write_result: WriteResult) -> None:
    values = {
        "train": ("train_eval_ppl", 61.0),
        "valid": ("valid_ppl", 62.0),
        "test": ("test_ppl", 63.0),
        "test, sliding": ("test_ppl_sliding", 64.0),
        "test, MC": ("test_ppl_mc", 65.0),
        "test, MC, masks per window": ("test_ppl_mc_window", 66.0),
    }
    metrics = dict(values.values()) | {"valid_ppl_lua": 60.0, "mc_samples": 20}
    write_result("mine", "texts", "row", metrics=metrics)
    without_mc = {name: value for name, value in metrics.items() if "mc" not in name}
    write_result("mine", "texts", "row", seed=1, metrics=without_mc)
    own = line(language_model_table("mine", "texts", load_results(folder)), "row")
    shown = {column: own[column].split(" ± ")[0] for column in values}
    assert shown == {column: f"{ppl}" for column, (_, ppl) in values.items()}
    assert own["K"] == "20"
    write_result("ptb", "small", "variational_tied", metrics=metrics)
    table = ptb_table("small", load_results(folder))
    plain = line(table, "Variational (tied)")
    columns = ("valid, paper", "valid, as printed", "valid, exact", "test, paper", "test, ours", "test, sliding", "K")
    assert [plain[name] for name in columns] == ["n/a", "60.0", "62.0", "n/a", "63.0", "64.0", "–"]
    for name, ppl in (("MC", "65.0"), ("MC, masks per window", "66.0")):
        shown = line(table, f"Variational (tied, {name})")
        assert (shown["test, ours"], shown["K"], shown["valid, exact"]) == (ppl, "20", "–")


def test_a_curve_as_long_as_its_end_has_no_end_and_a_diverged_one_no_lowest_error(
    folder: Path, write_result: WriteResult
) -> None:
    for row, epochs in (("standard_lstm", 25), ("naive_lstm", 26)):
        curve = [{"epoch": epoch, "test_rmse": 0.1 + epoch / 1000} for epoch in range(1, epochs + 1)]
        write_result("sentiment", "figure2", row, epochs=epochs, planned_epochs=epochs, curve=curve)
    diverged = [{"epoch": epoch, "test_rmse": 0.01} for epoch in range(1, 27)]
    more = {"curve": diverged, "metrics": {"test_rmse": None, "constant_rmse": 0.19}}
    write_result("sentiment", "figure2", "naive_lstm", seed=1, epochs=26, planned_epochs=26, **more)
    table = sentiment_table("sentiment", "figure2", load_results(folder))
    assert line(table, "Standard LSTM")["test, end"] == "–"
    naive = line(table, "Naive LSTM")
    assert (naive["test, end"], naive["test, lowest"], naive["seeds"]) == ("0.1140", "0.1010", "1 of 2")


def test_the_trajectory_of_several_seeds_is_their_mean_and_its_ratio_to_the_log(
    folder: Path, write_result: WriteResult
) -> None:
    for seed, ppl in enumerate((290.0, 310.0)):
        curve = [{"epoch": 1, "valid_ppl_lua": ppl, "valid_ppl": 1.0}]
        write_result("ptb", "gal1250", "variational_untied", seed=seed, epochs=1, planned_epochs=1, curve=curve)
    text = to_markdown(load_results(folder), ["ptb"], ["gal1250"])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["1", "292.8", "300.0 ± 14.1", "1.025"] in lines


def test_a_run_of_the_authors_setting_that_diverged_has_no_trajectory_and_leaves_those_of_other_seeds(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [{"epoch": 1, "valid_ppl_lua": 300.0}, {"epoch": 2, "valid_ppl_lua": None}]
    diverged = {"epochs": 2, "curve": curve, "metrics": {"valid_ppl": None, "test_ppl": None}}
    for seed, expected in ((0, ["diverged", "–"]), (1, ["290.0", "0.990"])):
        more = diverged if seed == 0 else {"epochs": 2, "curve": [{"epoch": 1, "valid_ppl_lua": 290.0}, {"epoch": 2}]}
        write_result("ptb", "gal1250", "variational_untied", seed=seed, **more)
        text = to_markdown(load_results(folder), ["ptb"], ["gal1250"])
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
        assert ["1", "292.8", *expected] in lines


def test_an_ensemble_says_how_many_samples_only_its_mc_was_made_of(folder: Path, write_result: WriteResult) -> None:
    write_ensemble(write_result("ptb", "medium", "zaremba"), test_ppl=[82.0, 77.1])
    mc = {"test_ppl": [79.0, 75.0], "test_ppl_mc": [78.0, 74.0]}
    write_ensemble(write_result("ptb", "large", "variational_untied"), **mc)
    table = ensemble_table(load_results(folder)).set_index(["row", "models"])
    assert table.loc["medium, Zaremba et al.", "2"]["K"] == "–"
    assert table.loc["large, Variational (untied, MC)", "2"]["K"] == "100"


def test_the_origin_tells_the_tested_epoch_and_the_devices(folder: Path, write_result: WriteResult) -> None:
    path = write_result("ptb", "small", "zaremba", epochs=3, planned_epochs=9, tested_epoch=2)
    text = path.read_text()
    path.write_text(text.replace('"devices": 1', '"devices": 4').replace('"gpu": null', '"gpu": "Some GPU"'))
    shown = to_markdown(load_results(folder), ["ptb"])
    assert "4 × Some GPU, 1 h 2 min, tested after epoch 2 of 9, " in shown


def test_mc_of_fewer_seeds_than_were_run_counts_those_that_have_it(folder: Path, write_result: WriteResult) -> None:
    for seed in range(4):
        more = {"test_ppl_mc": 80.0, "mc_samples": 10} if seed < 2 else {}
        valid = 400.0 if seed == 3 else 90.0
        write_result("ptb", "medium", "variational_tied", seed=seed, metrics=perplexities(valid=valid, **more))
    table = ptb_table("medium", load_results(folder))
    assert line(table, "Variational (tied)")["seeds"] == "3 of 4"
    assert line(table, "Variational (tied, MC)")["seeds"] == "2 of 4"


def test_the_speed_of_a_diverged_run_is_not_in_the_mean(folder: Path, write_result: WriteResult) -> None:
    config = {"data": {"class_path": "datamodules.PennTreebank", "init_args": {"batch_size": 20, "window": 35}}}
    for seed, (seconds, valid) in enumerate(((200.0, 90.0), (200.0, 90.0), (50.0, 900.0))):
        curve = [{"epoch": epoch, "seconds": seconds} for epoch in (1, 2, 3)]
        more = {"metrics": perplexities(valid=valid), "curve": curve, "config": config}
        write_result("ptb", "medium", "zaremba", seed=seed, **more)
    # 1,327 windows of 35 words in 20 streams, in 200 s
    assert (
        line(ptb_table("medium", load_results(folder)), "Zaremba et al.")["words/s"] == f"{1327 * 35 * 20 / 2e5:.1f}K"
    )


def test_published_errors_of_the_constant_predictor_stand_where_nothing_was_measured(folder: Path) -> None:
    shown = line(sentiment_table("sentiment", "figure2", [], folder), "Constant predictor")
    published = catalogue()["sentiment"].constant_predictor
    assert (shown["train, all"], shown["test"]) == (f"{published['train_rmse']:.4f}", f"{published['test_rmse']:.4f}")
    assert published["train_rmse"] != published["test_rmse"]


def test_a_discarded_seed_is_one_of_those_whose_choices_were_evaluated(folder: Path, write_result: WriteResult) -> None:
    for seed, valid in enumerate((130.0, 131.0, 132.0, 400.0)):
        path = write_result("ptb", "small", "zaremba", seed=seed, metrics=perplexities(valid))
        if seed != 2:
            write_ablation(path, 1.0, ("approximation", None, 0, 120.0))
    [row] = ablation_table(load_results(folder)).to_dict("records")
    assert row["seeds"] == "2 of 3"
