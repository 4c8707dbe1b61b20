"""Figures of learning curves from result files, as PNG and SVG: `python -m reproduction.figures --help`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from reproduction.results import GROUPS, Result, ResultError, groups_with, load_results, title
from reproduction.table import LOG, constant_rmse

# Okabe and Ito's palette, which stays distinct under the common kinds of colour blindness. Schemes that are the same
# method have the same colour in every figure.
VERMILLION, ORANGE, BLUE, SKY, PURPLE, GREEN, YELLOW, BLACK, GREY = (
    "#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#000000", "#666666",
)  # fmt: skip
COLOURS = {
    "non_regularized": VERMILLION,
    "moon": PURPLE,
    "moon_embedding": GREEN,
    "moon_loop": YELLOW,
    "moon_fresh": BLACK,
    "zaremba": ORANGE,
    "variational_tied": SKY,
    "variational_untied": BLUE,
    "standard": VERMILLION,
    "naive": ORANGE,
    "variational": BLUE,
}

SEQUENCE = [SKY, BLUE, GREEN, ORANGE, VERMILLION, PURPLE, YELLOW, BLACK]
"""Of the rows that have no colour of their own, in their order: the steps of a sweep."""

STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.edgecolor": GREY,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "reproduction",  # with no date in the metadata: the same curves give the same file
}


def draw_language_models(group: str, results: list[Result]) -> Figure:
    """Training and validation perplexity per epoch of one size of Penn Treebank, a line for each row and seed.

    The training perplexity is the one with dropout off where every epoch has it: only then rows can be compared. The
    authors' log has the other.
    """
    figure, (left, right) = _panels(title("ptb", group))
    has_both = all("train_eval_ppl" in entry for run in results for entry in run.curve)
    train_metric = "train_eval_ppl" if has_both and group != "gal1250" else "train_ppl"
    draw_curves(left, results, train_metric)
    draw_curves(right, results, "valid_ppl")
    if group == "gal1250":
        log = pd.read_csv(LOG)
        for axes, metric in ((left, "train_ppl_with_dropout_running"), (right, "valid_ppl_as_printed")):
            axes.plot(log["epoch"], log[metric], color=GREY, linestyle=":", label="the authors' log (valid as printed)")
    mode = "off" if train_metric == "train_eval_ppl" else "on"
    left.set(title=f"Training (dropout {mode})", xlabel="epoch", ylabel="perplexity per word")
    right.set(title="Validation (dropout off)", xlabel="epoch")
    _perplexity_axis(left)
    _perplexity_axis(right)
    _legend(figure)
    return figure


def draw_mc(group: str, results: list[Result]) -> Figure:
    """Test perplexity by the number of MC samples, beside that of the approximation, of one Penn Treebank size."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    figure.suptitle(title("ptb", group), x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots()
    for run in results:
        counts, values = run.mc_points
        if not counts:
            continue
        colour = _colour(run.row) or GREY
        label = f"{run.label} ({run.length})" if run.shortened else run.label
        axes.plot(counts, values, color=colour, marker="o", label=label)
        axes.axhline(run.metrics["test_ppl"], color=colour, linestyle="--")
    axes.set(title="Test, MC dropout", xlabel="samples K", ylabel="perplexity per word", xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _legend(figure, [Line2D([], [], color=GREY, linestyle="--", label="dropout approximation")])
    return figure


def draw_sentiment(group: str, results: list[Result]) -> Figure:
    """Training and test RMSE in rating units per epoch: Figure 3 of the paper (2 and 10 of its first version).

    Where the test set was also predicted by sampled networks, their error is dotted.
    """
    figure, (left, right) = _panels(title("sentiment", group))
    draw_curves(left, results, "train_rmse")
    draw_curves(right, results, "test_rmse")
    draw_curves(right, results, "test_rmse_mc", style=":")
    left.set(title="Training error (first 100 chunks)", xlabel="epoch", ylabel="RMSE (rating units, 0 to 1)")
    right.set(title="Test error", xlabel="epoch")
    if group != "length_sweep":
        _constant_line(right, constant_rmse("sentiment", results))
    has_mc = any(run.points("test_rmse_mc")[0] for run in results)
    _legend(figure, [Line2D([], [], color=GREY, linestyle=":", label="MC, 10 networks")] if has_mc else [])
    return figure


def draw_demo(results: list[Result]) -> Figure:
    """Curves of the demo per epoch: training data dashed, held-out data solid.

    Without dropout the two come apart (overfitting); with variational dropout they stay together. The language
    model's held-out data are the validation set. Its training perplexity is the one with dropout off where the runs
    measured that, otherwise the one of the training steps.
    """
    figure, (left, right) = _panels("Which dropout stops overfitting?")
    runs = groups_with("demo", results)
    train_metric = "train_eval_ppl" if any(run.points("train_eval_ppl")[0] for run in results) else "train_ppl"
    draw_curves(left, runs["language_model"], "valid_ppl")
    draw_curves(left, runs["language_model"], train_metric, style="--")
    draw_curves(right, runs["sentiment"], "test_rmse")
    draw_curves(right, runs["sentiment"], "train_rmse", style="--")
    note = " (training: dropout on)" if train_metric == "train_ppl" else ""
    left.set(title=f"Language model{note}", xlabel="epoch", ylabel="perplexity per word")
    right.set(title="Sentiment regression", xlabel="epoch", ylabel="RMSE (rating units, −4 to 4)")
    _perplexity_axis(left)
    _constant_line(right, constant_rmse("demo", results))
    kinds = [
        Line2D([], [], color=GREY, label="held-out data"),
        Line2D([], [], color=GREY, linestyle="--", label="training data"),
    ]
    _legend(figure, kinds)
    return figure


def draw_curves(axes: Axes, results: list[Result], metric: str, style: str = "-") -> None:
    """One line for each row that has `metric` in its curves: the mean of its seeds, their range shaded.

    Runs of different length are different lines of one colour. Only solid lines have an entry in the legend.
    """
    unnamed = iter(SEQUENCE)
    colours = {run.row: _colour(run.row) or next(unnamed, GREY) for run in {run.row: run for run in results}.values()}
    lines: dict[str, list[Result]] = {}
    for run in results:
        if run.points(metric)[0]:
            lines.setdefault(f"{run.label} ({run.length})" if run.shortened else run.label, []).append(run)
    for label, runs in lines.items():
        curves = pd.DataFrame({run.seed: pd.Series(dict(zip(*run.points(metric), strict=True))) for run in runs})
        colour = colours[runs[0].row]
        axes.plot(
            curves.index,
            curves.mean(axis=1),
            color=colour,
            linestyle=style,
            marker="o" if len(curves) <= 5 else None,
            label=label if style == "-" else None,
        )
        if len(runs) > 1:
            lowest, highest = curves.min(axis=1), curves.max(axis=1)
            axes.fill_between(curves.index, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def _colour(row: str) -> str | None:
    return COLOURS.get(row.removesuffix("_lstm").removesuffix("_gru"))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` as `path`.png and `path`.svg and return the two paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


def _panels(heading: str) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(heading, x=0.01, ha="left", fontweight="bold")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, (left, right)


def _perplexity_axis(axes: Axes) -> None:
    """A log scale, on which equal steps are equal gains in nats per word, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _constant_line(axes: Axes, rmse: float | None) -> None:
    if rmse is not None:
        axes.axhline(rmse, color=GREY, linewidth=1.2, linestyle=":", label="constant predictor")


def _legend(figure: Figure, more: Sequence[Artist] = ()) -> None:
    """One legend below both panels, with each label once."""
    entries = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles = [*entries.values(), *more]
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = 105 // (longest + 8)  # what the figure is wide enough for, in characters
    wanted = len(handles) if len(handles) < 5 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(wanted, fitting)))


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures of every group that has results."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.figures", description="Learning curves as PNG and SVG."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write to (figures, in the folder of results)")
    parser.add_argument("--experiment", choices=list(GROUPS), help="one experiment only (default: all)")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.results)
    except ResultError as error:
        sys.exit(str(error))

    draw: dict[str, Callable[[str, list[Result]], Figure]] = {"ptb": draw_language_models, "sentiment": draw_sentiment}
    with style.context(STYLE):
        figures = {
            f"{experiment}_{group}": draw[experiment](group, runs)
            for experiment in draw
            if options.experiment in (None, experiment)
            for group, runs in groups_with(experiment, results).items()
            if runs
        }
        for group, runs in groups_with("ptb", results).items() if options.experiment in (None, "ptb") else ():
            if any(len(run.mc_points[0]) > 1 for run in runs):
                figures[f"ptb_{group}_mc"] = draw_mc(group, runs)
        demo = [run for run in results if run.experiment == "demo"]
        if demo and options.experiment in (None, "demo"):
            figures["demo"] = draw_demo(demo)
        if not figures:
            sys.exit(f"{options.results}: no results to draw; run `make demo` first")
        for name, figure in figures.items():
            print(*save(figure, (options.out or options.results / "figures") / name), sep="\n")


if __name__ == "__main__":
    main()
