"""What the command line says of options and configurations that are wrong."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from argparse import HelpFormatter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.fabric.utilities.seed import max_seed_value
from lightning.pytorch.cli import LightningArgumentParser

from training.commands import CHOICE, HELP

TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text", "NoneType": "null"}
CLASSES = {"model": "lightning_modules.LanguageModel", "data": "datamodules.PlainText"}
MAY_BE_EMPTY = ("init_args", "dict_kwargs")  # jsonargparse ignores any other empty section silently
MOST_VALUES = 10_000  # of a configuration; those of the repository have less than a hundred
SEED = f"--seed_everything must be a whole number from 0 to {max_seed_value}"


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are one message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"allow_abbrev": False})  # a misspelt option is none

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Of the program its commands, of a command its options."""
        return HELP if self._subcommands_action else super().format_help(formatter)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration, and refuse unknown options, including those without a value."""
        known = [option.removeprefix("--") for option in self._option_string_actions]
        sections = {option.partition(".")[0] for option in known if "." in option and not option.endswith(".help")}
        single = [option for option in known if option not in sections]
        for name, (line, value) in check_config(Path(cfg_path)).items():
            if name in sections:
                if not isinstance(value, yaml.MappingNode) and value.value:
                    raise ValueError(f"--config {cfg_path}, line {line}: {name} must have options below it")
            elif not any(f"{name}.".startswith(f"{option}.") for option in single):
                raise ValueError(f"--config {cfg_path}, line {line}: there is no option {name!r}{_meant(name, known)}")
        return super().parse_path(cfg_path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and where help is, and end with status 2."""
        if not self.exit_on_error:  # of one alternative of several
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        name = parser.prog.replace(" [options]", "")
        listed = "commands" if parser._subcommands_action else "options"
        print(f"error: {in_short(message, parser)}\n(`{name} --help` lists the {listed})", file=sys.stderr)
        self.exit(2)


def in_short(message: str, parser: LightningArgumentParser | None = None) -> str:
    """What is wrong, without all that every alternative type has against a value.

    Args:
        message: jsonargparse's.
        parser: whose options may have been meant.
    """
    if unknown := re.match(
        r"(?:Subcommand '\w+' does not accept option '|unrecognized arguments: --)([^\s=']+)", message
    ):
        option = unknown[1]
        known = [name.removeprefix("--") for name in parser._option_string_actions] if parser else []
        return f"{_where(option)}there is no option {option!r}{_meant(option, known)}"
    if command := re.match(r"expected \"subcommand\"|argument subcommand: invalid choice: ('.+?')", message):
        return f"there is no command {command[1]}: {CHOICE}" if command[1] else f"there is no command: {CHOICE}"
    if re.search(r"arguments are required: \w+\.model", message):
        return "there is no model: name a configuration, such as --config demo/sentiment/variational"
    if required := re.match(r"the following arguments are required: (.+)", message):
        names = (name.partition(".")[2] for name in required[1].split(", "))
        return f"{' and '.join(f'--{name}' for name in names)} must be given"
    if unknown := re.search(r"class_path '([\w.]+)':\s*Option '([\w.]+)' is not accepted", message):
        path, option = unknown.groups()
        # Not imported, which is to execute: the message may quote what somebody wrote into a file.
        module, _, name = path.rpartition(".")
        owner = vars(sys.modules[module]).get(name) if module in sys.modules else None
        known = list(inspect.signature(owner).parameters) if inspect.isclass(owner) else []
        return f"{_where(option)}{path} has no option {option!r}{_meant(option, known)}"
    if outside := re.match(r"(-?\d+) is not in bounds, numpy accepts", message):
        return f"{SEED}, got {outside[1]}"
    key, found, details = message.rpartition('Parser key "')[2].partition('":')  # the innermost
    kinds = map(_plain, re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", details, re.MULTILINE))
    allowed = dict.fromkeys(kind for kind in kinds if kind != TYPES["NoneType"])
    value = re.search(r"G(?:ot|iven) value: (.*)", details)
    if key == "seed_everything" and value:
        return f"{SEED}, got {value[1]}"
    if key in CLASSES and value and "given class_path" not in details:
        given = re.sub(r"^NestedArg\(key='class_path', val=(.*)\)$", r"\1", value[1])
        return f"{key} must name one class, such as {CLASSES[key]}, got {given}"
    if found and allowed and value and "given class_path" not in details:
        return f"{_where(key)}{key} must be {' or '.join(allowed)}, got {value[1]}"
    first = re.search(r"(?:Errors:\n\s*- |class_path '[\w.]+':\s*)((?:.+:\n\s*)?.+)", message)
    return re.sub(r":\n\s*", ": ", first[1]) if first else message.strip()


def _meant(option: str, known: list[str]) -> str:
    """The known option most like one, or like the word before its first dot, as a question."""
    near = [like for name in (option, option.partition(".")[0]) for like in difflib.get_close_matches(name, known)]
    return f": did you mean {near[0]!r}?" if near else ""


def _plain(kind: str) -> str:
    """A type as people call it: of "<class 'float'>", a number."""
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", name)
    return literal[1] if literal else TYPES.get(name, name)


def _where(option: str) -> str:
    """Where a configuration on the command line has an option, unless it stands on the command line itself."""
    if any(f".{word.partition('=')[0].lstrip('-')}".endswith(f".{option}") for word in sys.argv if word[:2] == "--"):
        return ""
    paths = [path for word, path in pairwise(sys.argv) if word == "--config"]
    for path in reversed([path for path in paths if "\n" not in path]):  # the last one counts; a row is text
        for name, (line, _) in check_config(Path(path)).items():
            if f".{name}".endswith(f".{option}"):
                return f"--config {path}, line {line}: "
    return ""


def check_config(path: Path) -> dict[str, tuple[int, yaml.Node]]:
    """Check a configuration before it is read: it must be YAML, of options, none of them repeated or empty.

    Returns:
        The line and the value of each option, `trainer.max_epochs`.

    Raises:
        ValueError: it is something else; names the file and the line.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"--config {path} has no options, in lines like `model:` and what it is, indented")
        if _values(root, {}) > MOST_VALUES:
            raise ValueError(f"--config {path} has aliases (*name) that expand to over {MOST_VALUES} values")
        return dict(_options(root, path, set()))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"--config {path} is nested too deeply") from error


def _values(node: yaml.Node, counts: dict[int, float]) -> float:
    """Number of values below a node, with aliases expanded; infinite where an alias contains itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until all that is below it is counted
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,)))
        counts[id(node)] = 1 + sum(_values(part, counts) for part in parts)
    return counts[id(node)]


def _options(
    node: yaml.Node, path: Path, seen: set[int], above: str = ""
) -> Iterator[tuple[str, tuple[int, yaml.Node]]]:
    """Options below a node, with lines and values; YAML readers take the last of equal keys without a word."""
    if id(node) in seen:  # by an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _options(value, path, seen, above)
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"--config {path}, line {line}: the name of an option must be a word")
        if key.value in lines:
            raise ValueError(
                f"--config {path}, line {line}: {key.value!r} is there already, in line {lines[key.value]}: "
                "put all that is below it in one place"
            )
        if above and isinstance(value, yaml.MappingNode) and not value.value and key.value not in MAY_BE_EMPTY:
            raise ValueError(
                f"--config {path}, line {line}: {above}{key.value} is empty: give it a value, or leave it out"
            )
        lines[key.value] = line
        yield above + key.value, (line, value)
        yield from _options(value, path, seen, f"{above}{key.value}.")
