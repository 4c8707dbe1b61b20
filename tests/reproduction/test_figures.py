import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.results import groups_with, load_results
from reproduction.figures import colours, draw_demo, draw_group, draw_mc, main
from reproduction.tables import LOG

WriteResult = Callable[..., Path]


def curves(axes: Axes) -> list[Line2D]:
    return [line for line in axes.get_lines() if line.get_label() != "constant predictor"]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_size_has_a_line_for_each_run_and_a_point_for_each_epoch(folder: Path, write_result: WriteResult) -> None:
    write_result("ptb", "small", "zaremba")
    write_result("ptb", "small", "variational_tied", seed=0)
    write_result("ptb", "small", "variational_tied", seed=1, epochs=2)
    figure = draw_group("ptb", "small", load_results(folder))
    for axes in figure.axes:
        assert [len(line.get_xdata()) for line in curves(axes)] == [3, 3, 2]
    assert list(curves(figure.axes[1])[0].get_ydata()) == pytest.approx([200.0, 150.0, 100.0 + 100.0 / 3])


def test_training_is_shown_with_dropout_off_only_where_every_run_has_that(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [{"epoch": 1, "train_ppl": 90.0, "train_eval_ppl": 70.0, "valid_ppl": 80.0}]
    write_result("ptb", "v1", "zaremba", epochs=1, curve=curve)
    left, _ = draw_group("ptb", "v1", load_results(folder)).axes
    assert "Training (dropout off)" in (left.get_title(loc="left"), left.get_title())
    assert list(left.get_lines()[0].get_ydata()) == [70.0]
    ours = {"epoch": 1, "train_ppl": 90.0, "valid_ppl": 80.0}
    write_result("ptb", "v1", "variational_tied", epochs=2, curve=[ours, curve[0] | {"epoch": 2}])  # not in every epoch
    left, _ = draw_group("ptb", "v1", load_results(folder)).axes
    assert "Training (dropout off)" in (left.get_title(loc="left"), left.get_title())
    assert [list(line.get_xdata()) for line in curves(left)] == [[1], [2]]
    write_result("ptb", "v1", "non_regularized", epochs=1, curve=[ours])
    left, _ = draw_group("ptb", "v1", load_results(folder)).axes
    assert "Training (dropout on)" in (left.get_title(loc="left"), left.get_title())
    assert left.get_lines()[0].get_ydata()[0] == 90.0


def test_beside_the_authors_log_stands_what_it_has_training_with_dropout_on_and_validation_as_printed(
    folder: Path, write_result: WriteResult
) -> None:
    curve = [{"epoch": 1, "train_ppl": 90.0, "train_eval_ppl": 70.0, "valid_ppl": 80.0, "valid_ppl_lua": 79.0}]
    write_result("ptb", "gal1250", "variational_untied", epochs=1, curve=curve)
    left, right = draw_group("ptb", "gal1250", load_results(folder)).axes
    assert list(left.get_lines()[0].get_ydata()) == [90.0]
    assert list(right.get_lines()[0].get_ydata()) == [79.0]


def test_seeds_share_a_colour_and_shortened_runs_are_marked_in_the_legend(
    folder: Path, write_result: WriteResult
) -> None:
    for seed in range(2):
        write_result("ptb", "small", "variational_tied", seed=seed)
    write_result("ptb", "small", "moon", epochs=2)
    figure = draw_group("ptb", "small", load_results(folder))
    assert legend(figure) == ["Moon et al. (2 of 3 epochs)", "Variational (tied)"]
    moon, tied = curves(figure.axes[1])
    assert moon.get_color() != tied.get_color()


def test_seeds_are_one_line_of_their_mean_in_a_band_of_their_range(folder: Path, write_result: WriteResult) -> None:
    for seed, ppl in enumerate((80.0, 90.0, 94.0)):
        curve = [{"epoch": 1, "train_ppl": 1.0, "valid_ppl": ppl}, {"epoch": 2, "train_ppl": 1.0, "valid_ppl": 70.0}]
        write_result("ptb", "small", "zaremba", seed=seed, epochs=2, curve=curve)
    _, right = draw_group("ptb", "small", load_results(folder)).axes
    [line] = curves(right)
    assert list(line.get_ydata()) == [88.0, 70.0]
    [band] = right.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (70.0, 94.0)


def test_seeds_with_other_settings_are_lines_of_their_own(folder: Path, write_result: WriteResult) -> None:
    for seed, precision in enumerate(("32-true", "bf16-mixed", "32-true")):
        write_result("ptb", "small", "zaremba", seed=seed, config={"trainer": {"precision": precision}})
    figure = draw_group("ptb", "small", load_results(folder))
    assert legend(figure) == ["Zaremba et al. [32-true]", "Zaremba et al. [bf16-mixed]"]
    assert len(figure.axes[1].collections) == 1, "a range, of the two that are alike"


def test_the_authors_log_has_its_training_and_validation_perplexity_at_their_epochs(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "gal1250", "variational_untied")
    log = pandas.read_csv(LOG)
    columns = ("train_ppl_with_dropout_running", "valid_ppl_as_printed")
    for axes, column in zip(draw_group("ptb", "gal1250", load_results(folder)).axes, columns, strict=True):
        [drawn] = [line for line in axes.get_lines() if line.get_label() == "the authors' log (valid as printed)"]
        assert list(drawn.get_xdata()) == list(range(1, 56)), axes.get_title()
        assert list(drawn.get_ydata()) == log[column].tolist()


def test_film_reviews_and_their_baselines_are_drawn_by_the_errors_of_their_panels(
    folder: Path, write_result: WriteResult
) -> None:
    write_result("sentiment", "figure2", "naive_lstm")
    errors = {"train_rmse": 0.18, "test_rmse": 0.19, "test_rmse_review": 0.17}
    ridge = {name: error - 0.02 for name, error in errors.items()}
    (folder / "sentiment/baselines.json").write_text(
        json.dumps({"splits": {"0": {"constant": errors, "ridge": ridge}}})
    )
    left, right = draw_group("sentiment", "figure2", load_results(folder)).axes
    assert [list(line.get_ydata()) for line in left.get_lines()] == [[0.2, 0.1, 0.2 / 3]]
    curve, constant, regression = right.get_lines()
    assert list(curve.get_ydata()) == pytest.approx([0.2, 0.15, 0.1 + 0.1 / 3])
    assert [(line.get_label(), line.get_ydata()[0], line.get_linestyle()) for line in (constant, regression)] == [
        ("constant predictor", 0.19, "-."),
        ("ridge regression on words", 0.17, "--"),
    ]


def test_the_demo_has_held_out_errors_solid_and_training_errors_dashed_in_the_units_of_its_ratings(
    folder: Path, write_result: WriteResult
) -> None:
    language = [{"epoch": 1, "train_eval_ppl": 70.0, "valid_ppl": 80.0}]
    write_result("demo", "language_model", "standard", epochs=1, curve=language)
    write_result("demo", "sentiment", "standard", epochs=1, curve=[{"epoch": 1, "train_rmse": 0.5, "test_rmse": 0.9}])
    figure = draw_demo(load_results(folder))
    for axes, held_out, training in zip(figure.axes, (80.0, 0.9), (70.0, 0.5), strict=True):
        drawn = {line.get_linestyle(): list(line.get_ydata()) for line in curves(axes)}
        assert drawn == {"-": [held_out], "--": [training]}
    assert [axes.get_ylabel() for axes in figure.axes] == ["perplexity per word", "RMSE (rating units, −4 to 4)"]


def test_mc_of_each_row_has_the_colour_and_the_approximation_of_that_row(
    folder: Path, write_result: WriteResult
) -> None:
    for row, ppl in (("variational_tied", 80.0), ("variational_untied", 85.0)):
        metrics = {"valid_ppl": 90.0, "test_ppl": ppl, "test_ppl_mc_1": 99.0, "test_ppl_mc": ppl - 1, "mc_samples": 5.0}
        write_result("ptb", "small", row, metrics=metrics)
    results = load_results(folder)
    tied, tied_level, untied, untied_level = draw_mc("ptb", "small", results).axes[0].get_lines()
    assert [list(line.get_ydata())[-1] for line in (tied, tied_level, untied, untied_level)] == [79.0, 80.0, 84.0, 85.0]
    colour = colours(results)
    for line, row in zip((tied, tied_level, untied, untied_level), 2 * ["tied"] + 2 * ["untied"], strict=True):
        assert line.get_color() == colour[f"variational_{row}"]


def test_the_steps_of_a_sweep_have_colours_of_their_own(folder: Path, write_result: WriteResult) -> None:
    for row in ("pu0.5_pe0.1", "pu0.5_pe0.2", "pu0.5_pe0.3", "pu0.5_pe0.4"):
        write_result("sentiment", "word_sweep", row)
    figure = draw_group("sentiment", "word_sweep", load_results(folder))
    assert len({line.get_color() for line in curves(figure.axes[1])}) == 4
    assert legend(figure)[:2] == ["p_U = 0.5, p_E = 0.1", "p_U = 0.5, p_E = 0.2"]


def test_mc_is_dotted_beside_the_approximation(folder: Path, write_result: WriteResult) -> None:
    curve = [
        {"epoch": e, "train_rmse": 0.1, "test_rmse": 0.2} | ({"test_rmse_mc": 0.19} if e == 2 else {}) for e in (1, 2)
    ]
    write_result("sentiment", "figure2", "variational_lstm", epochs=2, curve=curve)
    figure = draw_group("sentiment", "figure2", load_results(folder))
    approximation, mc = curves(figure.axes[1])
    assert (list(mc.get_xdata()), mc.get_linestyle(), mc.get_color()) == ([2], ":", approximation.get_color())
    assert legend(figure)[-1] == "MC, 10 networks"


def write_baselines(folder: Path, ridge: float) -> None:
    splits = {
        name: dict.fromkeys(("train_rmse", "test_rmse", "test_rmse_review"), error)
        for name, error in (("constant", 0.2), ("ridge", ridge))
    }
    (folder / "sentiment/baselines.json").write_text(json.dumps({"splits": {"0": splits}}))


def test_sentiment_shows_train_error_left_test_error_right_and_what_needs_no_network(
    folder: Path, write_result: WriteResult
) -> None:
    for row in ("standard_lstm", "naive_lstm", "variational_lstm"):
        write_result("sentiment", "figure2", row)
    figure = draw_group("sentiment", "figure2", load_results(folder))
    left, right = figure.axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in (left, right)] == [
        "Training error (first 100 chunks)",
        "Test error",
    ]
    assert list(curves(left)[0].get_ydata()) == pytest.approx([0.2, 0.1, 0.2 / 3])
    assert list(curves(right)[0].get_ydata()) == pytest.approx([0.2, 0.15, 0.1 + 0.1 / 3])
    assert legend(figure) == ["Standard LSTM", "Naive LSTM", "Variational LSTM", "constant predictor"]
    assert len(right.get_lines()) == 4
    write_baselines(folder, ridge=0.15)
    figure = draw_group("sentiment", "figure2", load_results(folder))
    assert legend(figure)[3:] == ["constant predictor", "ridge regression on words"]
    assert [list(line.get_ydata()) for line in figure.axes[1].get_lines()[3:]] == [[0.2, 0.2], [0.15, 0.15]]


