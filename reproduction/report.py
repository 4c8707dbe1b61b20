"""One HTML page of all results, which needs no network: `python -m reproduction.report --help`."""

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from experiments import print_any_text
from experiments.files import write_atomically
from experiments.results import Result, ResultError, experiments_of, groups_with, load_results
from reproduction.figures import GREY, LOG_LABEL, PERPLEXITY, Panel, colours, name, panels
from reproduction.tables import LOG, TEXT, Section, heading, note, sections

DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
"""Plotly's names of the line styles, by CSS's and matplotlib's."""

# HTML in a note is shown, not executed, and nothing is fetched for it.
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

AXIS: dict[str, Any] = {
    "gridcolor": "#E6E6E6",
    "linecolor": GREY,
    "showline": True,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": GREY,
    "zeroline": False,
}
LAYOUT: dict[str, Any] = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
    "margin": {"l": 60, "r": 12, "t": 12, "b": 44},
    "showlegend": False,  # the page has controls for all panels of a group
    "hovermode": "closest",
    "hoverdistance": 50,  # pixels
    "xaxis": AXIS | {"title": {"text": "epoch", "font": {"size": 13}}},
    "yaxis": AXIS | {"title": {"font": {"size": 13}}},
}


@dataclass(frozen=True)
class Plot:
    """A panel in the page. `keys` are the meanings of line styles: CSS's name of the style, and a label."""

    title: str
    figure: go.Figure
    keys: list[tuple[str, str]]

    @property
    def json(self) -> Any:
        """The figure for Plotly's JavaScript; what is not finite is null."""
        return json.loads(str(self.figure.to_json()))


@dataclass(frozen=True)
class Part:
    """A section, the runs behind each of its origins (None if it is of several), and its curves."""

    section: Section
    runs: list[Result]
    plots: list[Plot]

    @property
    def has_results(self) -> bool:
        """Whether any of it was run. Without origins, a column of results is empty throughout where nothing was."""
        return bool(self.section.origins) or not self.section.table.isin(["not run", "–"]).all().any()

    @property
    def table(self) -> pd.DataFrame:
        """The table without what stands below it for each run."""
        return self.section.table.drop(columns=["hardware", "config"], errors="ignore")

    @property
    def origins(self) -> list[tuple[str, Result | None]]:
        """Where each result comes from, and its run (None where it is of several)."""
        return list(zip_longest(self.section.origins, self.runs))

    @property
    def rows(self) -> dict[str, str]:
        """Colour by name of the row."""
        return {name(run): colours(self.runs)[run.row] for run in self.runs}

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return sorted({run.seed for run in self.runs})


def draw(panel: Panel, results: list[Result]) -> Plot:
    """A panel over epochs, with a line for each run."""
    figure = go.Figure(layout=LAYOUT)
    digits = ".2f" if panel.ylabel == PERPLEXITY else ".4f"
    keys: list[tuple[str, str]] = []
    for lines in panel.lines:
        shown = [run for run in results if run.points(lines.metric)[0]]
        for run in shown:
            what = f"{lines.meaning}, " if lines.meaning else ""
            _add(figure, run, colours(results)[run.row], DASHES[lines.style], *run.points(lines.metric))
            figure.data[-1].hovertemplate = f"%{{fullData.name}}<br>{what}epoch %{{x}}: %{{y:{digits}}}<extra></extra>"
        if shown and lines.meaning:
            keys.append((lines.style, lines.meaning))
    if panel.log:
        log = pd.read_csv(LOG)
        line = {"color": GREY, "dash": "dot", "width": 1.6}
        figure.add_scatter(x=log["epoch"].tolist(), y=log[panel.log].tolist(), name=LOG_LABEL, mode="lines", line=line)
        keys.append(("dotted", LOG_LABEL))
    for (baseline, error), dashes in zip(panel.baselines.items(), ("solid", "dashed"), strict=False):  # dotted is MC
        figure.add_hline(error, line={"color": GREY, "width": 1.2, "dash": DASHES[dashes]})
        keys.append((dashes, baseline))
    figure.update_yaxes(title_text=panel.ylabel)
    if panel.ylabel == PERPLEXITY:
        values = [value for line in figure.data for value in line.y]
        # Over about a decade, Plotly would write 70, 80, 90 and 100 on top of each other if allowed more ticks.
        ticks = 3 if values and max(values) > 8 * min(values) else None
        figure.update_yaxes(type="log", tickformat="~g", nticks=ticks)
    return Plot(panel.title, figure, keys)


