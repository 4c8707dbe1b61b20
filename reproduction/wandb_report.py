"""Tables, charts, a report and a workspace in Weights & Biases: `python -m reproduction.wandb_report --help`.

The report and the workspace arrange what the runs themselves have logged; numbers of tables come from result files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from pydantic import TypeAdapter

from experiments import print_any_text, wandb_runs
from experiments.results import Result, ResultError, experiments_of, load_results, title
from experiments.wandb_runs import PROJECT
from reproduction.tables import HEADINGS, Section, heading, markdown_of, note, sections

SWEEPS = Path(__file__).parents[1] / "configs/sweeps"
TITLE = "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks"

# Panels of an experiment: title, metrics, whether the axis is logarithmic.
CURVES: dict[str, list[tuple[str, list[Any], bool]]] = {
    "ptb": [
        (
            "Overfitting: perplexity of training words (dropout off) and validation",
            ["train_eval_ppl", "valid_ppl"],
            True,
        ),
        ("Validation perplexity", ["valid_ppl"], True),
        ("Training perplexity (dropout on)", ["train_ppl"], True),
    ],
    "sentiment": [
        ("Overfitting: RMSE of training and test chunks", ["train_rmse", "test_rmse"], False),
        ("Test RMSE", ["test_rmse"], False),
        ("Test RMSE, approximation and MC", ["test_rmse", "test_rmse_mc"], False),
    ],
}
OVERFITTING = ("valid_ppl", "train_rmse", "test_rmse", "valid_rmse")  # and a training perplexity
FINAL: dict[str, list[Any]] = {
    "ptb": ["test_ppl.last", "test_ppl_mc.last"],
    "sentiment": ["test_rmse.last", "test_rmse_mc.last"],
}
MONITORED = {"ptb": "valid_ppl", "sentiment": "valid_rmse"}


def log_tables(folder: Path, results: list[Result], experiments: list[str], sizes: list[str] | None = None) -> None:
    """Log each table as a W&B Table, and the curves of its runs as a chart, of a run named "tables".

    Args:
        folder: where W&B keeps the files of the run.
        results: all results.
        experiments: whose tables to log.
        sizes: of Penn Treebank; all if none are named.
    """
    logged = [_logged(section, results) for name in experiments for section in sections(name, results, sizes)]
    # One run, whose tables are replaced.
    run = wandb_runs.start(project=PROJECT, id="tables", name="tables", job_type="tables", resume="allow", dir=folder)
    try:
        for values in logged:
            run.log(values)
        run.finish()
    except wandb_runs.FAILURES as error:
        print(f"W&B: the tables are not all logged ({error}); `make wandb-table` tries again.", flush=True)


def _logged(section: Section, results: list[Result]) -> dict[str, Any]:
    """A table, and the curves of its runs if there are any."""
    logged: dict[str, Any] = {section.name: wandb.Table(dataframe=section.table)}
    lines = {
        f"{run.label}, seed {run.seed}, {metric}": run.points(metric)
        for run in results
        if f"{run.experiment}_{run.group}" == section.name
        for metric in ("train_eval_ppl" if run.points("train_eval_ppl")[0] else "train_ppl", *OVERFITTING)
        if run.points(metric)[0]
    }
    if lines:
        epochs, values = zip(*lines.values(), strict=True)
        chart = wandb.plot.line_series(epochs, values, list(lines), section.title, "epoch")
        logged[f"{section.name}_curves"] = chart
    return logged


def panels(experiment: str) -> list[Any]:
    """Curves by epoch, the mean and range of a row's seeds; and final test errors."""
    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    lines = [
        wr.LinePlot(title=title, x="epoch", y=metrics, log_y=is_log, layout=wr.Layout(x=8 * i, w=8, h=8), **grouped)
        for i, (title, metrics, is_log) in enumerate(CURVES[experiment])
    ]
    final = wr.BarPlot(title="Final test error", metrics=FINAL[experiment], layout=wr.Layout(y=8, w=12, h=8))
    return [*lines, final]


