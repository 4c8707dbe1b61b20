"""The paper's claims are judged by the curves."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from reproduction.claims import CLAIMS, Curve, Curves, claims_table
from reproduction.results import GROUPS, load_results

WriteResult = Callable[..., Path]
Verdict = Callable[[str], tuple[str, str]]
EPOCHS = range(1, 61)

FALLING = [0.15 + 0.04 * math.exp(-epoch / 5) for epoch in EPOCHS]
OVERFITTED = [0.15 + 0.04 * math.exp(-epoch / 2) + 0.0005 * epoch for epoch in EPOCHS]
RESTLESS = [value + 0.005 * (-1) ** epoch for epoch, value in zip(EPOCHS, OVERFITTED, strict=True)]
WAVE = [0.17 + 0.02 * math.cos(epoch / 60 * 3 * math.pi) for epoch in EPOCHS]
IDLE = [0.19] * 60
CONSTANT = 0.1915


def scaled(values: Sequence[float], factor: float) -> list[float]:
    return [factor * value for value in values]


@pytest.fixture
def write(write_result: WriteResult) -> Callable[..., None]:
    """Write the result file of a run with these test errors, and MC's at every fifth epoch, `mc` times as large."""

    def write(group: str, row: str, values: Sequence[float], seed: int = 0, mc: float = 1.001, **changes: Any) -> None:
        curve = [{"epoch": epoch, "test_rmse": value} for epoch, value in enumerate(values, start=1)]
        for entry in curve[4::5]:
            entry |= {"test_rmse_mc": mc * entry["test_rmse"], "test_rmse_review": 0.1, "test_rmse_review_mc": 0.102}
        metrics = {"test_rmse": values[-1], "constant_rmse": CONSTANT}
        epochs = len(values)
        changes = {"planned_epochs": epochs} | changes | {"epochs": epochs, "curve": curve, "metrics": metrics}
        write_result("sentiment", group, row, seed, **changes)

    return write


Write = Callable[..., None]


@pytest.fixture
def three(write: Write) -> Callable[..., None]:
    """Write the curves of standard, naive and variational."""

    def write_all(*values: Sequence[float], group: str = "figure2", cell: str = "lstm") -> None:
        for name, of_row in zip(("standard", "naive", "variational"), values, strict=True):
            write(group, f"{name}_{cell}", of_row)

    return write_all


@pytest.fixture
def verdict(folder: Path) -> Verdict:
    def find(claim: str) -> tuple[str, str]:
        table = claims_table(load_results(folder))
        [(verdict, evidence)] = table[table["claim"] == claim][["verdict", "evidence"]].to_numpy().tolist()
        return verdict, evidence

    return find


ONLY = "LSTM: only the variational one does not overfit"
LOWEST = "LSTM: the variational one ends lowest"
NAIVE = "LSTM: with naive dropout the test error rises and oscillates"
WORSE = "without dropout of words, dropout of recurrent connections makes overfitting worse"
BETTER = "with dropout of words it is the other way round"
ERRATIC = "p_U = 0, p_E = 0.5 is the most erratic of the four (p_U, p_E)"
DOWN_UP_DOWN = "p_U = 0.5, p_E = 0 goes down, up, and down again"
STOPPED = "GRU: stopped early (within 10 epochs), the standard one beats all others at their end"
LONGER = "the longer the sequences, the better"
KEPT = "LSTM: masks on input and output only overfit alike, whether fresh at each step or kept"
MC = "MC and the dropout approximation are alike"


def test_a_claim_is_judged_by_seeds_with_the_same_settings(three: Write, write: Write, verdict: Verdict) -> None:
    three(OVERFITTED, OVERFITTED, FALLING)
    before = verdict(LOWEST)
    assert before[0] == "holds"
    bf16 = {"trainer": {"precision": "bf16-mixed"}}
    write("figure2", "variational_lstm", scaled(OVERFITTED, 2), seed=1, config=bf16)
    assert verdict(LOWEST) == before


def test_claims_are_about_rows_that_are_planned() -> None:
    planned = {(group, row) for group, members in GROUPS["sentiment"].items() for row in members.rows}
    assert {row for claim in CLAIMS for row in claim.rows.values()} <= planned
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)


def test_what_was_not_run_or_is_too_short_is_not_judged(folder: Path, three: Write) -> None:
    three(OVERFITTED, OVERFITTED, FALLING[:25])
    table = claims_table(load_results(folder))
    # the short one has no end to hold MC against, either
    assert set(table[table["claim"] != MC]["verdict"]) == {"not run"}
    assert set(claims_table([])["verdict"]) == {"not run"}


