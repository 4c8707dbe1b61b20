"""Tables of results as Markdown, LaTeX, CSV, HTML and text, with the published numbers beside ours.

Numbers of this repository come from result files, published ones from `configs`; none is written here.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from experiments.catalogue import Row, catalogue, groups_of, labelled, place_of, rows
from experiments.metrics import published_figure
from experiments.results import (
    Result,
    ResultError,
    ablations_of,
    commit_of,
    comparable,
    differing,
    ensembles_of,
    groups_with,
    hardware_of,
    in_words,
    options_that_matter,
    origin_of,
    read_json,
    title,
    without_diverged,
)
from reproduction.claims import ALIKE, LAST_EPOCHS, LEARNS, MINIMUM, OSCILLATIONS_ALIKE, RISES, claims_table

ROOT = Path(__file__).parents[1]
LOG = Path(__file__).with_name("gal_1250_untied.csv")

TEXT = ("row", "claim", "verdict", "evidence", "mean")  # columns of words

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# What the line on a run's origin says of its result: name and digits by metric.
HEADINGS = {"ptb": "Penn Treebank", "sentiment": "Film reviews", "demo": "Demo"}
NOTES = {
    "ptb": "Perplexity per word, lower is better; mean ± sample standard deviation where a row has several seeds. "
    "*As printed*: the original code divides the validation loss by a number of windows that it forgot to round down, "
    "so the perplexity it prints is too low. Compare this column with the paper; *exact* is the true value. "
    "A row is tested after its last epoch or, with early stopping, at its best validation epoch, as listed below it. "
    "*MC* rows average the probabilities of K samples of the dropout masks, each kept for the whole text, words not "
    "dropped, as in the original code; *masks per window*, and v1, have those of the theory, words dropped. "
    "*Sliding*: each word predicted from the window of words before it alone. Words/s are the training words of an "
    "epoch over the time that it took, validation included, as in the paper (there on a Titan X); of a run the median "
    "of its epochs. Tables *beyond the paper* are of what others built on it; *exact* is what to compare there, but in "
    "rows with words by token, whose code was the paper's.",
    "sentiment": "RMSE in rating units (0 to 1), lower is better; mean ± sample standard deviation where a row has "
    "several seeds. The paper gives these results as curves only. *Train* is the error on the first 100 training "
    "chunks, as in the paper, *all* that on all of them. *Test* is the dropout approximation after the last epoch, "
    "*MC* the mean prediction of K samples of the dropout masks, *by review* the error of the mean prediction over a "
    f"review's chunks, *lowest* the smallest of any epoch, *end* the mean over the last {LAST_EPOCHS} epochs. The "
    "constant predictor is the mean training rating; the ridge regression knows which of the 4,999 most frequent words "
    "a chunk has, its penalty chosen on a tenth of the training reviews.",
    "demo": "Small models on a small corpus, to show the effect, with settings chosen on these held-out data: "
    "no result of the paper. All errors but MC are of the dropout approximation; training and held-out data are "
    "evaluated alike.",
}
OWN_NOTE = (
    "Perplexity per word, or RMSE in rating units, lower is better; mean ± sample standard deviation where a row has "
    "several seeds. All errors but MC are of the dropout approximation, after the epoch that is named below. *Train*, "
    "of ratings, is the error on the first training chunks, *all* that on all of them, *by review* that of the mean "
    "prediction over a text's chunks, *lowest* the smallest of any epoch, and the constant predictor the mean "
    "training rating. Words/s are of training alone, the median of the epochs."
)
FAIR_REMARK = (
    "*Held out* is the error on validation texts (of film reviews a tenth of those for training, on which the tested "
    "epoch was chosen), to which the noise of the predictive distribution is fitted: a Gaussian around the "
    "approximation or, *MC*, K of them, one around each sampled network. *Log likelihood* is that of a test rating, "
    "in nats; *within* is the share of test ratings in the central interval of that probability."
)
COLDEST, HOTTEST = 0.7, 1.3  # temperatures that an ablation tries
ABLATION_REMARK = (
    "Test perplexity of the same weights: by the dropout *approximation*, or by the *arithmetic* or the *geometric* "
    "mean of the probabilities under K sampled networks, the latter divided by its sum over the vocabulary. Each "
    "network's masks are kept for the whole text (*stream*), words not dropped, or drawn anew for each *window*, words "
    "dropped, unless said otherwise. *Tempered*: the logits of every network are divided by the *temperature*, of "
    f"{COLDEST}, {COLDEST + 0.05}, ..., {HOTTEST} the one with the lowest validation perplexity for that mean and that "
    "K; ≤ and ≥ mark the ends, beyond which there may be a better one."
)
CLAIMS_HEADING = "What the paper says, and what our curves say (Film reviews)"
CLAIMS_REMARK = (
    f"By the test error of the dropout approximation; of several seeds the means. *End* is the mean over the last "
    f"{LAST_EPOCHS} epochs; rows that are compared are cut to a common length. A curve overfits if the median of these "
    f"epochs is *above* the mean of the *lowest* five in a row before them by more than {RISES:.0%} and by "
    f"more than it oscillates, which is the standard deviation of its steps from epoch to epoch. Errors are "
    f"alike within {ALIKE:.0%} or that, oscillations within {OSCILLATIONS_ALIKE:.0%}: no claim is "
    f"decided by less, nor by runs of fewer than {MINIMUM} "
    f"epochs. A network whose lowest five epochs are not {LEARNS:.0%} below the constant predictor has learnt nothing, "
    "and whether it would overfit is undecided. A claim about the end of training that fails before the planned "
    "epoch is undecided, too. That on MC is decided by the variational rows of Figures 2 and 10."
)
DISCARD_REMARK = (
    "Discarded seeds (validation perplexity or test RMSE not finite, or more than twice the median of the row's seeds) "
    "are left out of the mean: *2 of 3* seeds means that one was discarded."
)


def heading(experiment: str) -> str:
    """What an experiment is called: one's own, what its folder is."""
    return HEADINGS.get(experiment, experiment)


