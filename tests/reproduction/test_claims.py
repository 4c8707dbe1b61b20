"""The paper's claims are judged by the curves."""

import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.catalogue import groups_of
from experiments.results import load_results
from reproduction.claims import CLAIMS, Curve, Curves, claims_table

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
    planned = {(group, row) for group, members in groups_of("sentiment").items() for row in members.planned}
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
        ((0.17, 0.16, 0.14, 0.14), "holds"),  # the first and the last differ
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
    for mc in (1.03, 0.97):
        write("figure10", "variational_gru", FALLING, mc=mc)
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


# --- by brute force, and beside every threshold -----------------------------------------------------------------------


def wandering(epochs: int, seed: int) -> list[float]:
    """A curve without any order, so that one epoch more or less in a mean shows."""
    source = random.Random(seed)
    return [0.15 + 0.03 * source.random() for _ in range(epochs)]


def below(epochs: int, share: float) -> list[float]:
    """As many epochs at 0.15, then 25 that are above it by a share."""
    return [0.15] * epochs + [0.15 * (1 + share)] * 25


@pytest.mark.parametrize("epochs", [60, 61, 100])
def test_the_end_is_the_last_25_epochs_and_the_lowest_stretch_five_in_a_row_before_them(epochs: int) -> None:
    values = wandering(epochs, seed=epochs)
    curve, last = Curve(values, CONSTANT, epochs), values[epochs - 25 :]
    fives = {first: sum(values[first : first + 5]) / 5 for first in range(epochs - 4)}
    before = min(mean for first, mean in fives.items() if first + 5 <= epochs - 25)
    steps = [last[i + 1] - last[i] for i in range(24)]
    mean_step = sum(steps) / 24
    assert curve.end == pytest.approx(sum(last) / 25)
    assert curve.lowest == pytest.approx(min(fives.values()))
    assert curve.rise == pytest.approx(sorted(last)[12] / before - 1)
    assert curve.oscillation == pytest.approx(math.sqrt(sum((step - mean_step) ** 2 for step in steps) / 23))
    assert curve.learns == pytest.approx(1 - min(fives.values()) / CONSTANT)


def test_a_stretch_that_ends_among_the_last_25_epochs_is_not_before_them() -> None:
    falling = [0.2] * 34 + [0.15] * 26  # of the last stretch before the end, one epoch is low
    assert Curve(falling, CONSTANT, 60).rise == pytest.approx(0.15 / 0.19 - 1)


def test_noise_is_the_mean_oscillation_of_the_seeds_as_a_share_of_their_mean_lowest_stretch() -> None:
    runs = [Curve(wandering(80, seed), CONSTANT, 80) for seed in (1, 2)]
    runs.append(Curve(scaled(wandering(80, seed=3), 3), CONSTANT, 80))
    seeds = Curves(runs)
    for statistic in ("end", "lowest", "rise", "oscillation", "learns"):
        assert seeds.mean(statistic) == pytest.approx(sum(getattr(run, statistic) for run in runs) / 3)
    assert seeds.noise == pytest.approx(sum(run.oscillation for run in runs) / sum(run.lowest for run in runs))


@pytest.mark.parametrize(("share", "overfits"), [(0.0299, False), (0.0301, True)])
def test_a_curve_overfits_if_it_ends_3_percent_above_its_lowest_stretch(
    share: float, overfits: bool, verdict: Verdict, three: Write
) -> None:
    three(below(35, 0.2), below(35, 0.2), below(35, share))
    assert verdict(ONLY)[0] == ("does not hold" if overfits else "holds")


@pytest.mark.parametrize(("share", "has_learnt"), [(0.0299, False), (0.0301, True)])
def test_a_network_has_learnt_something_3_percent_below_the_constant_predictor_at_its_best(
    share: float, has_learnt: bool, verdict: Verdict, three: Write
) -> None:
    lowest = CONSTANT * (1 - share)
    three(below(35, 0.2), below(35, 0.2), [*[0.19] * 10, *[lowest] * 5, *[lowest * 1.001] * 45])
    assert verdict(ONLY)[0] == ("holds" if has_learnt else "undecided")
    overfitted = [*[lowest] * 5, *[CONSTANT * 1.1] * 55]
    three(below(35, 0.2), overfitted, below(35, 0.0))
    assert verdict(ONLY)[0] == ("holds" if has_learnt else "undecided"), "what it ends at is another question"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(-0.0201, "holds"), (-0.0199, "undecided"), (0.0199, "undecided"), (0.0201, "does not hold")],
)
def test_ends_are_alike_within_2_percent(share: float, expected: str, verdict: Verdict, three: Write) -> None:
    three([0.16] * 60, [0.15] * 60, [0.15 * (1 + share)] * 60)
    assert verdict(LOWEST)[0] == expected
    early = [*[0.17] * 9, 0.15 * (1 + share), *[0.17] * 50]
    three(early, [0.15] * 60, [0.16] * 60, group="figure10", cell="gru")
    assert verdict(STOPPED)[0] == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(-0.0201, "does not hold"), (-0.0199, "holds"), (0.0199, "holds"), (0.0201, "does not hold")],
)
def test_masks_kept_and_mc_are_like_what_they_are_held_against_within_2_percent(
    share: float, expected: str, verdict: Verdict, write: Write
) -> None:
    write("figure2", "naive_lstm", below(35, 0.2))
    write("window_masks", "constant_lstm", scaled(below(35, 0.2), 1 + share))
    assert verdict(KEPT)[0] == expected
    write("figure2", "variational_lstm", FALLING, mc=1 + share)
    assert verdict(MC)[0] == expected


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.41, "holds"), (1.39, "undecided"), (0.61, "undecided"), (0.59, "does not hold")]
)
def test_oscillations_are_alike_within_40_percent_of_the_largest_other(
    ratio: float, expected: str, verdict: Verdict, write: Write
) -> None:
    sizes = {"pu0_pe0.5": 0.002 * ratio, "pu0_pe0": 0.001, "pu0.5_pe0": 0.002, "pu0.5_pe0.5": 0.0015}
    for row, size in sizes.items():
        write("figure3", row, [0.15 + size * (-1) ** epoch for epoch in EPOCHS])
    assert verdict(ERRATIC)[0] == expected


