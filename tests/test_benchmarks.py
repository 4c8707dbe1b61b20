"""The benchmark runs, and its README shows what the result file says."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import scaling, speed

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_the_readme_shows_the_committed_measurements():
    files = list((FOLDER / "results").glob("c*.json"))
    assert {file.stem for file in files} <= {"cuda"} | {f"cpu_{name}" for name in speed.INSTRUCTIONS}
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert speed.tables(result) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_committed_perplexities_of_both_precisions():
    assert speed.perplexities() in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A benchmark of tiny shapes in a folder of its own."""
    monkeypatch.setattr(speed, "SHAPES", [(2, 3, 4, 5), (3, 2, 5, 4)])
    monkeypatch.setattr(speed, "STEPS", {"small": (8, 5), "medium": (12, 4)})
    monkeypatch.setattr(speed, "VOCABULARY", 50)
    monkeypatch.setattr(speed, "peak_memory", lambda *_: None)
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    marks = "<!-- cpu:begin -->\nold\n<!-- cpu:end -->\n<!-- precision:begin --><!-- precision:end -->"
    (tmp_path / "README.md").write_text(f"above\n{marks}\nbelow\n", encoding="utf-8")
    return tmp_path


def test_a_run_writes_its_result_and_the_tables_into_the_readme(tiny, capsys):
    speed.main(["--seconds", "0.01", "--threads", "1"])
    text = (tiny / "README.md").read_text(encoding="utf-8")
    result = json.loads((tiny / "results" / f"cpu_{speed.instructions()}.json").read_text(encoding="utf-8"))
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert speed.INSTRUCTIONS[speed.instructions()] in text
    assert "2, 3, 4, 5" in text
    assert "both packed" in text
    assert "not measured" in text
    assert "| VD-LSTM + REAL " in text
    assert all(seconds > 0 for row in result["layers"] for seconds in row["seconds"].values())
    assert "nn.LSTM" in capsys.readouterr().out


def test_a_measurement_stays_in_the_readme_when_another_kind_of_processor_is_measured(tiny, monkeypatch):
    for kind in ("avx2", "amx"):
        monkeypatch.setattr(speed, "instructions", lambda kind=kind: kind)
        speed.main(["--seconds", "0.01", "--threads", "1"])
    text = (tiny / "README.md").read_text(encoding="utf-8")
    assert text.index(speed.INSTRUCTIONS["amx"]) < text.index(speed.INSTRUCTIONS["avx2"])


def test_a_result_in_another_file_leaves_the_readme_alone(tiny):
    speed.main(["--seconds", "0.01", "--threads", "1", "--output", str(tiny / "mine.json")])
    assert (tiny / "mine.json").exists()
    assert "old" in (tiny / "README.md").read_text(encoding="utf-8")


def test_impossible_threads_are_named(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--threads", "0"])
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_of_it_says_so(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--device", "cuda"])
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_the_readme_shows_the_committed_scaling():
    result = json.loads((FOLDER / "results" / "scaling.json").read_text(encoding="utf-8"))
    assert scaling.tables(result) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_with_the_same_batch_two_threads_gain_more_than_two_processes():
    result = json.loads((FOLDER / "results" / "scaling.json").read_text(encoding="utf-8"))
    for rates in result["words_per_s"].values():
        assert rates["2 processes, the same batch"] < rates["1 process, 2 threads"]
    readme = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    sent = " or ".join(f"{scaling.sent_bytes(size, 2) / 1e6:.0f}" for size in ("small", "medium"))
    assert f"gain less than two threads, since they exchange what they have computed, {sent} MB in each step" in readme


def test_an_lstm_with_masks_takes_about_the_time_of_torchs_and_large_ones_less_in_bfloat16():
    for file in (FOLDER / "results").glob("cpu_*.json"):
        layers = json.loads(file.read_text(encoding="utf-8"))["layers"]
        for row in layers:
            seconds = row["seconds"]
            ratio = seconds["nn.LSTM"] / seconds["LSTM tied"]
            assert ratio > (2 if row["precision"] == "bfloat16" and row["shape"][-1] == 1500 else 0.85)


def test_two_processes_send_each_other_one_gradient_and_many_almost_two():
    layer = 4 * 650 * (650 + 650 + 2)
    gradient = 4 * (10_000 * 650 + 2 * layer + 10_000 * 650 + 10_000)
    assert scaling.gradient_bytes("medium") == gradient
    assert scaling.sent_bytes("medium", 2) == gradient
    assert scaling.sent_bytes("medium", 1000) == pytest.approx(2 * gradient, rel=2e-3)


@pytest.mark.slow
def test_scaling_is_measured_on_one_process_and_on_two(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "SIZES", ("small",))
    output = tmp_path / "mine.json"
    scaling.main(["--turns", "1", "--steps", "2", "--output", str(output)])
    rates = json.loads(output.read_text(encoding="utf-8"))["words_per_s"]
    assert rates.keys() == {"small"}
    assert rates["small"].keys() == scaling.SETTINGS.keys()
    assert all(rate > 0 for rate in rates["small"].values())
    assert "2 processes, the same batch each" in capsys.readouterr().out