def note(experiment: str) -> str:
    """What is to be said of all tables of an experiment."""
    return NOTES.get(experiment, OWN_NOTE)


def ptb_table(size: str, results: list[Result]) -> pd.DataFrame:
    """Table 1 of the paper for one size: perplexities per word, published and ours."""
    lines = []
    for row, label, runs in _lines("ptb", size, results):
        paper = _published("ptb", size, row)
        lines.append(
            {
                "row": label,
                "valid, paper": published_figure(paper, "valid"),
                "valid, as printed": _mean(runs, "valid_ppl_lua", 1),
                "valid, exact": _mean(runs, "valid_ppl", 1),
                "valid, lowest": _mean_sd(runs, _lowest(runs, "valid_ppl"), 1),
                "test, paper": published_figure(paper, "test"),
                "test, ours": _mean(runs, "test_ppl", 1),
                "test, sliding": _mean(runs, "test_ppl_sliding", 1),
                "K": "–",
                "epochs": _epochs(runs),
                "seeds": _seeds(runs, "test_ppl"),
                "words/s, paper": f"{paper['kwps']:.1f}K" if "kwps" in paper else "n/a",
                "words/s": _speed([run.words_per_s for run in without_diverged(runs)]),
                "hours": _hours(runs),
                "hardware": _machines(runs),
                "config": _config("ptb", runs[0].path.parts[-3] if runs else size, row),
            }
        )
        if row.startswith("variational") or any("test_ppl_mc" in run.metrics for run in runs):
            for metric, mc in (("test_ppl_mc", "MC"), ("test_ppl_mc_window", "MC, masks per window")):
                if metric == "test_ppl_mc_window" and not any(metric in run.metrics for run in runs):
                    continue
                sets = _alike_in_mc(runs, metric) or [[]]
                marks = differing([same[0].mc_settings(metric) | {"mc_samples": 0} for same in sets if same])
                for same, mark in zip(sets, marks or [""], strict=True):
                    lines.append(
                        dict.fromkeys(lines[-1], "–")
                        | {"config": lines[-1]["config"]}
                        | {
                            "row": _with_mc(label, mc) + (f" [{mark}]" if mark else ""),
                            "test, paper": published_figure(paper if metric == "test_ppl_mc" else {}, "test_mc"),
                            "test, ours": _mean_sd(runs, [run.metrics[metric] for run in same], 1),
                            "K": _samples(same),
                            "epochs": _epochs(runs),
                            "seeds": _of_all(runs, len(same)),
                        }
                    )
    table = pd.DataFrame(lines)
    if size != "medium_constant":  # where nothing ends the descent, the last epoch is as good as any
        table = table.drop(columns="valid, lowest")
    if not any("kwps" in row.published for row in _rows("ptb", size)):
        table = table.drop(columns="words/s, paper")
    return table if any("test_ppl_sliding" in run.metrics for run in results) else table.drop(columns="test, sliding")


