"""The tour runs, and says what is true."""

import random
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from datasets import Dataset

from datamodules import snippets

TOUR = Path(__file__).parent.parent / "examples/tour.py"


@pytest.mark.slow
def test_the_tour_runs_and_uncertainty_grows_where_nothing_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, words = random.Random(0), [f"w{i}" for i in range(6000)]
    texts = {
        "text": [" ".join(source.choices(words, k=12)) for _ in range(800)],
        "rating": [source.uniform(-4, 4) for _ in range(800)],
    }
    monkeypatch.setattr(snippets, "load_snippets", lambda _: Dataset.from_dict(texts))
    monkeypatch.setattr(snippets, "fetch_snippets", lambda _: None)
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names = runpy.run_path(str(TOUR))
    out = capsys.readouterr().out
    assert "same masks, same output:  True\nother masks, other output: True\n" in out
    spreads = [float(spread) for spread in re.findall(r"mean spread (\d\.\d\d)", out)]
    assert spreads[1] > 1.5 * spreads[0]
    assert [len(curve) for curve in names["curves"].values()] == [10, 10]
    assert (tmp_path / "tour.png").stat().st_size > 10_000
