"""`main.py predict MODEL [FILE]`: what a trained model says about a text, and how sure it is."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.checks import LARGEST_SEED, check_count, check_number
from datamodules.reader import EOS, Reader
from datamodules.text_files import decoded, read
from experiments.files import check_writable, write_atomically
from inference.options import OptionParser, path
from lightning_modules.language_model import LanguageModel
from lightning_modules.loading import load
from lightning_modules.sentiment_regressor import SentimentRegressor

Row = dict[str, Any]
FORMATS = ("table", "jsonl", "csv")
MOST_ROWS = 10_000  # of a table, which takes its time and memory
# Options of one kind of model, without their dashes.
OF_RATINGS = ("interval", "whole")
OF_GENERATION = ("sequences", "temperature", "top_k", "no_unknown")

EPILOG = """\
A language model gives each word's surprisal -ln p in nats, by the dropout
approximation and by MC (the probabilities of K sampled networks, averaged), and
the mutual information of word and weights: how far the networks disagree. Line
and position count from 1, <eos> included; exp of the mean of a column surprisal
is the perplexity: numpy.exp(pandas.read_csv("out.csv").surprisal_mc.mean()). A
sentiment model gives each text's rating: by the approximation, and mean,
standard deviation and predictive interval of K sampled networks.

With --config it is another command, Lightning's, for the test split of its
data: main.py predict --config ROW --ckpt_path MODEL writes the
predictions to predictions.pt.
"""


def parser() -> OptionParser:
    """The options."""
    parser = OptionParser(
        prog="main.py predict",
        description="What a trained model says about a text, and how sure it is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        type=os.path.expanduser,
        help="RUNS/.../checkpoints/last.ckpt, an exported folder, or OWNER/NAME of the hub",
    )
    add(
        "file",
        metavar="FILE",
        nargs="?",
        default="-",
        type=os.path.expanduser,
        help="text, UTF-8; - or nothing: standard input",
    )
    add("--mc_samples", type=int, metavar="K", help="sampled networks; 0: the approximation alone (default: 50)")
    add("--seed", type=int, default=0, help="of sampled networks and generated words (default: 0)")
    add("--format", choices=FORMATS, default="table", help="(default: table)")
    add("--output", type=path, metavar="FILE", help="write here, as a whole or not at all, instead of printing")
    ratings = parser.add_argument_group("sentiment models")
    add = ratings.add_argument
    add("--interval", type=float, metavar="P", help="probability of the predictive interval (default: 0.9)")
    add("--whole", action="store_true", default=None, help="FILE is one text; otherwise each line is one")
    generation = parser.add_argument_group("language models")
    add = generation.add_argument
    add("--generate", type=int, metavar="N", help="continue the text by N words instead, each sequence by one sampled "
        "network, kept to its end (--mc_samples 0: by the approximation)")  # fmt: skip
    add("--sequences", type=int, metavar="S", help="sequences to generate (default: 1)")
    add("--temperature", type=float, metavar="T", help="divides the logits; 0: the likeliest word (default: 1)")
    add("--top_k", type=int, metavar="K", help="draw from the K likeliest words only")
    add("--no_unknown", action="store_true", default=None, help="never draw <unk>")
    return parser


def main(arguments: list[str]) -> None:
    """Print what a model says about a text, or write it into a file.

    Raises:
        ValueError: an option, the model or the text is of no use; nothing is written then.
        OSError: a file cannot be read or written.
    """
    options = parser().parse_args(arguments)
    check_count(0, LARGEST_SEED, **{"--seed": options.seed})
    if options.interval is not None:
        check_number(above=0, below=1, **{"--interval": options.interval})
    if options.output and (options.output.is_dir() or not options.output.absolute().parent.is_dir()):
        raise ValueError(f"--output {options.output} is a folder, or in none that is there: name a file in a folder")
    if options.output:
        check_writable(options.output, "--output")
        output = options.output.resolve()
        if Path(options.model).resolve() in (output, output.parent):
            raise ValueError(f"--output {options.output} would write over the model: name a file elsewhere")
        if options.file != "-" and Path(options.file).resolve() == output:
            raise ValueError(f"--output {options.output} would write over the text: name another file")
    model = load(options.model)
    wrong = [*OF_RATINGS] if isinstance(model, LanguageModel) else ["generate", *OF_GENERATION]
    if isinstance(model, LanguageModel) and options.generate is None:
        wrong += OF_GENERATION
    for name in wrong:
        if getattr(options, name) is not None:
            needs = "a sentiment model" if name in OF_RATINGS else "a language model"
            needs += " and --generate" if name in OF_GENERATION else ""
            raise ValueError(f"--{name} needs {needs}; {options.model} is a {type(model).__name__}")
    source = Path("standard input" if options.file == "-" else options.file)
    if options.file == "-" and sys.stdin.isatty():
        print("reading a text from standard input; Ctrl-D ends it", file=sys.stderr)
    text = decoded(sys.stdin.buffer.read() if options.file == "-" else read(source), source)
    reader = model.known_reader()
    if not any(reader.knows(word) for word in reader.words(text) if word not in (EOS, "\n")):
        raise ValueError(f"{source} has none of the words that the model knows: its predictions would mean nothing")
    texts = 1 if options.whole else text.count("\n")
    count = texts if isinstance(model, SentimentRegressor) else len(reader.words(text))
    if options.format == "table" and options.generate is None and count > MOST_ROWS:
        raise ValueError(
            f"a table of {count:,} rows is for nobody to read: choose --format csv or jsonl "
            '(ARGS="--format csv" for make)'
        )
    try:
        if isinstance(model, SentimentRegressor):
            rows, notes = ratings(model, reader, text, options)
        elif options.generate is not None:
            rows, notes = sequences(model, text, options)
        else:
            rows, notes = surprisals(model, text, options)
    except ValueError as error:
        raise ValueError(as_typed(str(error))) from error
    show(rows, notes, options.format, options.output)


def ratings(model: SentimentRegressor, reader: Reader, text: str, options: Any) -> tuple[list[Row], list[str]]:
    """A row for each text, and what has to be said about them."""
    lines = {1: text} if options.whole else dict(enumerate(text.split("\n"), start=1))
    lines = {number: line for number, line in lines.items() if line.strip()}
    level = 0.9 if options.interval is None else options.interval
    predicted = model.rate(list(lines.values()), options.mc_samples, options.seed)
    columns = {"approximation": predicted.approximation}
    count = len(predicted.samples)
    if count:
        columns |= {"mean": predicted.mean, "std": predicted.std}
    if count or predicted.tau is not None:
        columns["low"], columns["high"] = predicted.interval(level)
    elif options.interval is not None:
        raise ValueError("--interval needs sampled networks (--mc_samples), or a model whose noise was measured")
    rows = []
    for (number, line), *values in zip(lines.items(), *(column.tolist() for column in columns.values()), strict=True):
        unknown = sum(not reader.knows(word) for word in reader.words(line))
        row = {"line": number, "text": line, "unknown": unknown}
        rows.append(row | dict(zip(columns, values, strict=True)))
    notes = []
    if count:
        notes.append(f"mean, std: of {count} sampled networks; std is the model's own uncertainty")
    if "low" in columns:
        of = "the model's uncertainty alone; noise is unknown"
        if predicted.tau is not None:
            of = f"model and noise of a chunk (its std: {predicted.tau**-0.5:.4g})"
        notes.append(f"low, high: {100 * level:g} % interval of {of}")
    return rows, notes


def surprisals(model: LanguageModel, text: str, options: Any) -> tuple[list[Row], list[str]]:
    """A row for each word but the first, with its place in the text, and the perplexity."""
    said = model.surprisals(text, options.mc_samples, options.seed)
    for perplexity in (said.perplexity, said.perplexity_mc):
        if perplexity is not None and not math.isfinite(perplexity):
            raise ValueError(f"the perplexity of the text by {options.model} is {perplexity}: its run diverged")
    lines = [len(model.known_reader().words(line)) for line in text.removesuffix("\n").split("\n")]
    places = [(line, position) for line, n in enumerate(lines, start=1) for position in range(1, n + 1)][1:]
    columns: dict[str, list[Any]] = {
        "line": [line for line, _ in places],
        "position": [position for _, position in places],
        "word": said.words,
        "unknown": [not known for known in said.known],
        "surprisal": said.approximation.tolist(),
    }
    notes = [f"perplexity {said.perplexity:.2f} by the approximation"]
    if said.mc is not None and said.information is not None:
        columns |= {"surprisal_mc": said.mc.tolist(), "mutual_information": said.information.tolist()}
        count = model.checked_samples(options.mc_samples)
        notes[0] += f", {said.perplexity_mc:.2f} by MC with {count} sampled networks"
    unknown = len(said.known) - sum(said.known)
    notes.append(f"{len(said.words):,} words, {unknown:,} unknown; in nats; the first word is read, not predicted")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], notes


def sequences(model: LanguageModel, text: str, options: Any) -> tuple[list[Row], list[str]]:
    """A row for each generated sequence."""
    drawn = model.generate(
        text,
        options.generate,
        sequences=1 if options.sequences is None else options.sequences,
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k,
        unknown=not options.no_unknown,
        sampled=model.checked_samples(options.mc_samples) > 0,
        seed=options.seed,
    )
    return [{"sequence": i, "generated": spelled(words)} for i, words in enumerate(drawn, start=1)], []


def as_typed(message: str) -> str:
    """A message of the models that begins with one of their arguments, with the option in its place."""
    message = re.sub("^words must", "--generate must", message)
    return re.sub(r"^(mc_samples|sequences|temperature|top_k)\b", r"--\1", message)


def spelled(words: list[str]) -> str:
    """Words as lines."""
    return " ".join("\n" if word == EOS else word for word in words).replace(" \n", "\n").replace("\n ", "\n")


def show(rows: list[Row], notes: list[str], form: str, output: Path | None) -> None:
    """Print rows, or write them; notes stand below a table, and go to standard error beside other formats."""
    content = io.StringIO(newline="")
    if form == "csv":
        writer = csv.DictWriter(content, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif form == "jsonl":
        for row in rows:
            # JSON has no nan and no infinity.
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            content.write(f"{json.dumps(finite, ensure_ascii=False)}\n")
    else:
        table = Table(box=None, pad_edge=False, header_style="")
        cells = []
        for name in rows[0]:
            column = [row[name] for row in rows]
            is_text = isinstance(column[0], str)
            header = "approx." if name == "approximation" else name.replace("_", " ")
            table.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text)
            cells.append(_cells(column, is_whole=name == "generated"))
        for row_of_cells in zip(*cells, strict=True):
            table.add_row(*row_of_cells)
        Console(file=content, width=120 if output else None).print(table)
        content.write("".join(f"{note}\n" for note in notes))
        notes = []
    if output:
        write_atomically(output, content.getvalue())
        notes.append(f"wrote {output}")
    else:
        sys.stdout.write(content.getvalue())
    for note in notes:
        print(note, file=sys.stderr)


def _cells(column: list[Any], is_whole: bool) -> list[Text]:
    """A column of a table; numbers have about four digits, texts are cut at the end of the line unless shown whole."""
    if isinstance(column[0], bool):
        return [Text("yes" if value else "") for value in column]
    if isinstance(column[0], float):
        largest = max((abs(value) for value in column if math.isfinite(value)), default=0)
        decimals = min(max(3 - math.floor(math.log10(largest or 1)), 0), 6)
        form = ".3e" if 0 < largest < 1e-4 else f".{decimals}f"
        return [Text(f"{value:{form}}") for value in column]
    shown = ["".join(c if c.isprintable() or (is_whole and c == "\n") else " " for c in f"{value}") for value in column]
    return [Text(text) if is_whole else Text(text[:200], no_wrap=True, overflow="ellipsis") for text in shown]