def trajectory_table(runs: list[Result]) -> pd.DataFrame:
    """Validation perplexity, as printed, of the authors' public log and of our runs, by epoch (protocol 1.7)."""
    log = pd.read_csv(LOG, index_col="epoch")["valid_ppl_as_printed"]
    lines = []
    curves = [dict(zip(*run.points("valid_ppl_lua"), strict=True)) for run in without_diverged(runs)]
    for epoch in (1, 2, 3, 5, 8, 10, 11, 12, 15, 20, 25, 30, 40, 50, 55):
        values = [curve[epoch] for curve in curves if epoch in curve]
        ours = _mean_sd(runs, values, 1)
        ratio = f"{sum(values) / len(values) / log[epoch]:.3f}" if values else "–"
        lines.append({"epoch": str(epoch), "the authors' log": f"{log[epoch]:.1f}", "ours": ours, "ours / log": ratio})
    return pd.DataFrame(lines)


def ensemble_table(results: list[Result], sizes: list[str] | None = None) -> pd.DataFrame:
    """Perplexities of models whose probabilities are averaged, published and ours, by the number of models."""
    published = {
        (size, paper["row"], paper["models"]): paper
        for size, group in groups_of("ptb").items()
        for paper in group.ensembles
    }
    ours = {(size, row): ensemble for size, row, ensemble in ensembles_of(results)}
    together = {(size, row, len(ensemble["seeds"])) for (size, row), ensemble in ours.items()}
    order = {
        pair: i for i, pair in enumerate((size, row) for size, group in groups_of("ptb").items() for row in group.rows)
    }
    lines = []
    for size, row, models in sorted(published.keys() | together, key=lambda key: (order.get(key[:2], len(order)), key)):
        if sizes and size not in sizes:
            continue
        paper = published.get((size, row, models), {})
        ensemble = ours.get((size, row), {})
        metrics, label = ensemble.get("metrics", {}), labelled(row)
        metric = "test_ppl_mc" if row.startswith("variational") or "test_ppl_mc" in metrics else "test_ppl"
        values, valid = metrics.get(metric, []), metrics.get("valid_ppl", [])
        absent = "–" if len(values) >= models else "not run"
        lines.append(
            {
                "row": f"{size}, {_with_mc(label, 'MC') if metric == 'test_ppl_mc' else label}",
                "models": str(models),
                "valid, paper": published_figure(paper, "valid"),
                "valid, ours": f"{valid[models - 1]:.1f}" if len(valid) >= models else absent,
                "test, paper": published_figure(paper, "test_mc" if metric == "test_ppl_mc" else "test"),
                "test, ours": f"{values[models - 1]:.1f}" if len(values) >= models else "not run",
                "K": f"{ensemble['mc_samples']}" if values and metric == "test_ppl_mc" else "–",
                "epochs": ensemble["epochs"] if len(values) >= models else "–",
                "seeds": ", ".join(map(str, ensemble["seeds"][:models])) if len(values) >= models else "–",
                "config": _config("ptb", size, row),
            }
        )
    return pd.DataFrame(lines)


def ablation_table(results: list[Result], sizes: list[str] | None = None) -> pd.DataFrame:
    """Test perplexity by what is chosen at test time, of the runs that were evaluated so; no lines without any."""
    ablations = {run.path: ablation for run, ablation in ablations_of(results)}
    lines = []
    for size, of_size in groups_with("ptb", results).items():
        if sizes and size not in sizes:
            continue
        for row, label, every in _lines("ptb", size, of_size):
            runs = [run for run in without_diverged(every) if run.path in ablations]
            discarded = sum(run.path in ablations for run in every) - len(runs)
            by_kind: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
            for run in runs:
                drops = options_that_matter(ablations[run.path].get("config", {})).get("mc_word_dropout")
                for choice in ablations[run.path]["choices"]:
                    masks = choice["masks"] or "–"
                    if choice["masks"] and drops is not None and drops != (masks == "window"):
                        masks += ", words dropped" if drops else ", words kept"
                    by_kind.setdefault((choice["mean"], masks, choice["samples"]), []).append(choice)
            for (mean, masks, samples), same in by_kind.items():
                temperatures = [_temperature(value) for value in sorted({choice["temperature"] for choice in same})]
                lines.append(
                    {
                        "row": f"{size}, {label}",
                        "mean": mean,
                        "masks per": masks,
                        "K": f"{samples}" if samples else "–",
                        "test": _mean_sd(runs, [choice["test_ppl"] for choice in same], 1),
                        "test, tempered": _mean_sd(runs, [choice["test_ppl_tempered"] for choice in same], 1),
                        "temperature": ", ".join(temperatures),
                        "epochs": _epochs(runs),
                        "seeds": f"{len(same)} of {len(same) + discarded}" if discarded else f"{len(same)}",
                        "config": _config("ptb", size, row),
                    }
                )
    return pd.DataFrame(lines)