@pytest.mark.parametrize(
    ("group", "cell", "name"),
    [
        ("figure2", "lstm", "LSTM"),
        ("figure10", "gru", "GRU"),
        ("figure2_modern", "lstm", "LSTM of today"),
        ("figure10_modern", "gru", "GRU of today"),
    ],
)
def test_the_main_claims_hold_where_the_curves_are_those_of_the_paper(
    group: str, cell: str, name: str, verdict: Verdict, three: Write
) -> None:
    three(OVERFITTED, RESTLESS, FALLING, group=group, cell=cell)
    assert [verdict(claim.replace("LSTM", name))[0] for claim in (ONLY, LOWEST, NAIVE)] == ["holds"] * 3
    end = sum(FALLING[-25:]) / 25
    assert f"variational {end:.4f} (60 epochs)" in verdict(LOWEST.replace("LSTM", name))[1]


@pytest.mark.parametrize(
    ("curves", "claim", "expected"),
    [
        ((OVERFITTED, RESTLESS, OVERFITTED), ONLY, "does not hold"),
        ((FALLING, RESTLESS, FALLING), ONLY, "does not hold"),
        ((OVERFITTED, RESTLESS, IDLE), ONLY, "undecided"),
        ((OVERFITTED, IDLE, FALLING), ONLY, "undecided"),
        ((scaled(OVERFITTED, 0.8), RESTLESS, FALLING), LOWEST, "does not hold"),
        ((scaled(FALLING, 0.99), RESTLESS, FALLING), LOWEST, "undecided"),
        ((scaled(FALLING, 1.01), RESTLESS, FALLING), LOWEST, "undecided"),
        ((OVERFITTED, OVERFITTED, RESTLESS), NAIVE, "does not hold"),
        ((OVERFITTED, RESTLESS, RESTLESS), NAIVE, "undecided"),
        ((OVERFITTED, FALLING, FALLING), NAIVE, "does not hold"),
        ((OVERFITTED, IDLE, FALLING), NAIVE, "undecided"),
    ],
)
def test_a_claim_fails_or_stays_undecided_where_the_curves_are_others(
    curves: tuple[list[float], ...], claim: str, expected: str, verdict: Verdict, three: Write
) -> None:
    three(*curves)
    assert verdict(claim)[0] == expected


def test_a_network_that_learnt_nothing_is_named(verdict: Verdict, three: Write) -> None:
    three(OVERFITTED, RESTLESS, IDLE)
    evidence = "variational learnt nothing: lowest 0.1900, the constant predictor 0.1915 (60 epochs)"
    assert verdict(ONLY) == ("undecided", evidence)
    assert verdict(LOWEST)[0] == "undecided"
    assert verdict(LOWEST)[1].endswith(evidence)
    found, said = verdict(NAIVE)
    assert found == "undecided"
    assert said.startswith("above lowest: naive +"), "what is known is said"
    assert said.endswith(evidence)
    three(OVERFITTED, FALLING, IDLE)
    assert verdict(NAIVE)[0] == "does not hold", "naive does not rise, whatever the other does"


def test_a_gru_that_learnt_nothing_is_no_rival_of_the_one_that_stops_early(verdict: Verdict, three: Write) -> None:
    three([0.19, 0.14, *OVERFITTED[:58]], OVERFITTED, IDLE, group="figure10", cell="gru")
    found, evidence = verdict(STOPPED)
    assert found == "holds"
    assert "variational 0.1900" not in evidence
    assert "variational learnt nothing" in evidence


def test_the_variational_gru_of_the_released_script_has_claims_of_its_own(
    verdict: Verdict, three: Write, write: Write
) -> None:
    three(OVERFITTED, RESTLESS, IDLE, group="figure10", cell="gru")
    write("figure10", "variational_gru_p0.5", FALLING)
    assert verdict(ONLY.replace("LSTM", "GRU"))[0] == "undecided"
    assert verdict(ONLY.replace("LSTM", "GRU, p = 0.5"))[0] == "holds"


def test_overfitting_is_judged_by_all_epochs_and_ends_are_compared_after_as_many(
    verdict: Verdict, three: Write
) -> None:
    late = [*FALLING, *OVERFITTED]
    three(OVERFITTED, RESTLESS, late)
    assert verdict(ONLY)[0] == "does not hold"
    assert "(60 to 120 of 120 epochs)" in verdict(ONLY)[1]
    assert verdict(LOWEST)[0] == "holds"
    assert "(60 of 120 epochs)" in verdict(LOWEST)[1]


