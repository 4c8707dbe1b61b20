"""Figures of learning curves from result files, as PNG and SVG: `python -m reproduction.figures --help`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import pandas as pd
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from experiments import print_any_text
from experiments.results import Result, ResultError, chosen_experiments, comparable, groups_with, load_results, title
from reproduction.tables import LOG, baselines

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

PERPLEXITY = "perplexity per word"
"""The label of axes that are logarithmic."""

LOG_LABEL = "the authors' log (valid as printed)"

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


BASELINE_STYLES = ("-.", "--")
"""Of the constant predictor and the ridge regression."""


@dataclass(frozen=True)
class Lines:
    """The curves of a metric, in one line style, and what that style means where a legend has to say it."""

    metric: str
    style: Literal["solid", "dashed", "dotted"] = "solid"
    meaning: str = ""


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows over epochs: our curves, and what stands beside them.

    `log` is a column of the authors' public log, `baselines` the errors of what needs no network, by name.
    """

    title: str
    ylabel: str
    lines: list[Lines]
    log: str | None = None
    baselines: dict[str, float] = field(default_factory=dict)


def panels(experiment: str, group: str, results: list[Result]) -> list[Panel]:
    """What is drawn of a group: training beside held-out error or, in the demo, both in one panel.

    Groups of texts of one's own are drawn as those of Penn Treebank or of film reviews.

    The training perplexity is the one with dropout off where every run has it: only then rows can be compared. The
    authors' log has the other, and validation as printed. Where the test set of film reviews was also predicted by
    sampled networks, their error is dotted. The demo's language model has the validation set for held-out data.
    """
    folder = next((run.path.parents[3] for run in results), None)
    levels = {name.lower(): its["test"] for name, its in baselines(experiment, group, results, folder).items()}
    is_language = any(run.is_language for run in results)
    if is_language and experiment != "demo":
        is_logged = (experiment, group) == ("ptb", "gal1250")
        has_eval = all(run.points("train_eval_ppl")[0] for run in results)
        train, mode = ("train_eval_ppl", "off") if has_eval and not is_logged else ("train_ppl", "on")
        logs = ("train_ppl_with_dropout_running", "valid_ppl_as_printed") if is_logged else (None, None)
        valid, kind = ("valid_ppl_lua", "as printed") if is_logged else ("valid_ppl", "dropout off")
        return [
            Panel(f"Training (dropout {mode})", PERPLEXITY, [Lines(train)], log=logs[0]),
            Panel(f"Validation ({kind})", PERPLEXITY, [Lines(valid)], log=logs[1]),
        ]
    if experiment != "demo":
        is_film = experiment == "sentiment"
        ylabel = "RMSE (rating units, 0 to 1)" if is_film else "RMSE (rating units)"
        test = [Lines("test_rmse"), Lines("test_rmse_mc", "dotted", "MC, 10 networks")]
        return [
            Panel(f"Training error (first {'100 ' if is_film else ''}chunks)", ylabel, [Lines("train_rmse")]),
            Panel("Test error", ylabel, test, baselines=levels),
        ]
    held_out, train = "test_rmse", "train_rmse"
    heading, ylabel = "Sentiment regression", "RMSE (rating units, −4 to 4)"
    if group == "language_model":
        has_eval = any(run.points("train_eval_ppl")[0] for run in results)
        held_out, train = "valid_ppl", "train_eval_ppl" if has_eval else "train_ppl"
        heading, ylabel = f"Language model{'' if has_eval else ' (training: dropout on)'}", PERPLEXITY
        levels = {}
    lines = [Lines(held_out, "solid", "held-out data"), Lines(train, "dashed", "training data")]
    return [Panel(heading, ylabel, lines, baselines=levels)]


def draw_group(experiment: str, group: str, results: list[Result]) -> Figure:
    """Training and held-out error per epoch: Figure 3 of the paper (2 and 10 of its first version), and its like."""
    return _draw(title(experiment, group), [(panel, results) for panel in panels(experiment, group, results)])