def _temperature(value: float) -> str:
    """A temperature, and whether a better one may lie beyond the range that was looked at."""
    return f"≤ {value:g}" if value <= COLDEST else f"≥ {value:g}" if value >= HOTTEST else f"{value:g}"


def language_model_table(experiment: str, group: str, results: list[Result]) -> pd.DataFrame:
    """Perplexities per word of the language models of the demo, or of texts of one's own."""
    lines = []
    for row, label, runs in _lines(experiment, group, results):
        line = {
            "row": label,
            "train": _mean(runs, "train_eval_ppl", 1, absent=_absent(experiment)),
            "valid": _mean(runs, "valid_ppl", 1),
            "test": _mean(runs, "test_ppl", 1),
            "test, sliding": _mean(runs, "test_ppl_sliding", 1, absent="–"),
            "test, MC": _mc_mean(runs, "test_ppl_mc", 1, absent=_absent(experiment, row)),
            "test, MC, masks per window": _mc_mean(runs, "test_ppl_mc_window", 1, absent="–"),
            "K": _mc_samples(runs, "test_ppl_mc"),
            "epochs": _epochs(runs),
            "seeds": _seeds(runs, "test_ppl"),
        }
        if experiment != "demo":
            speeds = [run.points("words_per_s")[1] for run in without_diverged(runs)]
            training = [median(values) for values in speeds if values]
            line |= {"words/s, training": _speed(training), "hours": _hours(runs), "hardware": _machines(runs)}
        lines.append(line)
    metrics = {"test, sliding": "test_ppl_sliding", "test, MC, masks per window": "test_ppl_mc_window"}
    absent = [name for name, metric in metrics.items() if not any(metric in run.metrics for run in results)]
    return pd.DataFrame(lines).drop(columns=absent)


def sentiment_table(experiment: str, group: str, results: list[Result], folder: Path | None = None) -> pd.DataFrame:
    """RMSE of rating predictions in rating units (Figure 3 of the paper), after what needs no network.

    Args:
        experiment: "sentiment", "demo", or one's own.
        group: the figure.
        results: of this group.
        folder: of all results, where the baselines are.
    """
    lines = []
    for row, label, runs in _lines(experiment, group, results):
        line = {
            "row": label,
            "train": _mean(runs, "train_rmse", 4),
            "train, all": _mean(runs, "train_rmse_all", 4),
            "test": _mean(runs, "test_rmse", 4),
            "test, MC": _mc_mean(runs, "test_rmse_mc", 4, absent=_absent(experiment, row)),
            "K": _mc_samples(runs, "test_rmse_mc"),
            "test, by review": _mean(runs, "test_rmse_review", 4),
            "test, by review, MC": _mc_mean(runs, "test_rmse_review_mc", 4, absent=_absent(experiment, row)),
            "test, lowest": _mean_sd(runs, _lowest(runs, "test_rmse"), 4),
            "test, end": _mean_sd(runs, _ends(runs, "test_rmse"), 4, absent="–"),
            "constant": _mean(runs, "constant_rmse", 4),
            "held out": _mean(runs, "valid_rmse", 4, absent=_absent(experiment)),
            "log likelihood": _mean(runs, "test_log_likelihood", 3, absent=_absent(experiment)),
            "log likelihood, MC": _mc_mean(runs, "test_log_likelihood_mc", 3, absent=_absent(experiment, row)),
            "within 50 %": _mean(runs, "test_coverage_50", 2, absent=_absent(experiment)),
            "within 50 %, MC": _mc_mean(runs, "test_coverage_50_mc", 2, absent=_absent(experiment, row)),
            "within 90 %": _mean(runs, "test_coverage_90", 2, absent=_absent(experiment)),
            "within 90 %, MC": _mc_mean(runs, "test_coverage_90_mc", 2, absent=_absent(experiment, row)),
            "epochs": _epochs(runs),
            "seeds": _seeds(runs, "test_rmse"),
        }
        if experiment != "demo":
            config = _config(*runs[0].path.parts[-4:-1]) if runs else _config(experiment, group, row)
            line |= {"hours": _hours(runs), "hardware": _machines(runs), "config": config}
        lines.append(line)
    digits = 5 if experiment == "demo" else 4
    without_network = [
        {"row": name} | {column: f"{error:.{digits}f}" for column, error in errors.items()}
        for name, errors in baselines(experiment, group, results, folder).items()
    ]
    table = pd.DataFrame([*without_network, *lines])
    predictive = [f"{what}{mc}" for what in ("log likelihood", "within 50 %", "within 90 %") for mc in ("", ", MC")]
    dropped = [] if has_predictive_distribution(experiment, group, results) else ["held out", *predictive]
    if experiment == "demo":
        dropped += ["train, all", "test, by review", "test, by review, MC"]
    if (experiment, group) != ("sentiment", "length_sweep"):
        dropped.append("constant")
    return table[[column for column in lines[0] if column not in dropped]].fillna("–")