@pytest.mark.parametrize(("epochs", "is_judged"), [(59, False), (60, True)])
def test_runs_of_fewer_than_60_epochs_are_not_judged(
    epochs: int, is_judged: bool, verdict: Verdict, three: Write
) -> None:
    three(*(below(epochs - 25, share) for share in (0.2, 0.2, 0.0)))
    assert verdict(ONLY)[0] == ("holds" if is_judged else "not run")


@pytest.mark.parametrize(("epoch", "expected"), [(10, "holds"), (11, "does not hold")])
def test_the_tenth_epoch_is_the_last_early_one(epoch: int, expected: str, verdict: Verdict, three: Write) -> None:
    values = [0.17] * 60
    values[epoch - 1] = 0.14
    three(values, [0.15] * 60, [0.15] * 60, group="figure10", cell="gru")
    assert verdict(STOPPED)[0] == expected


def test_of_several_seeds_the_mean_of_their_lowest_early_epochs_is_held_against_the_ends(
    verdict: Verdict, three: Write, write: Write
) -> None:
    for seed, lowest in enumerate((0.12, 0.18)):
        write("figure10", "standard_gru", [*[0.19] * (seed + 3), lowest, *[0.19] * (56 - seed)], seed)
    for row in ("naive_gru", "variational_gru"):
        write("figure10", row, [0.14] * 60)
    found, evidence = verdict(STOPPED)
    assert (found, evidence.split(";")[0]) == ("does not hold", "standard 0.1500 after epoch 4, 5")


@pytest.mark.parametrize("seed", range(3))
def test_down_up_down_is_cut_where_its_smallest_move_is_largest_in_means_of_15_epochs(
    seed: int, verdict: Verdict, write: Write
) -> None:
    source = random.Random(seed)
    values = [value + 0.002 * source.random() for value in WAVE]
    write("figure3", "pu0.5_pe0", values)
    smooth = [sum(values[first : first + 15]) / 15 for first in range(46)]
    start, end = smooth[0], smooth[-1]
    _, low, high = max(
        (min(start / low - 1, high / low - 1, 1 - end / high), -low, high)
        for i, low in enumerate(smooth)
        for high in smooth[i:]
    )
    low = -low  # of cuts that are as good, the one with the lowest low
    expected = f"lowest {low:.4f}, then up to {high:.4f}, then {end / high - 1:+.1%} (60 epochs)"
    assert verdict(DOWN_UP_DOWN) == ("holds", expected)


def test_a_wave_no_higher_than_the_curve_oscillates_is_none(verdict: Verdict, write: Write) -> None:
    restless = [value + 0.02 * (-1) ** epoch for epoch, value in zip(EPOCHS, WAVE, strict=True)]
    write("figure3", "pu0.5_pe0", restless)
    assert verdict(DOWN_UP_DOWN)[0] == "does not hold"


def test_differences_smaller_than_the_curves_oscillate_decide_no_sweep(verdict: Verdict, write: Write) -> None:
    rows = [("length_sweep", "t20"), ("length_sweep", "t50"), ("figure2", "variational_lstm"), ("length_sweep", "t400")]
    for size, expected in ((0.0, "holds"), (0.01, "undecided")):
        for (group, row), level in zip(rows, (0.16, 0.159, 0.158, 0.15), strict=True):
            write(group, row, [level + size * (-1) ** epoch for epoch in range(60)])
        assert verdict(LONGER)[0] == expected