def test_where_training_ends_is_not_denied_before_it(verdict: Verdict, three: Write, write: Write) -> None:
    three(scaled(OVERFITTED, 0.8), RESTLESS, FALLING)
    assert verdict(LOWEST)[0] == "does not hold"
    write("figure2", "variational_lstm", FALLING, planned_epochs=250)
    assert verdict(LOWEST)[0] == "undecided"
    assert verdict(LOWEST)[1].endswith("(60 of 250 epochs)")
    assert verdict(ONLY)[0] == "holds", "what is seen so far is judged"


def test_a_breakdown_of_some_epochs_is_not_overfitting(verdict: Verdict, three: Write) -> None:
    broken = [*FALLING[:50], 0.18, 0.19, 0.18, 0.17, 0.16, *FALLING[55:]]
    curve = Curve(broken, CONSTANT, 60)
    assert curve.end / min(FALLING) - 1 > 0.03
    assert abs(curve.rise) < 0.01
    three(OVERFITTED, RESTLESS, broken)
    found, evidence = verdict(ONLY)
    assert found == "holds"
    assert "oscillates" not in evidence


def test_of_a_row_only_its_longest_runs_count(verdict: Verdict, three: Write, write: Write) -> None:
    three(OVERFITTED, RESTLESS, FALLING)
    write("figure2", "variational_lstm", OVERFITTED[:40], seed=1)
    assert (verdict(ONLY)[0], verdict(ONLY)[1][-11:]) == ("holds", "(60 epochs)")


def test_what_oscillates_more_than_it_rises_does_not_overfit(verdict: Verdict, three: Write) -> None:
    noisy = [0.144 if 10 < epoch < 16 else 0.15 + 0.006 * (epoch % 3 - 1) for epoch in EPOCHS]
    curve = Curves([Curve(noisy, CONSTANT, 60)])
    assert curve.mean("rise") > 0.03
    assert not curve.overfits
    three(OVERFITTED, RESTLESS, noisy)
    assert verdict(ONLY)[0] == "holds"
    assert f"variational {curve.mean('rise'):+.1%} (oscillates by {curve.noise:.1%})" in verdict(ONLY)[1]


def test_more_overfitting_is_a_higher_rise_not_a_higher_end(verdict: Verdict, write: Write) -> None:
    write("figure3", "pu0.5_pe0", scaled(OVERFITTED, 0.9))
    write("figure3", "pu0_pe0", FALLING)
    assert verdict(WORSE)[0] == "holds"
    write("figure3", "pu0_pe0", scaled(OVERFITTED, 0.8))
    assert verdict(WORSE)[0] == "undecided"
    write("figure3", "pu0.5_pe0", FALLING)
    assert verdict(WORSE)[0] == "does not hold"
    write("figure3", "pu0.5_pe0", IDLE)
    assert verdict(WORSE)[0] == "undecided"


def test_with_dropout_of_words_the_order_is_the_other(verdict: Verdict, write: Write) -> None:
    write("figure3", "pu0.5_pe0.5", FALLING)
    write("figure3", "pu0_pe0.5", OVERFITTED)
    assert verdict(BETTER)[0] == "holds"