def has_predictive_distribution(experiment: str, group: str, results: list[Result]) -> bool:
    """Whether a table of regressions shows what texts that are held out for validation make known."""
    planned = experiment in catalogue()
    return group.startswith("fair") if planned else any("valid_rmse" in run.metrics for run in results)


def baselines(experiment: str, group: str, results: list[Result], folder: Path | None) -> dict[str, dict[str, float]]:
    """Errors of what needs no network, by name and column of the table, in rating units.

    They are the mean training rating, and for film reviews a ridge regression.
    """
    constant = constant_rmse(experiment, results)
    if experiment != "sentiment":
        return {} if constant is None else {"Constant predictor": {"test": constant}}
    if group == "length_sweep":  # other chunks for every row
        return {}
    split = group[-1] if group.startswith("fair_split") else "0"
    names = {"train, all": "train_rmse", "test": "test_rmse", "test, by review": "test_rmse_review"}
    file = (folder or Path()) / "sentiment/baselines.json"
    if not file.is_file():
        published: dict[str, Any] = {
            "train, all": catalogue()["sentiment"].constant_predictor["train_rmse"],
            "test": constant,
        }
        return {} if split != "0" else {"Constant predictor": published}
    labels = {"constant": "Constant predictor", "ridge": "Ridge regression on words"}
    try:
        measured = read_json(file)["splits"].get(split, {})
        return {
            labels[name]: {column: float(errors[key]) for column, key in names.items()}
            for name, errors in measured.items()
        }
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ResultError(
            f"{file} is damaged ({type(error).__name__} {error}): delete it; `make reproduce-sentiment` makes it again"
        ) from error


def constant_rmse(experiment: str, results: list[Result]) -> float | None:
    """Test RMSE, in rating units, of always predicting the mean training rating.

    None if it is not known: no demo has run, or runs on texts of one's own are not all on the same.
    """
    measured = [run.metrics["constant_rmse"] for run in results if "constant_rmse" in run.metrics]
    if experiment not in catalogue() and len({f"{value:.4g}" for value in measured}) > 1:
        return None
    return next(
        iter(measured), catalogue()["sentiment"].constant_predictor["test_rmse"] if experiment == "sentiment" else None
    )


@dataclass(frozen=True)
class Section:
    """One table with what belongs below it: remarks, the origin of each result, and what else there is to say.

    `name` is for files and W&B. `more` are the paragraphs after the first of a group's notes, which a text folds up.
    """

    name: str
    title: str
    table: pd.DataFrame
    remarks: list[str]
    origins: list[str]
    more: list[str] = field(default_factory=list)