def test_a_scheme_has_the_same_colour_in_every_figure(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure2", "naive_lstm")
    write_result("sentiment", "figure10", "naive_gru")
    write_result("demo", "sentiment", "naive")
    results = load_results(folder)
    figures = [
        draw_group("sentiment", "figure2", [run for run in results if run.group == "figure2"]),
        draw_group("sentiment", "figure10", [run for run in results if run.group == "figure10"]),
        draw_demo([run for run in results if run.experiment == "demo"]),
    ]
    assert len({curves(figure.axes[1])[0].get_color() for figure in figures}) == 1


def test_the_demo_draws_held_out_data_solid_and_training_data_dashed(folder: Path, write_result: WriteResult) -> None:
    for row in ("standard", "variational"):
        write_result("demo", "language_model", row)
        write_result("demo", "sentiment", row)
    figure = draw_demo(load_results(folder))
    for axes in figure.axes:
        assert [line.get_linestyle() for line in curves(axes)] == ["-", "-", "--", "--"]
        assert [len(line.get_xdata()) for line in curves(axes)] == [3, 3, 3, 3]
    assert legend(figure) == ["No dropout", "Variational dropout", "held-out data", "training data"]


def test_the_demo_prefers_the_training_perplexity_with_dropout_off(folder: Path, write_result: WriteResult) -> None:
    curve = [{"epoch": 1, "train_ppl": 90.0, "train_eval_ppl": 70.0, "valid_ppl": 80.0}]
    write_result("demo", "language_model", "standard", curve=curve)
    _, dashed = curves(draw_demo(load_results(folder)).axes[0])
    assert list(dashed.get_ydata()) == [70.0]


def test_no_two_rows_of_a_figure_share_a_colour(folder: Path, write_result: WriteResult) -> None:
    write_result("sentiment", "figure2", "naive_lstm")
    for row in ("constant_lstm", *(f"own{i}" for i in range(5))):
        write_result("sentiment", "window_masks", row)
    chosen = colours(groups_with("sentiment", load_results(folder))["window_masks"])
    assert "naive_lstm" in chosen
    assert len(set(chosen.values())) == len(chosen) == 7


def test_figures_are_written_as_png_and_svg_for_groups_with_results_only(
    folder: Path, tmp_path: Path, write_result: WriteResult
) -> None:
    write_result("ptb", "small", "zaremba")
    write_result("sentiment", "figure10", "standard_gru")
    write_result("demo", "sentiment", "standard")
    out = tmp_path / "figures"
    main(["--results", str(folder), "--out", str(out)])
    names = ["demo", "ptb_small", "sentiment_figure10"]
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))