def draw_mc(results: list[Result]) -> Plot:
    """Test perplexity by the number of MC samples, with a line for each run, beside that of the approximation."""
    figure = go.Figure(layout=LAYOUT)
    with_mc = [run for run in results if run.mc_points[0]]
    counts = sorted({count for run in with_mc for count in run.mc_points[0]})
    for run in with_mc:
        colour = colours(results)[run.row]
        _add(figure, run, colour, "solid", *run.mc_points)
        figure.data[-1].update(
            mode="lines+markers", hovertemplate="%{fullData.name}<br>K = %{x}: %{y:.2f}<extra></extra>"
        )
        _add(figure, run, colour, "dash", [counts[0], counts[-1]], [run.metrics["test_ppl"]] * 2)
        figure.data[-1].hovertemplate = "%{fullData.name}<br>dropout approximation: %{y:.2f}<extra></extra>"
    figure.update_xaxes(title_text="samples K", type="log", tickvals=counts, ticktext=[str(count) for count in counts])
    figure.update_yaxes(title_text=PERPLEXITY)
    return Plot("Test, MC dropout", figure, [("dashed", "dropout approximation")])


def _add(figure: go.Figure, run: Result, colour: str, dash: str, x: list[Any], y: list[float]) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=escape(f"{name(run)}, seed {run.seed}"),  # Plotly takes it for HTML
        mode="lines+markers" if len(x) <= 5 else "lines",
        line={"color": colour, "dash": dash, "width": 1.6},
        meta={"row": name(run), "seed": run.seed},
    )


def parts(experiment: str, results: list[Result]) -> list[Part]:
    """The sections of an experiment with their runs and curves."""
    runs_of = groups_with(experiment, results)
    found = []
    for section in sections(experiment, results):
        group = section.name.removeprefix(f"{experiment}_")
        runs = runs_of.get(group, [])
        plots = [draw(panel, runs) for panel in panels(experiment, group, runs)] if runs else []
        if any(len(run.mc_points[0]) > 1 for run in runs):
            plots.append(draw_mc(runs))
        found.append(Part(section, [run for run in runs if run.group == group], plots))
    return found


def page(results: list[Result]) -> str:
    """The whole page; the demo, and experiments of one's own, are in it if they were run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "markdown": lambda text: Markup(MARKDOWN.render(text)),
        "yaml": lambda config: yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }
    experiments = experiments_of(results)
    return environment.get_template("report.html").render(
        experiments={experiment: parts(experiment, results) for experiment in experiments},
        headings={experiment: heading(experiment) for experiment in experiments},
        notes={experiment: note(experiment) for experiment in experiments},
        text_columns=TEXT,
        runs=len(results),
        latest=max(run.provenance["date"] for run in results)[:10],
        plotlyjs=Markup(get_plotlyjs()),
    )


def main(arguments: list[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.report", description="All tables and curves as one HTML page."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    parser.add_argument("--output", type=Path, help="file to write (report.html, in the folder of results)")
    options = parser.parse_args(arguments)
    output = options.output or options.results / "report.html"
    try:
        found = load_results(options.results)
        results = [run for run in found if run.experiment in experiments_of(found)]
        if not results:
            sys.exit(f"{options.results}: no results to report; run `make demo` first")
        content = page(results)
    except ResultError as error:
        sys.exit(str(error))
    try:
        write_atomically(output, content)
    except OSError as error:
        sys.exit(f"{output} cannot be written ({error}); name another file with --output")
    print(f"wrote {output}")


if __name__ == "__main__":
    print_any_text()
    main()