def sections(experiment: str, results: list[Result], sizes: list[str] | None = None) -> list[Section]:
    """The tables of an experiment; of Penn Treebank only these sizes, if any are named."""
    parts = []
    folder = next((run.path.parents[3] for run in results), None)
    planned = groups_of(experiment)
    for group, runs in groups_with(experiment, results).items():
        if not runs and group in planned and planned[group].is_extra and group not in (sizes or ()):
            continue
        if experiment == "ptb":
            if sizes and group not in sizes:
                continue
            table, remarks = ptb_table(group, runs), _ptb_sources(group)
        elif any(run.is_language for run in runs) or (experiment, group) == ("demo", "language_model"):
            table, remarks = language_model_table(experiment, group, runs), []
        else:
            table, remarks = sentiment_table(experiment, group, runs, folder), []
            if has_predictive_distribution(experiment, group, runs):
                remarks.append(FAIR_REMARK)
        if "seeds" in table and table["seeds"].str.contains(" of ").any():
            remarks.append(DISCARD_REMARK)
        more: list[str] = []
        own = [run for run in runs if run.group == group]  # of those beside it more is said where they are at home
        notes = own[0].path.parents[1] / "notes.md" if own else None
        if notes and notes.is_file():
            try:
                first, *more = notes.read_text(encoding="utf-8").strip().split("\n\n")
            except (ValueError, OSError) as error:
                raise ResultError(f"{notes} cannot be read as text: {error}") from error
            remarks.append(first)
        origins = [f"{run.label}, seed {run.seed}: {origin_of(run)}" for run in own]
        parts.append(Section(f"{experiment}_{group}", title(experiment, group), table, remarks, origins, more))
        if (experiment, group) == ("ptb", "gal1250"):
            trajectory = trajectory_table(
                next(iter(comparable([run for run in runs if run.row == "variational_untied"])), [])
            )
            heading = "Validation perplexity as printed, by epoch, 2 × 1250 units"
            parts.append(Section("ptb_gal1250_trajectory", heading, trajectory, [], []))
    # With sizes chosen, ensembles have a table where one of them was made.
    if (
        experiment == "ptb"
        and len(table := ensemble_table(results, sizes))
        and (not sizes or any(table["seeds"] != "–"))
    ):
        sources = dict.fromkeys(paper["source"] for group in planned.values() for paper in group.ensembles)
        remarks = [
            "The validation text is one stream here, and is predicted by the approximation alone. "
            f"Published numbers: {'; '.join(sources)}."
        ]
        origins = [
            f"{size}, {labelled(row)}, ensemble of seeds {', '.join(map(str, ensemble['seeds']))}: predicted by "
            f"{', '.join(dict.fromkeys(map(commit_of, ensemble['provenance'])))}; the seeds' own lines are above"
            for size, row, ensemble in ensembles_of(results)
            if not sizes or size in sizes
        ]
        heading = "Beyond the paper: probabilities of several models averaged"
        parts.append(Section("ptb_ensembles", heading, table, remarks, origins))
    if experiment == "ptb" and len(table := ablation_table(results, sizes)):
        origins = [
            f"{run.group}, {run.label}, seed {run.seed}: evaluated by {commit_of(ablation['provenance'])}; "
            "the run's own line is above"
            for run, ablation in ablations_of(results)
            if not sizes or run.group in sizes
        ]
        parts.append(Section("ptb_ablation", "Beyond the paper: test-time choices", table, [ABLATION_REMARK], origins))
    if experiment == "sentiment":
        parts.append(Section("sentiment_claims", CLAIMS_HEADING, claims_table(results), [CLAIMS_REMARK], []))
    missing = [
        group.title
        for name, group in planned.items()
        if group.is_extra
        and not sizes
        and not any((run.experiment, run.group) == (experiment, name) for run in results)
    ]
    if missing and parts:
        parts[-1].remarks.append(f"Not run: {'; '.join(missing)}.")
    return parts


def to_markdown(results: list[Result], experiments: list[str], sizes: list[str] | None = None) -> str:
    """The tables of these experiments as Markdown."""
    blocks = []
    for experiment in experiments:
        blocks += [f"### {heading(experiment)}", note(experiment)]
        for section in sections(experiment, results, sizes):
            blocks += [f"#### {section.title}", markdown_of(section)]
            if section.origins:
                origins = "\n".join(f"- {origin}" for origin in section.origins)
                blocks += [
                    "<details><summary>Where our numbers come from</summary>",
                    origins,
                    *section.more,
                    "</details>",
                ]
    return "\n\n".join(blocks)


def markdown_of(section: Section, link: str = "[{row}]({config})") -> str:
    """A table and the remarks on it; `link` is what becomes of the name of a row."""
    shown = _with_links(section.table, link)
    align = ["left" if column in TEXT else "right" for column in shown.columns]
    table = shown.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n\n".join([table, *section.remarks])


def to_csv(results: list[Result], experiments: list[str], sizes: list[str] | None = None) -> str:
    """The tables of these experiments as one table of comma-separated values, with a column for the title of each."""
    every = [section for experiment in experiments for section in sections(experiment, results, sizes)]
    tables = [section.table.assign(table=section.title) for section in every]
    return str(pd.concat(tables).set_index("table").to_csv())


def to_html(results: list[Result], experiments: list[str], sizes: list[str] | None = None) -> str:
    """The tables of these experiments as HTML, without a page around them."""
    every = [section for experiment in experiments for section in sections(experiment, results, sizes)]
    tables = [_with_links(part.table.map(html.escape), '<a href="{config}">{row}</a>', ("config",)) for part in every]
    return "\n".join(
        f"<h4>{html.escape(part.title)}</h4>\n{table.to_html(index=False, escape=False)}"
        for part, table in zip(every, tables, strict=True)
    )