def test_the_same_results_give_the_same_files(folder: Path, tmp_path: Path, write_result: WriteResult) -> None:
    write_result("demo", "sentiment", "standard")
    for name in ("first", "second"):
        main(["--results", str(folder), "--out", str(tmp_path / name), "--experiment", "demo"])
    for kind in ("svg", "png"):
        assert (tmp_path / f"first/demo.{kind}").read_bytes() == (tmp_path / f"second/demo.{kind}").read_bytes()


def test_without_results_figures_say_what_to_do(folder: Path) -> None:
    with pytest.raises(SystemExit, match="no results to draw; run `make demo` first"):
        main(["--results", str(folder)])


def test_mc_has_a_line_over_the_number_of_samples_and_the_approximation_beside_it(
    folder: Path, write_result: WriteResult
) -> None:
    metrics = {"valid_ppl": 90.0, "test_ppl": 85.0, "test_ppl_mc": 83.0, "mc_samples": 5.0}
    more = {"test_ppl_mc_2": 95.0, "test_ppl_mc_1": 120.0, "test_ppl_mc_window": 82.0, "test_ppl_mc_window_2": 99.0}
    write_result("ptb", "small", "variational_tied", metrics=metrics | more)
    write_result("ptb", "small", "zaremba")
    [axes] = draw_mc("ptb", "small", load_results(folder)).axes
    line, approximation = axes.get_lines()
    assert list(line.get_xdata()) == [1, 2, 5]
    assert list(line.get_ydata()) == [120.0, 95.0, 83.0]
    assert list(approximation.get_ydata()) == [85.0, 85.0]


