"""Tables of results in the terminal, in a file or in W&B: `python -m reproduction.table --help`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from experiments import print_any_text
from experiments.catalogue import catalogue, groups_of
from experiments.files import replace_between
from experiments.results import ResultError, chosen_experiments, load_results
from reproduction.tables import BEGIN, END, FORMATS, print_tables, to_markdown


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, write them into a file, or check that they are current there."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduction.table",
        description="Tables of results, with the published numbers beside ours. As Markdown if piped.",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (%(default)s)")
    parser.add_argument(
        "--experiment",
        nargs="+",
        help=f"of {', '.join(catalogue())} and your own (default: all; the demo where it was run)",
    )
    parser.add_argument("--size", nargs="+", choices=list(groups_of("ptb")), help="Penn Treebank sizes (default: all)")
    parser.add_argument("--format", choices=list(FORMATS), help="print in this format (default: for reading)")
    parser.add_argument("--readme", type=Path, help=f"replace what stands between {BEGIN} and {END} in this file")
    parser.add_argument("--wandb", type=Path, metavar="FOLDER", help="log W&B Tables, too; their files go to FOLDER")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the tables in --readme are stale")
    options = parser.parse_args(arguments)
    if options.check and not options.readme:
        parser.error("--check needs --readme FILE")
    if options.readme and (options.format or options.wandb):
        parser.error("--readme takes Markdown: leave out --format and --wandb, or redirect what they print")

    try:
        results = load_results(options.results)
        experiments = chosen_experiments(options.experiment, results)
    except ResultError as error:
        sys.exit(str(error))
    if (options.readme or options.wandb) and not any(run.experiment in experiments for run in results):
        wanted = options.experiment or list(catalogue())
        targets = " or ".join("`make demo`" if name == "demo" else f"`make reproduce-{name}`" for name in wanted)
        sys.exit(f"{options.results}: no results of {', '.join(wanted)}; run {targets} first")
    try:
        if not options.readme:
            if sys.stdout.isatty() and not options.format:
                print_tables(Console(highlight=False), results, experiments, options.size)
            else:
                print(FORMATS[options.format or "markdown"](results, experiments, options.size), flush=True)
            if options.wandb:
                from reproduction.wandb_report import log_tables  # here, since it takes longer to load than to print

                log_tables(options.wandb, results, experiments, options.size)
            return
        tables = to_markdown(results, experiments, options.size)
    except ResultError as error:
        sys.exit(str(error))
    try:
        replace_between(options.readme, BEGIN, END, tables, options.check)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    print_any_text()
    main()