@pytest.mark.parametrize(("first", "expected"), [(RESTLESS, "holds"), (OVERFITTED, "does not hold")])
def test_the_most_erratic_is_so_by_more_than_chance(
    first: list[float], expected: str, verdict: Verdict, write: Write
) -> None:
    write("figure3", "pu0_pe0.5", first)
    for row, size in (("pu0_pe0", 0.002), ("pu0.5_pe0", 0.001), ("pu0.5_pe0.5", 0.002)):
        write("figure3", row, [0.15 + size * (-1) ** epoch for epoch in EPOCHS])
    assert verdict(ERRATIC)[0] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (WAVE, "holds"),
        (FALLING, "does not hold"),
        (OVERFITTED, "does not hold"),
        ([0.15 + 0.01 * (-1) ** (epoch // 3) for epoch in EPOCHS], "does not hold"),
    ],
)
def test_down_up_down_is_told_from_down_from_down_up_and_from_noise(
    values: list[float], expected: str, verdict: Verdict, write: Write
) -> None:
    write("figure3", "pu0.5_pe0", values)
    assert verdict(DOWN_UP_DOWN)[0] == expected


def test_the_lowest_early_epoch_of_the_standard_gru_is_held_against_the_ends_of_all(
    verdict: Verdict, three: Write
) -> None:
    early = [0.19, 0.14, *OVERFITTED[:58]]
    three(early, FALLING, FALLING, group="figure10", cell="gru")
    found, evidence = verdict(STOPPED)
    assert (found, evidence.split(";")[0]) == ("holds", "standard 0.1400 after epoch 2")
    for other, expected in (([0.13] * 60, "does not hold"), ([0.141] * 60, "undecided")):
        three(early, FALLING, other, group="figure10", cell="gru")
        assert verdict(STOPPED)[0] == expected
    late = [*FALLING[:30], 0.14, *FALLING[30:59]]
    three(late, FALLING, FALLING, group="figure10", cell="gru")
    assert verdict(STOPPED)[0] == "does not hold", "epoch 31 is not early"


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0.17, 0.16, 0.15, 0.14), "holds"),
        ((0.17, 0.16, 0.161, 0.14), "holds"),  # alike
        ((0.17, 0.15, 0.16, 0.14), "does not hold"),
        ((0.141, 0.141, 0.14, 0.14), "undecided"),
    ],
)
def test_a_sweep_holds_if_nothing_contradicts_it_and_its_ends_differ(
    levels: tuple[float, ...], expected: str, verdict: Verdict, write: Write
) -> None:
    rows = [("length_sweep", "t20"), ("length_sweep", "t50"), ("figure2", "variational_lstm"), ("length_sweep", "t400")]
    for (group, row), level in zip(rows, levels, strict=True):
        write(group, row, [level] * 60)
    assert verdict(LONGER)[0] == expected


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(OVERFITTED, "holds"), (FALLING, "does not hold"), (scaled(OVERFITTED, 0.95), "does not hold")],
)
def test_masks_fresh_or_kept_are_alike_if_both_overfit_to_the_same_end(
    kept: list[float], expected: str, verdict: Verdict, write: Write
) -> None:
    write("figure2", "naive_lstm", OVERFITTED)
    write("window_masks", "constant_lstm", kept)
    assert verdict(KEPT)[0] == expected


def test_mc_is_held_against_the_approximation_of_the_same_last_epochs_in_the_variational_rows(
    verdict: Verdict, write: Write
) -> None:
    write("figure10", "naive_gru", RESTLESS, mc=0.99)
    assert verdict(MC)[0] == "not run", "the paper says it of variational networks"
    for seed in (0, 1):
        write("figure2", "variational_lstm", FALLING, seed)
    write("figure3", "pu0_pe0.5", FALLING, mc=1.05)
    assert verdict(MC) == (
        "holds",
        "error of MC against that of the approximation: Variational LSTM (figure2) +0.1%, by review +2.0%; "
        "other rows: -1.0% (Naive GRU (figure10)) to +5.0% (p_U = 0, p_E = 0.5 (figure3))",
    )
    write("figure10", "variational_gru", FALLING, mc=1.03)
    assert verdict(MC)[0] == "does not hold"
    write("figure10", "variational_gru", [CONSTANT] * 60, mc=1.03)  # has learnt nothing
    assert verdict(MC)[0] == "holds"


def test_statistics_are_taken_of_each_seed_and_then_averaged_without_diverged_ones(
    verdict: Verdict, three: Write, write: Write
) -> None:
    three([0.2] * 60, [0.2] * 60, [0.14] * 60)
    for row, level in (("standard", 0.2), ("naive", 0.2), ("variational", 0.16)):
        write("figure2", f"{row}_lstm", [level] * 60, seed=1)
    write("figure2", "variational_lstm", [math.inf] * 60, seed=2)
    assert "variational 0.1500 (60 epochs, 2 seeds at least)" in verdict(LOWEST)[1]
    up, down = ([0.15 + sign * 0.01 * (-1) ** epoch for epoch in EPOCHS] for sign in (1, -1))
    both = Curves([Curve(up, CONSTANT, 60), Curve(down, CONSTANT, 60)])
    assert both.mean("oscillation") == pytest.approx(0.02, rel=0.03), "a mean curve would not oscillate at all"


def test_one_lucky_epoch_is_no_sign_of_overfitting() -> None:
    assert Curve([0.2] * 30 + [0.17] + [0.2] * 30, CONSTANT, 61).rise == pytest.approx(1 / 0.97 - 1, abs=0.001)
    assert Curve(FALLING, CONSTANT, 60).rise == pytest.approx(0.0, abs=0.01)
