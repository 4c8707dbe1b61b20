import shutil
from pathlib import Path

import pytest

from experiments import catalogue as module
from experiments.catalogue import catalogue, find_row


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(module.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(module, "catalogue", catalogue.__wrapped__)
    return tmp_path / "configs/ptb/medium.yaml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("common:", "comon:", "the file has comon; allowed are: "),
        ("    label: Zaremba et al.\n", "", "row zaremba needs label"),
        ("valid: 86.2", "vald: 86.2", "published of row zaremba has vald; allowed are: kwps, test, test_mc, valid"),
        ("valid: 86.2", "valid: many", "valid of row zaremba is 'many'; write a number"),
        ("ensembles:", "like: nowhere\nensembles:", "is like nowhere, but there is no nowhere.yaml beside it"),
        ("ensembles:", "like: medium\nensembles:", "is like itself"),
        ("ensembles:", "  zaremba: {label: Again}\nensembles:", "zaremba is written twice"),
        ("ensembles:", "  a: {label: A, from: ptb/small/nothing}\nensembles:", "row a is from ptb/ptb/small/nothing"),
        ("ensembles:", "  a: {label: A, published_as: b}\nensembles:", "row a is published_as b, which is no row"),
        ("ensembles:", "grid: {word_dropout: [0.1]}\nensembles:", "grid needs label, name"),
    ],
)
def test_a_wrong_table_is_refused_by_file_and_row(table: Path, old: str, new: str, message: str) -> None:
    table.write_text(table.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        module.catalogue()
    assert str(table) in str(error.value)
    assert message in str(error.value)


def test_an_unknown_row_is_answered_with_rows_like_it() -> None:
    with pytest.raises(ValueError, match=r"there is no row 'ptb/medium/zarema' .*choose from: ptb/medium/zaremba"):
        find_row("ptb/medium/zarema")
