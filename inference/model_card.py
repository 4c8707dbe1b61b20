"""The model card of a trained model, for a saved folder and the Hugging Face hub, from its result file."""

from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from datamodules.penn_treebank import HUB_REPOSITORY
from datamodules.reader import Reader
from experiments.catalogue import groups_of
from experiments.results import Result, title
from reproduction.table import commit_of, origin_of, published_figure

PAPER = "[Gal & Ghahramani (2016)](https://arxiv.org/abs/1512.05287)"

# Figures of a card: name, digits, and which published one stands beside it: suffix of the row, and its name there.
FIGURES = {
    "valid_ppl": ("validation perplexity", 2, None),
    "valid_ppl_lua": ("validation perplexity, as the original code prints it", 2, "valid"),
    "test_ppl": ("test perplexity", 2, "test"),
    "test_ppl_mc": ("test perplexity, MC", 2, "test_mc"),
    "test_ppl_mc_window": ("test perplexity, MC, masks per window", 2, None),
    "test_ppl_sliding": ("test perplexity, each word from the window before it alone", 2, None),
    "valid_rmse": ("validation RMSE", 4, None),
    "test_rmse": ("test RMSE", 4, None),
    "test_rmse_review": ("test RMSE, by review", 4, None),
    "test_rmse_mc": ("test RMSE, MC", 4, None),
    "test_rmse_review_mc": ("test RMSE, by review, MC", 4, None),
    "constant_rmse": ("test RMSE of the mean training rating as prediction", 4, None),
}

# By the task, and whether the model has a vocabulary.
USE = {
    ("LanguageModel", True): 'logits, state = model(torch.tensor(model.reader.ids("a text"))[:, None])  # [T, B, V]',
    ("LanguageModel", False): "logits, state = model(words)  # ids [T, B] to [T, B, V]",
    ("SentimentRegressor", True): 'ratings = model(torch.tensor(model.reader.chunks("a text")).T)  # [B], of chunks',
    ("SentimentRegressor", False): "ratings = model(words)  # ids [T, B] to [B]",
}

CARD = """---
{yaml}
---

# {title}

{description}

```python
import torch
from lightning_modules import load  # from a checkout of the repository

model = load("OWNER/NAME")  # or a folder; in eval mode
{use}
```

## What it reaches

{figures}

## What it is not

* In eval mode, dropout is off: the *approximation*. *MC* averages what K networks predict that are sampled by keeping
  dropout on (`with mc_dropout(model)`, of `variational_rnn`): probabilities of a language model, ratings of a
  regression. Figures without *MC* are those of the approximation.
* {limits}
* It was trained on one kind of text, for an experiment of 2016. It was not examined for what else it may have learnt.
* No licence is given for these weights here. The corpus has one of its own, which may limit what may be done with a
  model of it: before you share this one, name its licence in the first lines of this file (`license: ...`).
"""


def model_card(
    kind: str, options: dict[str, Any], reader: Reader | None, result: Result | None, run: dict[str, Any] | None
) -> ModelCard:
    """Describe a model: what it is, how it is used, what it reaches beside what was published, and its limits.

    Args:
        kind: "LanguageModel" or "SentimentRegressor".
        options: that the model was built with.
        reader: with the model's vocabulary, if the model comes with it.
        result: of the run that trained it; without it, the card has no figures.
        run: that trained it (its number of epochs, start and commit), if the model knows it.
    """
    is_language = kind == "LanguageModel"
    what = "A word-level language model" if is_language else "A regression of ratings on texts"
    task, metric = ("language-modeling", "perplexity") if is_language else ("text-regression", "rmse")
    layers, cell = options.get("num_layers", 1), options["cell"].upper()
    words = len(reader.vocabulary) if reader else options["vocab_size"]  # which may leave some of them unused
    description = (
        f"{what} with the dropout of {PAPER}: {cell}, {layers} × {options['hidden_size']} units, "
        f"{words:,} word types. `config.json` has all options; `..._dropout` is a probability to drop."
    )
    data = ModelCardData(
        library_name="variational-rnn",
        tags=["pytorch", options["cell"], "variational-dropout", task],
        metrics=[metric],
    )
    heading, figures = kind, "No result file was given, so no figures are shown here."
    if run:
        figures += f" Trained for {run['epoch']} epochs in a run of {run['date'][:10]}, {commit_of(run)}."
    if result:
        heading = f"{title(result.experiment, result.group)}: {result.label}"
        figures = _figures(result)
        data_class = str((result.config.get("data") or {}).get("class_path")).rpartition(".")[2]
        corpus = (result.provenance.get("corpus") or {}).get("name", data_class)
        repository = HUB_REPOSITORY if data_class == "PennTreebank" else corpus
        if "/" in repository:
            data.datasets = [repository]
        data.model_name = f"{result.experiment}-{result.group}-{result.row}"
        data.eval_results = [
            EvalResult(
                task_type=task,
                dataset_type=repository,
                dataset_name=corpus,
                metric_type=metric,
                metric_name=FIGURES[name][0],
                metric_value=value,
            )
            for name, value in result.metrics.items()
            if name in FIGURES and name.startswith("test")
        ]
    limits = (
        "Words beyond the vocabulary in `reader.json` are `<unk>`; it also says how texts are split."
        if reader
        else "It comes without its vocabulary, which its checkpoint did not have: words are numbers, as in its data."
    )
    return ModelCard(
        CARD.format(
            yaml=data.to_yaml(),
            title=heading,
            description=description,
            use=USE[kind, reader is not None],
            figures=figures,
            limits=limits,
        )
    )


def _figures(run: Result) -> str:
    """The table of figures, and where they come from."""
    group = groups_of(run.experiment).get(run.group)
    paper = group.rows[run.row].published if group and run.row in group.rows else {}
    lines: list[str] = []
    for metric, (name, digits, published) in FIGURES.items():
        if metric not in run.metrics:
            continue
        if metric.startswith(("test_ppl_mc", "test_rmse_mc", "test_rmse_review_mc")):
            name += f", K = {run.metrics['mc_samples']:g}"
        lines.append(f"| {name} | {run.metrics[metric]:.{digits}f} | {published_figure(paper, published)} |")
    origin = run.provenance
    corpus = origin.get("corpus")
    notes = [
        f"Published: {'; '.join(group.sources) if group and paper else 'nothing for this setting'}. Lower is better.",
        f"Run `{run.experiment}/{run.group}/{run.row}`, seed {run.seed} (epochs: {run.length}): {origin_of(run)}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in origin.get('versions', {}).items())}.",
        f"Corpus {corpus['name']}, SHA-256: "
        + ", ".join(f"`{name}` {sha256}" for name, sha256 in corpus["sha256"].items())
        + "."
        if corpus
        else "The SHA-256 of the corpus was not recorded.",
    ]
    return "\n".join(["| | this model | published |", "|---|---:|---:|", *lines, "", *(f"* {note}" for note in notes)])
