"""The paper's claims are judged by the curves."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduction.claims import Curve, claims_table
from reproduction.results import load_results

WriteResult = Callable[..., Path]
EPOCHS = range(1, 61)

FALLING = [0.15 + 0.04 * math.exp(-epoch / 5) for epoch in EPOCHS]
OVERFITTED = [0.15 + 0.04 * math.exp(-epoch / 2) + 0.0005 * epoch for epoch in EPOCHS]
RESTLESS = [value + 0.005 * (-1) ** epoch for epoch, value in zip(EPOCHS, OVERFITTED, strict=True)]
WAVE = [0.17 + 0.02 * math.cos(epoch / 60 * 3 * math.pi) for epoch in EPOCHS]


def write(write_result: WriteResult, group: str, row: str, values: list[float], seed: int = 0) -> None:
    curve = [{"epoch": epoch, "test_rmse": value} for epoch, value in enumerate(values, start=1)]
    metrics = {"test_rmse": values[-1], "test_rmse_mc": values[-1] * 1.001}
    write_result("sentiment", group, row, seed, epochs=len(values), planned_epochs=60, curve=curve, metrics=metrics)


@pytest.fixture
def verdict(folder: Path) -> Callable[[str], tuple[str, str]]:
    def find(claim: str) -> tuple[str, str]:
        table = claims_table(load_results(folder))
        [(verdict, evidence)] = table[table["claim"] == claim][["verdict", "evidence"]].to_numpy().tolist()
        return verdict, evidence

    return find


ONLY = "LSTM: only the variational one does not overfit"
LOWEST = "LSTM: the variational one ends lowest"
NAIVE = "LSTM: with naive dropout the test error rises and oscillates"
ORDER = "without dropout of words, dropout of recurrent connections makes overfitting worse"
DOWN_UP_DOWN = "p_U = 0.5, p_E = 0 goes down, up, and down again"
STOPPED = "GRU: stopped early, the standard one beats all others at their end"
MC = "MC and the dropout approximation are alike"


def test_what_was_not_run_or_is_too_short_is_not_judged(folder: Path, write_result: WriteResult) -> None:
    for row in ("standard_lstm", "naive_lstm"):
        write(write_result, "figure2", row, OVERFITTED)
    write(write_result, "figure2", "variational_lstm", FALLING[:25])
    assert set(claims_table(load_results(folder))["verdict"]) == {"not run"}
    assert set(claims_table([])["verdict"]) == {"not run"}


def test_the_claims_of_figure_2_hold_where_the_curves_are_those_of_the_paper(
    verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    write(write_result, "figure2", "standard_lstm", OVERFITTED)
    write(write_result, "figure2", "naive_lstm", RESTLESS)
    write(write_result, "figure2", "variational_lstm", FALLING)
    assert [verdict(claim)[0] for claim in (ONLY, LOWEST, NAIVE, MC)] == ["holds"] * 4
    end = sum(FALLING[-25:]) / 25
    assert f"variational {end:.4f} (60 epochs)" in verdict(LOWEST)[1]
    assert "figure2 variational_lstm 0.1500, MC 0.1502" in verdict(MC)[1]


@pytest.mark.parametrize(
    ("rows", "claim"),
    [
        ((OVERFITTED, RESTLESS, OVERFITTED), ONLY),
        ((FALLING, RESTLESS, FALLING), ONLY),
        (([0.8 * value for value in OVERFITTED], RESTLESS, FALLING), LOWEST),
        ((OVERFITTED, OVERFITTED, RESTLESS), NAIVE),
        ((OVERFITTED, FALLING, FALLING), NAIVE),
    ],
)
def test_a_claim_does_not_hold_where_the_curves_are_others(
    rows: tuple[list[float], ...], claim: str, verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    for name, values in zip(("standard", "naive", "variational"), rows, strict=True):
        write(write_result, "figure2", f"{name}_lstm", values)
    assert verdict(claim)[0] == "does not hold"


def test_ends_are_compared_in_the_order_that_is_claimed(
    verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    write(write_result, "figure3", "pu0.5_pe0", OVERFITTED)
    write(write_result, "figure3", "pu0_pe0", FALLING)
    assert verdict(ORDER)[0] == "holds"
    write(write_result, "figure3", "pu0_pe0", RESTLESS)
    write(write_result, "figure3", "pu0.5_pe0", FALLING)
    assert verdict(ORDER)[0] == "does not hold"


@pytest.mark.parametrize(
    ("values", "expected"), [(WAVE, "holds"), (FALLING, "does not hold"), (OVERFITTED, "does not hold")]
)
def test_down_up_down_is_told_from_down_and_from_down_up(
    values: list[float], expected: str, verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    write(write_result, "figure3", "pu0.5_pe0", values)
    assert verdict(DOWN_UP_DOWN)[0] == expected


def test_the_lowest_epoch_of_the_standard_gru_is_held_against_the_ends_of_all(
    verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    write(write_result, "figure10", "standard_gru", [0.19, 0.14, *OVERFITTED])
    for row in ("naive_gru", "variational_gru"):
        write(write_result, "figure10", row, FALLING)
    found, evidence = verdict(STOPPED)
    assert (found, evidence.split(";")[0]) == ("holds", "standard 0.1400 after epoch 2")
    write(write_result, "figure10", "variational_gru", [0.13] * 60)
    assert verdict(STOPPED)[0] == "does not hold"


def test_seeds_are_averaged_epoch_by_epoch_and_diverged_ones_left_out(
    verdict: Callable[[str], tuple[str, str]], write_result: WriteResult
) -> None:
    for seed, level in enumerate((0.14, 0.16, math.inf)):
        write(write_result, "figure2", "variational_lstm", [level] * 60, seed)
    for row in ("standard_lstm", "naive_lstm"):
        write(write_result, "figure2", row, [0.2] * 60)
    assert "variational 0.1500" in verdict(LOWEST)[1]


def test_one_lucky_epoch_is_no_sign_of_overfitting() -> None:
    assert Curve([0.2] * 30 + [0.17] + [0.2] * 30).rise == pytest.approx(0.2 / (0.97 * 0.2 * 1.0) - 1, abs=0.001)
    assert Curve(FALLING).rise == pytest.approx(0.0, abs=0.01)