def draw_mc(experiment: str, group: str, results: list[Result]) -> Figure:
    """Test perplexity by the number of MC samples, beside that of the approximation, of a group of language models."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    figure.suptitle(fill(title(experiment, group), 55), x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots()
    for run in results:
        counts, values = run.mc_points
        if not counts:
            continue
        colour = colours(results)[run.row]
        axes.plot(counts, values, color=colour, marker="o", label=name(run))
        if "test_ppl" in run.metrics:  # not where that alone diverged
            axes.axhline(run.metrics["test_ppl"], color=colour, linestyle="--")
    axes.set(title="Test, MC dropout", xlabel="samples K", ylabel=PERPLEXITY, xscale="log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _legend(figure, [Line2D([], [], color=GREY, linestyle="--", label="dropout approximation")])
    return figure


def draw_demo(results: list[Result]) -> Figure:
    """Curves of the demo per epoch: training data dashed, held-out data solid.

    Without dropout the two come apart (overfitting); with variational dropout they stay together.
    """
    runs = groups_with("demo", results)
    groups = ("language_model", "sentiment")
    parts = [(panel, runs[group]) for group in groups for panel in panels("demo", group, runs[group])]
    return _draw("Which dropout stops overfitting?", parts)


def draw_curves(axes: Axes, results: list[Result], metric: str, style: str = "solid") -> None:
    """One line for each row that has `metric` in its curves: the mean of its seeds, their range shaded.

    Runs of different length or settings are different lines of one colour. Only solid lines are in the legend.
    """
    colour_of = colours(results)
    shown = [run for run in results if run.points(metric)[0]]
    for row in dict.fromkeys(run.row for run in shown):
        for runs in comparable([run for run in shown if run.row == row]):
            _draw_seeds(axes, runs, metric, colour_of[row], style)


def _draw_seeds(axes: Axes, runs: list[Result], metric: str, colour: str, style: str) -> None:
    """The mean of runs that may be averaged, their range shaded."""
    curves = pd.DataFrame({run.seed: pd.Series(dict(zip(*run.points(metric), strict=True))) for run in runs})
    axes.plot(
        curves.index,
        curves.mean(axis=1),
        color=colour,
        linestyle=style,
        marker="o" if len(curves) <= 5 else None,
        label=name(runs[0]) if style == "solid" else None,
    )
    if len(runs) > 1:
        lowest, highest = curves.min(axis=1), curves.max(axis=1)
        axes.fill_between(curves.index, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def colours(results: list[Result]) -> dict[str, str]:
    """The colour of each row of a group."""
    rows = dict.fromkeys(run.row for run in results)
    named = {row: COLOURS.get(row.removesuffix("_lstm").removesuffix("_gru")) for row in rows}
    unnamed = iter(colour for colour in SEQUENCE if colour not in named.values())
    return {row: colour or next(unnamed, GREY) for row, colour in named.items()}


def name(run: Result) -> str:
    """What a legend calls a run: its row, and its length if it was shortened."""
    return f"{run.label} ({run.length})" if run.shortened else run.label


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` as `path`.png and `path`.svg and return the two paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], metadata={"Software": None})
    figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


def _draw(heading: str, parts: list[tuple[Panel, list[Result]]]) -> Figure:
    """Two panels beside each other and one legend."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(fill(heading, 85), x=0.01, ha="left", fontweight="bold")
    styles = {}
    for axes, (panel, results) in zip(figure.subplots(1, 2), parts, strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for lines in panel.lines:
            draw_curves(axes, results, lines.metric, lines.style)
            if lines.meaning and any(run.points(lines.metric)[0] for run in results):
                styles[lines.meaning] = Line2D([], [], color=GREY, linestyle=lines.style, label=lines.meaning)
        if results and not any(run.points(lines.metric)[0] for run in results for lines in panel.lines):
            axes.text(0.5, 0.5, "diverged: no finite value", transform=axes.transAxes, ha="center", color=GREY)
        if panel.log:
            log = pd.read_csv(LOG)
            axes.plot(log["epoch"], log[panel.log], color=GREY, linestyle=":", label=LOG_LABEL)
        for (name, error), dashes in zip(panel.baselines.items(), BASELINE_STYLES, strict=False):
            axes.axhline(error, color=GREY, linewidth=1.2, linestyle=dashes, label=name)
        axes.set(title=panel.title, xlabel="epoch", ylabel=panel.ylabel)
        if panel.ylabel == PERPLEXITY:
            _perplexity_axis(axes)
    left, right = figure.axes
    if left.get_ylabel() == right.get_ylabel():
        right.set_ylabel("")
    _legend(figure, list(styles.values()))
    return figure


def _perplexity_axis(axes: Axes) -> None:
    """A log scale, on which equal steps are equal gains in nats per word, with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 15 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _legend(figure: Figure, more: Sequence[Artist] = ()) -> None:
    """One legend below both panels, with each label once; none where nothing is drawn."""
    entries = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles = [*entries.values(), *more]
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = int(figure.get_figwidth() * 11.6) // (longest + 8)  # what the figure is wide enough for, in characters
    wanted = len(handles) if len(handles) < 5 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, min(wanted, fitting)))


def main(arguments: list[str] | None = None) -> None:
    """Draw the figures of every group that has results."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.figures", description="Learning curves as PNG and SVG."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write to (figures, in the folder of results)")
    parser.add_argument("--experiment", help="one experiment only (default: all)")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.results)
        experiments = chosen_experiments([options.experiment] if options.experiment else None, results)
    except ResultError as error:
        sys.exit(str(error))

    with style.context(STYLE):
        figures: dict[str, Figure] = {}
        for experiment in experiments:
            groups = {group: runs for group, runs in groups_with(experiment, results).items() if runs}
            if experiment == "demo":
                figures |= {"demo": draw_demo(results)} if groups else {}
                continue
            for group, runs in groups.items():
                figures[f"{experiment}_{group}"] = draw_group(experiment, group, runs)
                if any(len(run.mc_points[0]) > 1 for run in runs):
                    figures[f"{experiment}_{group}_mc"] = draw_mc(experiment, group, runs)
        if not figures:
            sys.exit(f"{options.results}: no results to draw; run `make demo` first")
        for name, figure in figures.items():
            print(*save(figure, (options.out or options.results / "figures") / name), sep="\n")


if __name__ == "__main__":
    print_any_text()
    main()