def to_latex(results: list[Result], experiments: list[str], sizes: list[str] | None = None) -> str:
    """The tables of these experiments in LaTeX, for a preamble with booktabs."""
    every = [section for experiment in experiments for section in sections(experiment, results, sizes)]
    parts = []
    for section in every:
        shown = _with_links(section.table, "{row}")
        alignment = "".join("l" if column in TEXT else "r" for column in shown.columns)
        caption = re.sub(r"([&%$#_])", r"\\\1", ". ".join(filter(None, [section.title, _machines_of(section.table)])))
        text = shown.to_latex(index=False, escape=True, column_format=alignment, caption=caption)
        parts.append(text.replace("±", r"$\pm$").replace("×", r"$\times$").replace("–", "--"))
    return "\n".join(parts)


FORMATS = {"markdown": to_markdown, "latex": to_latex, "csv": to_csv, "html": to_html}


def print_tables(
    console: Console, results: list[Result], experiments: list[str], sizes: list[str] | None = None
) -> None:
    """Print the tables of these experiments in a terminal; cells that do not fit its width end in an ellipsis."""
    for experiment in experiments:
        console.print(Markdown(note(experiment)), style="dim")
        for section in sections(experiment, results, sizes):
            table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
            narrow = _with_links(section.table, "{row}").drop(
                columns=[
                    *("words/s, paper", "words/s", "words/s, training", "hours"),
                    *("train, all", "test, by review", "test, by review, MC"),
                ],
                errors="ignore",
            )
            for column in narrow.columns:
                header = column.replace(", ", "\n").replace("as printed", "printed")
                is_long = column in ("claim", "evidence")
                table.add_column(header, justify="left" if column in TEXT else "right", no_wrap=not is_long)
            for _, line in narrow.iterrows():
                if line.get("seeds") == "0":  # said once, so that the table stays narrow
                    line = line.replace("not run", "–")
                    line["epochs"] = "not run"
                table.add_row(*(_narrow(cell) for cell in line))
            console.print(table)
            console.print()
            for line in [*section.remarks, *section.origins]:
                console.print(Markdown(line), style="dim")
            console.print()


def _with_links(table: pd.DataFrame, link: str, dropped: tuple[str, ...] = ("hardware", "config")) -> pd.DataFrame:
    """The table without the columns that are too wide, each row's name made a link to its configuration."""
    shown = table.copy()
    for index, line in table.iterrows():
        if line.get("config", "–") != "–":
            shown.loc[index, "row"] = link.format(**line)
    return shown.drop(columns=list(dropped), errors="ignore")


def _narrow(cell: str) -> str:
    return cell.replace(" ± 0.", "±.").replace(" ± ", "±").replace(" epochs", "").replace(" of ", "/")


def _lines(experiment: str, group: str, results: list[Result]) -> list[tuple[str, str, list[Result]]]:
    """The lines of a table: a row, its name, and runs of it that may be averaged."""
    groups = groups_of(experiment)
    planned = groups[group].planned if group in groups else []
    lines: list[tuple[str, str, list[Result]]] = []
    for row in sorted(dict.fromkeys([*planned, *(run.row for run in results)]), key=place_of):
        sets = comparable([run for run in results if run.row == row])
        lines += [(row, same[0].label, same) for same in sets] or [(row, labelled(row, "", experiment, group), [])]
    return lines


def _with_mc(label: str, mc: str) -> str:
    """The name of a row's MC: Variational (tied, MC), VD-LSTM, MC."""
    return label.replace(")", f", {mc})", 1) if ")" in label else f"{label}, {mc}"


def _rows(experiment: str, group: str) -> list[Row]:
    """The rows of `configs` of a group."""
    known = groups_of(experiment).get(group)
    return list(known.rows.values()) if known else []


def _published(experiment: str, group: str, row: str) -> dict[str, Any]:
    """The published figures of a row."""
    known = groups_of(experiment).get(group)
    return known.rows[row].published if known and row in known.rows else {}


def _alike_in_mc(runs: list[Result], metric: str) -> list[list[Result]]:
    """Those of a line that have an MC metric, in sets of the same samples and masks."""
    sets: dict[str, list[Result]] = {}
    for run in without_diverged(runs):
        if metric in run.metrics:
            sets.setdefault(in_words(run.mc_settings(metric)), []).append(run)
    return list(sets.values())