SWEEPS = {
    "the more dropout of recurrent connections, the more overfitting, without dropout of words": [
        ("figure3", "pu0.5_pe0"),
        *(("recurrent_sweep", f"pu{u}_pe0") for u in ("0.4", "0.3", "0.2", "0.1")),
        ("figure3", "pu0_pe0"),
    ],
    "the more dropout of recurrent connections, the less overfitting, with dropout of words": [
        ("figure3", "pu0_pe0.5"),
        *(("recurrent_sweep_words", f"pu{u}_pe0.5") for u in ("0.1", "0.2", "0.3", "0.4")),
        ("figure3", "pu0.5_pe0.5"),
    ],
    "the more dropout of words, the less overfitting": [
        ("figure3", "pu0.5_pe0"),
        *(("word_sweep", f"pu0.5_pe{e}") for e in ("0.1", "0.2", "0.3", "0.4")),
        ("figure3", "pu0.5_pe0.5"),
    ],
    LONGER: [
        ("length_sweep", "t20"),
        ("length_sweep", "t50"),
        ("figure2", "variational_lstm"),
        ("length_sweep", "t400"),
    ],
    "the more weight decay, the better": [
        ("decay_sweep", "l2_1e-6"),
        ("decay_sweep", "l2_1e-5"),
        ("decay_sweep", "l2_1e-4"),
        ("figure2", "variational_lstm"),
    ],
}

ENDS = (LONGER, "the more weight decay, the better")


@pytest.mark.parametrize("claim", SWEEPS)
def test_a_sweep_holds_in_the_order_of_the_paper_and_not_with_any_two_neighbours_exchanged(
    claim: str, verdict: Verdict, write: Write
) -> None:
    rows, is_of_ends = SWEEPS[claim], claim in ENDS
    curves = [
        [0.15 * (1 - 0.05 * step)] * 60 if is_of_ends else below(35, 0.4 - 0.05 * step) for step in range(len(rows))
    ]
    for (group, row), values in zip(rows, curves, strict=True):
        write(group, row, values)
    found, evidence = verdict(claim)
    assert found == "holds"
    measures = [f"{values[-1]:.4f}" if is_of_ends else f"{values[-1] / 0.15 - 1:+.1%}" for values in curves]
    assert re.findall(r" (\S+)(?=, | \(60 epochs)", evidence) == measures
    for i in range(len(rows) - 1):
        for j in (i, i + 1):
            write(*rows[j], curves[2 * i + 1 - j])
        assert verdict(claim)[0] == "does not hold", rows[i]
        for j in (i, i + 1):
            write(*rows[j], curves[j])


@pytest.mark.parametrize("claim", SWEEPS)
def test_only_a_claim_about_ends_waits_for_the_planned_end_before_it_fails(
    claim: str, verdict: Verdict, write: Write
) -> None:
    for step, (group, row) in enumerate(SWEEPS[claim]):
        write(group, row, below(35, 0.4 + 0.05 * step), planned_epochs=250)
    assert verdict(claim)[0] == ("undecided" if claim in ENDS else "does not hold")


def test_mc_is_averaged_over_its_epochs_among_the_last_25_of_each_seed(
    verdict: Verdict, write_result: WriteResult
) -> None:
    for seed, mc in enumerate((1.02, 1.05)):
        curve = [{"epoch": epoch, "test_rmse": 0.15} for epoch in EPOCHS]
        curve[34]["test_rmse_mc"] = 0.3  # epoch 35, the last one before
        curve[35] = {"epoch": 36, "test_rmse": 0.1, "test_rmse_mc": 0.1 * mc}
        curve[59]["test_rmse_mc"] = 0.15
        metrics = {"test_rmse": 0.15, "constant_rmse": CONSTANT}
        write_result("sentiment", "figure2", "variational_lstm", seed, epochs=60, curve=curve, metrics=metrics)
    # (0.102 + 0.15) / 0.25 and (0.105 + 0.15) / 0.25
    assert verdict(MC) == (
        "holds",
        "error of MC against that of the approximation: Variational LSTM (figure2) +1.4%",
    )


def test_the_evidence_of_rows_beside_those_that_mc_is_judged_by_is_their_range(verdict: Verdict, write: Write) -> None:
    write("figure2", "variational_lstm", FALLING)
    for row, mc in (("pu0.5_pe0", 1.01), ("pu0_pe0.5", 1.07), ("pu0.5_pe0.5", 0.96)):
        write("figure3", row, FALLING, mc=mc)
    others = "-4.0% (p_U = 0.5, p_E = 0.5 (figure3)) to +7.0% (p_U = 0, p_E = 0.5 (figure3))"
    assert verdict(MC)[1].endswith(f"; other rows: {others}")


def test_what_was_trained_or_evaluated_on_parts_of_the_data_is_not_judged(
    verdict: Verdict, three: Write, write: Write
) -> None:
    three(OVERFITTED, OVERFITTED, FALLING)
    for part in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        write("figure2", "variational_lstm", FALLING, config={"trainer": {part: 7}})
        assert verdict(LOWEST)[0] == "not run", part


def test_the_number_of_seeds_is_that_of_the_row_with_the_fewest(verdict: Verdict, three: Write, write: Write) -> None:
    three(OVERFITTED, OVERFITTED, FALLING)
    for seed in (1, 2):
        write("figure2", "variational_lstm", FALLING, seed)
    assert verdict(LOWEST)[1].endswith("(60 epochs)")
    for row in ("standard_lstm", "naive_lstm"):
        write("figure2", row, OVERFITTED, seed=1)
    assert verdict(LOWEST)[1].endswith("(60 epochs, 2 seeds at least)")
