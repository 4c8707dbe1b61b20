"""Files of texts and ratings, read so that what is wrong with them is said with file, line and value."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

SEPARATORS = ",;\t|"  # between the columns of a .csv file

Record = tuple[str, Any, Any]
"""Where a text stands, the text, its rating."""


def read(file: Path) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError: It is not there; names what is.
        IsADirectoryError: It is a folder.
        ValueError: It is empty.
    """
    if not file.exists():
        there = sorted(other.name for other in file.parent.iterdir()) if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file.absolute()} does not exist; in its folder there is: {quoted(there)}")
    if file.is_dir():
        raise IsADirectoryError(f"{file.absolute()} is a folder, but a file is needed: name one")
    content = file.read_bytes()
    if not content.strip():
        raise ValueError(f"{file} is empty")
    return content


def decoded(content: bytes, file: Path) -> str:
    """Decode the content of a UTF-8 file, without a byte order mark; lines end with a newline character.

    Raises:
        ValueError: It is no text.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise ValueError(
            f"{file}, line {line}: the byte 0x{byte:02x} is not UTF-8 ({error.reason}): "
            "save the text in that encoding, or take another file if this is none"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{file}, line {line} has a NUL character: save the text as UTF-8, or take another file if this is none"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


# Not the loaders of `datasets`: their errors name no line, and their cache takes a file of another content for the same
# if its time is.


def read_csv(content: bytes, file: Path, columns: dict[str, str]) -> Iterator[Record]:
    """Rows of a file separated by commas, semicolons, tabs or vertical bars; the first one names the columns."""
    text = decoded(content, file)
    header = text.lstrip("\n").partition("\n")[0]
    fields = {separator: [name.strip('"') for name in header.split(separator)] for separator in SEPARATORS}
    # The separator that gives most of the wanted columns, then the most columns; in a tie, the comma.
    separator = max(fields, key=lambda mark: (len({*columns.values()} & {*fields[mark]}), len(fields[mark])))
    return read_separated(text, file, columns, separator)


def read_tsv(content: bytes, file: Path, columns: dict[str, str]) -> Iterator[Record]:
    """The rows of a file of tab-separated values, of which the first has the names of the columns."""
    return read_separated(decoded(content, file), file, columns, "\t", has_quotes=False)


def read_separated(
    text: str, file: Path, columns: dict[str, str], separator: str, has_quotes: bool = True
) -> Iterator[Record]:
    """Rows of a table; the first one names the columns."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE,
        strict=True,
    )
    names: list[str] = []
    line = 1
    while True:
        where = f"{file}, line {line}"
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where}: {error}: put a text with quotes in quotes, and double those inside") from error
        line = lines.line_num + 1
        if not fields:
            continue
        if not names:
            names = fields
            text_column, rating_column = checked_columns(names, columns, where, f", split at {separator!r}")
            continue
        if len(fields) != len(names):
            hint = f"put texts with {separator!r} in quotes" if has_quotes else "write tabs between columns only"
            raise ValueError(f"{where} has {len(fields)} columns, the line of their names {len(names)}: {hint}")
        row = dict(zip(names, fields, strict=True))
        yield where, row[text_column], row[rating_column]


class Pairs(list[tuple[str, Any]]):
    """Keys and values of a JSON object, of which `dict` would keep the last one of each key."""


def read_json_lines(content: bytes, file: Path, columns: dict[str, str]) -> Iterator[Record]:
    """The objects in the lines of a file."""
    for number, line in enumerate(decoded(content, file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=Pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON ({error}): write one object in each line") from error
        if not isinstance(row, Pairs):
            raise ValueError(f"{where} is {shortened(repr(row))}: write one object in each line")
        text, rating = checked_columns((name for name, _ in row), columns, where)
        yield where, dict(row)[text], dict(row)[rating]


def read_parquet(content: bytes, file: Path, columns: dict[str, str]) -> Iterator[Record]:
    """The rows of a parquet file."""
    try:
        schema = pa.parquet.read_schema(io.BytesIO(content))
        text, rating = checked_columns(schema.names, columns, str(file))
        table = pa.parquet.read_table(io.BytesIO(content), columns=[text, rating])
        rows = zip(table[text].to_pylist(), table[rating].to_pylist(), strict=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no parquet file, or a damaged one: {shortened(str(error), 200)}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{file}, row {number}", *row


READERS = {".csv": read_csv, ".tsv": read_tsv, ".jsonl": read_json_lines, ".parquet": read_parquet}


def checked_columns(names: Iterable[str], columns: dict[str, str], where: str, how: str = "") -> list[str]:
    """The columns of texts and ratings; `how` tells the reader of an error how the names were found.

    Raises:
        ValueError: There is none of such a name, or several; names those that are there.
    """
    names = list(names)
    for option, name in columns.items():
        if names.count(name) > 1:
            raise ValueError(f"{where}: there are several columns {name!r}: leave one of them, or rename the others")
        if name not in names:
            advice = f"name one of these as {option} (--data.init_args.{option})"
            raise ValueError(f"{where}: there is no column {name!r}, but {quoted(names)}{how}: {advice}")
    return list(columns.values())


def shortened(text: str, length: int = 60) -> str:
    """The beginning of a text, in one line, for an error message."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def quoted(names: Iterable[str]) -> str:
    """Names, for an error message; the first of them if they are many."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "") or "nothing"