def _mc_mean(runs: list[Result], metric: str, digits: int, absent: str) -> str:
    """Means of an MC metric, one for each number of samples and kind of masks."""
    sets = _alike_in_mc(runs, metric) or [[]]
    return "; ".join(_mean_sd(runs, [run.metrics[metric] for run in same], digits, absent) for same in sets)


def _mc_samples(runs: list[Result], metric: str) -> str:
    """The numbers of MC samples of these means."""
    return "; ".join(map(_samples, _alike_in_mc(runs, metric) or [[]]))


def _mean(runs: list[Result], metric: str, digits: int, absent: str = "not run") -> str:
    return _mean_sd(
        runs, [run.metrics[metric] for run in without_diverged(runs) if metric in run.metrics], digits, absent
    )


def _absent(experiment: str, row: str = "") -> str:
    """What stands where a run has no such error: none is planned for texts of one's own, nor MC without dropout."""
    return "–" if experiment not in catalogue() or row.startswith("standard") else "not run"


def _mean_sd(runs: list[Result], values: list[float], digits: int, absent: str = "not run") -> str:
    if not runs:
        return "not run"
    if not without_diverged(runs):
        return "diverged"
    if not values:
        return absent
    series = pd.Series(values)
    spread = f" ± {series.std(skipna=False):.{digits}f}" if len(values) > 1 else ""
    return f"{series.mean(skipna=False):.{digits}f}{spread}"


def _lowest(runs: list[Result], metric: str) -> list[float]:
    """The lowest value of each run's curve."""
    return [min(values) for run in without_diverged(runs) if (values := run.points(metric)[1])]


def _ends(runs: list[Result], metric: str) -> list[float]:
    """The mean over the last epochs of each run's curve that has more than those."""
    curves = [run.points(metric)[1] for run in without_diverged(runs)]
    return [sum(curve[-LAST_EPOCHS:]) / LAST_EPOCHS for curve in curves if len(curve) > LAST_EPOCHS]


def _samples(same: list[Result]) -> str:
    """The number of MC samples, which they share."""
    return f"{same[0].metrics['mc_samples']:g}" if same and "mc_samples" in same[0].metrics else "–"


def _epochs(runs: list[Result]) -> str:
    return runs[0].length if runs else "–"


def _seeds(runs: list[Result], metric: str) -> str:
    """The number of seeds in the mean."""
    return _of_all(runs, sum(metric in run.metrics for run in without_diverged(runs)))


def _of_all(runs: list[Result], used: int) -> str:
    """A number of seeds, e.g. "3", or "2 of 3" if one is discarded."""
    return f"{used} of {len(runs)}" if len(without_diverged(runs)) < len(runs) else str(used)


def _speed(speeds: Sequence[float | None]) -> str:
    """The mean in thousands of words per second, as the paper prints them."""
    known = [speed for speed in speeds if speed is not None]
    return f"{sum(known) / len(known) / 1000:.1f}K" if known else "–"


def _hours(runs: list[Result]) -> str:
    """Mean wall time of training and test."""
    return f"{sum(run.provenance['wall_time_s'] for run in runs) / len(runs) / 3600:.1f}" if runs else "–"


def _machines(runs: list[Result]) -> str:
    return "; ".join(dict.fromkeys(map(hardware_of, runs))) or "–"


def _machines_of(table: pd.DataFrame) -> str:
    """What the lines of a table ran on."""
    cells = table.get("hardware", [])
    return "; ".join(dict.fromkeys(machine for cell in cells for machine in cell.split("; ") if machine != "–"))


def _config(experiment: str, group: str, row: str) -> str:
    """The configuration of a row, a path in the repository, or – if it has none there."""
    return f"configs/{experiment}/{group}.yaml" if f"{experiment}/{group}/{row}" in rows() else "–"


def _ptb_sources(size: str) -> list[str]:
    """Where the published numbers of a size come from, and what else has been published on it."""
    group = groups_of("ptb").get(size)
    if not group or not group.sources:
        return ["Published numbers: none known for this setting."]
    remarks = [f"Published numbers: {'; '.join(group.sources)}."]
    names = {"valid": "valid", "test": "test", "test_mc": "test with MC"}
    for paper in group.further:
        numbers = ", ".join(f"{name} {published_figure(paper, key)}" for key, name in names.items() if key in paper)
        remarks.append(f"Also published: {paper['what']}: {numbers}. Source: {paper['source']}.")
    return remarks