def sweep_panels(experiment: str) -> list[Any]:
    """Which dropout gives which error, and which of them matters."""
    best = f"{MONITORED[experiment]}.min"
    axes = ("word_dropout", "recurrent_dropout", "input_dropout", "output_dropout")
    columns = [
        *(wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in axes),
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(best)),
    ]
    return [
        wr.ParallelCoordinatesPlot(title="Dropout and the lowest error", columns=columns, layout=wr.Layout(w=24, h=9)),
        wr.ParameterImportancePlot(with_respect_to=best, layout=wr.Layout(y=9, w=12, h=8)),
    ]


def report(results: list[Result], entity: str) -> wr.Report:
    """A report: each table, with the curves of the runs in W&B grouped by row; the claims; the sweeps.

    Args:
        results: whose tables it shows, and whose groups.
        entity: user or team that has the project.
    """

    def grid(name: str, group: str, shown: list[Any]) -> wr.PanelGrid:
        runs = wr.Runset(
            entity=entity, project=PROJECT, name=name, filters=[expr.Metric("Group") == group], groupby=["jobType"]
        )
        return wr.PanelGrid(runsets=[runs], panels=shown)

    blocks: list[Any] = [wr.TableOfContents()]
    for experiment in experiments_of(results):
        blocks += [wr.H1(heading(experiment)), wr.MarkdownBlock(note(experiment))]
        groups = {f"{experiment}_{run.group}": run for run in results if run.experiment == experiment}
        for section in sections(experiment, results):
            blocks += [wr.H2(section.title), wr.MarkdownBlock(markdown_of(section, link="{row}"))]
            if section.name in groups:
                run = groups[section.name]
                measured = "ptb" if run.is_language else "sentiment"  # the demo has groups of both
                blocks.append(grid(title(experiment, run.group), f"{experiment}/{run.group}", panels(measured)))
    blocks.append(wr.H1("Sweeps"))
    for file in sorted(SWEEPS.glob("*.yaml")):
        experiment = "ptb" if file.stem.startswith("ptb") else "sentiment"
        blocks += [wr.H2(file.stem), grid(file.stem, f"sweeps/{file.stem}", sweep_panels(experiment))]
    return wr.Report(
        entity=entity,
        project=PROJECT,
        title=TITLE,
        description="Gal & Ghahramani (2016), reproduced",
        width="fluid",
        blocks=blocks,
    )


def workspace(entity: str) -> ws.Workspace:
    """A view of the project with a section of panels for each experiment, runs grouped by table and row."""
    return ws.Workspace(
        entity=entity,
        project=PROJECT,
        name="Overfitting curves",
        sections=[
            ws.Section(name=HEADINGS[experiment], panels=panels(experiment), is_open=True) for experiment in CURVES
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch"),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("JobType")]),
    )


def main(arguments: list[str] | None = None) -> None:
    """Log the tables, and create or print the report and the workspace."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.wandb_report",
        description=f"A report and a workspace in the W&B project {PROJECT}, from result files and logged runs.",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    parser.add_argument("--entity", help="user or team that has the project (default: of the account)")
    parser.add_argument("--dry_run", action="store_true", help="print what would be created; needs no account")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.results)
        if options.dry_run:
            entity = options.entity or "ENTITY"
            spec = {"report": report(results, entity), "workspace": workspace(entity)}
            print(json.dumps({k: TypeAdapter(type(v)).dump_python(v, mode="json") for k, v in spec.items()}, indent=1))
            return
    except ResultError as error:
        sys.exit(str(error))
    try:
        entity = str(options.entity or wandb.Api().default_entity)
    except Exception as error:  # whatever is between here and the server: there is nothing to undo
        sys.exit(_not_created(error))
    try:
        parts = report(results, entity), workspace(entity)
    except ResultError as error:
        sys.exit(str(error))
    try:
        for part in parts:
            part.save()
    except Exception as error:
        sys.exit(_not_created(error))


def _not_created(error: Exception) -> str:
    return (
        f"W&B: the report was not created ({error}). `.venv/bin/wandb login` logs in; --dry_run prints it; "
        "`make report` writes a page that needs no account."
    )


if __name__ == "__main__":
    print_any_text()
    main()