def test_the_legend_of_mc_is_no_wider_than_the_figure(folder: Path, write_result: WriteResult) -> None:
    metrics = {"valid_ppl": 90.0, "test_ppl": 85.0, "test_ppl_mc_1": 99.0, "test_ppl_mc": 83.0, "mc_samples": 5.0}
    for row in ("variational_tied", "variational_untied"):
        write_result("ptb", "small", row, metrics=metrics)
    figure = draw_mc("ptb", "small", load_results(folder))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 < box.x0 < box.x1 < figure.bbox.x1


def test_a_group_whose_runs_all_diverged_is_drawn_as_such_beside_the_others(
    folder: Path, tmp_path: Path, write_result: WriteResult
) -> None:
    nothing = {"metrics": {"valid_ppl": None, "test_ppl": None}, "curve": [{"epoch": 1, "train_ppl": None}]}
    write_result("ptb", "small", "zaremba", **nothing)
    write_result("demo", "language_model", "standard", **nothing)
    write_result("demo", "sentiment", "standard")
    write_result("sentiment", "figure10", "standard_gru")
    main(["--results", str(folder), "--out", str(tmp_path / "figures")])
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"demo", "ptb_small", "sentiment_figure10"}
    results = load_results(folder)
    figure = draw_group("ptb", "small", [run for run in results if run.experiment == "ptb"])
    assert not figure.legends
    left, right = draw_demo([run for run in results if run.experiment == "demo"]).axes
    said = ["diverged: no finite value"]
    assert [[text.get_text() for text in axes.texts] for axes in (*figure.axes, left, right)] == [said, said, said, []]


def test_mc_is_drawn_where_the_approximation_alone_diverged(folder: Path, write_result: WriteResult) -> None:
    metrics = {"valid_ppl": 90.0, "test_ppl": None, "test_ppl_mc_1": 99.0, "test_ppl_mc": 83.0, "mc_samples": 5.0}
    write_result("ptb", "small", "variational_tied", metrics=metrics)
    [line] = draw_mc("ptb", "small", load_results(folder)).axes[0].get_lines()
    assert list(line.get_ydata()) == [99.0, 83.0]


def test_experiments_of_ones_own_are_drawn_by_their_task(
    folder: Path, tmp_path: Path, write_result: WriteResult
) -> None:
    write_result("mine", "gal1250", "my row", metrics={"valid_ppl": 9.0, "test_ppl": 8.0})
    rmse = {"test_rmse": 12.0, "constant_rmse": 25.0}
    curve = [{"epoch": e, "train_rmse": 9.0 / e, "test_rmse": 12.0} for e in (1, 2, 3)]
    write_result("mine", "ratings", "my row", metrics=rmse, curve=curve)
    main(["--results", str(folder), "--out", str(tmp_path / "figures"), "--experiment", "mine"])
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"mine_gal1250", "mine_ratings"}
    by_group = {run.group: [run] for run in load_results(folder)}
    language, ratings = (draw_group("mine", group, runs) for group, runs in by_group.items())
    assert legend(language) == ["my row"], "and no log of the authors"
    assert legend(ratings) == ["my row", "constant predictor"]
    assert list(ratings.axes[1].get_lines()[-1].get_ydata()) == [25.0, 25.0]
