"""What the paper says about its sentiment experiment (protocol section 2.3), held against the runs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev

import pandas as pd

from reproduction.results import Result, kept

LAST_EPOCHS = 25  # "the end of training" of a sentiment curve, protocol section 4, choice 24
RISES = 0.03  # a curve overfits if its end is so much above its lowest stretch
ALIKE = 0.02  # two errors are alike if they differ by no more
HOLDS, FAILS, NOT_RUN = "holds", "does not hold", "not run"

Row = tuple[str, str]
"""Group and row."""


@dataclass(frozen=True)
class Curve:
    """Test RMSE by epoch, in rating units, the mean over seeds.

    Raises:
        ValueError: it is too short for its end to be told from its beginning.
    """

    values: list[float]

    def __post_init__(self) -> None:
        if len(self.values) <= LAST_EPOCHS:
            raise ValueError(f"{len(self.values)} epochs are too few")

    @property
    def end(self) -> float:
        """Mean over the last epochs."""
        return mean(self.values[-LAST_EPOCHS:])

    @property
    def smooth(self) -> list[float]:
        """Means over five epochs, so that a lucky one does not count."""
        return [mean(self.values[i : i + 5]) for i in range(len(self.values) - 4)]

    @property
    def rise(self) -> float:
        """How far the end is above the lowest five epochs, as a share."""
        return self.end / min(self.smooth) - 1

    @property
    def oscillation(self) -> float:
        """Standard deviation of the steps from epoch to epoch, over the last epochs."""
        last = self.values[-LAST_EPOCHS:]
        return stdev(after - before for before, after in pairwise(last))


Curves = dict[Row, Curve]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the rows that it is about, and the test of it: whether it holds, and the evidence."""

    text: str
    rows: list[Row]
    test: Callable[[Curves], tuple[bool, str]]


def only_variational_does_not_overfit(group: str, cell: str) -> Claim:
    """Figures 2 and 10."""
    names = {name: (group, f"{name}_{cell}") for name in ("standard", "naive", "variational")}

    def test(curves: Curves) -> tuple[bool, str]:
        rises = {name: curves[row].rise for name, row in names.items()}
        holds = rises["variational"] <= RISES < min(rises["standard"], rises["naive"])
        return holds, "end above lowest: " + ", ".join(f"{name} {rise:+.1%}" for name, rise in rises.items())

    return Claim(f"{cell.upper()}: only the variational one does not overfit", list(names.values()), test)


def variational_ends_lowest(group: str, cell: str) -> Claim:
    """Figures 2 and 10."""
    names = {name: (group, f"{name}_{cell}") for name in ("standard", "naive", "variational")}

    def test(curves: Curves) -> tuple[bool, str]:
        ends = {name: curves[row].end for name, row in names.items()}
        return min(ends, key=lambda name: ends[name]) == "variational", "end: " + _values(ends)

    return Claim(f"{cell.upper()}: the variational one ends lowest", list(names.values()), test)


def naive_rises_and_oscillates(group: str, cell: str) -> Claim:
    """Figure 2."""
    naive, variational = (group, f"naive_{cell}"), (group, f"variational_{cell}")

    def test(curves: Curves) -> tuple[bool, str]:
        ours, other = curves[naive].oscillation, curves[variational].oscillation
        evidence = f"naive {curves[naive].rise:+.1%}; from epoch to epoch ±{ours:.4f}, variational ±{other:.4f}"
        return curves[naive].rise > RISES and ours > other, evidence

    return Claim(f"{cell.upper()}: with naive dropout the test error rises and oscillates", [naive, variational], test)


def ends_in_order(text: str, rows: dict[str, Row]) -> Claim:
    """The first of `rows` ends highest, the last lowest."""

    def test(curves: Curves) -> tuple[bool, str]:
        ends = {name: curves[row].end for name, row in rows.items()}
        values = list(ends.values())
        return values == sorted(values, reverse=True), "end: " + _values(ends)

    return Claim(text, list(rows.values()), test)


def erratic_without_recurrent_dropout() -> Claim:
    """Figure 3."""
    rows = {f"{u}, {e}": ("figure3", f"pu{u}_pe{e}") for u in ("0", "0.5") for e in ("0", "0.5")}

    def test(curves: Curves) -> tuple[bool, str]:
        steps = {name: curves[row].oscillation for name, row in rows.items()}
        evidence = "from epoch to epoch: " + ", ".join(f"({name}) ±{step:.4f}" for name, step in steps.items())
        return max(steps, key=lambda name: steps[name]) == "0, 0.5", evidence

    return Claim("p_U = 0, p_E = 0.5 is the most erratic of the four (p_U, p_E)", list(rows.values()), test)


def down_up_down() -> Claim:
    """Figure 3."""
    row = ("figure3", "pu0.5_pe0")

    def test(curves: Curves) -> tuple[bool, str]:
        values = curves[row].smooth
        # The best way to cut the curve: a low, then a high, each beside what comes after it.
        rise, fall, low, high = max(
            (min(high / low - 1, 1 - curves[row].end / high), 1 - curves[row].end / high, low, high)
            for j, high in enumerate(values)
            for low in [min(values[: j + 1])]
        )
        return rise > RISES, f"lowest {low:.4f}, then up to {high:.4f}, then {-fall:+.1%} to {curves[row].end:.4f}"

    return Claim("p_U = 0.5, p_E = 0 goes down, up, and down again", [row], test)


def naive_and_window_masks_are_alike() -> Claim:
    """Appendix."""
    naive, window = ("figure2", "naive_lstm"), ("window_masks", "constant_lstm")

    def test(curves: Curves) -> tuple[bool, str]:
        rises, ends = ([getattr(curves[row], what) for row in (naive, window)] for what in ("rise", "end"))
        evidence = f"end: fresh {ends[0]:.4f} ({rises[0]:+.1%}), kept {ends[1]:.4f} ({rises[1]:+.1%})"
        return abs(ends[1] / ends[0] - 1) <= ALIKE and min(rises) > RISES, evidence

    text = "LSTM: masks on input and output only overfit alike, whether fresh at each step or kept"
    return Claim(text, [naive, window], test)


def early_stopping_beats_all(group: str) -> Claim:
    """Admitted in the paper for the GRU."""
    rows = [(group, f"{name}_gru") for name in ("standard", "naive", "variational")]

    def test(curves: Curves) -> tuple[bool, str]:
        lowest = min(curves[rows[0]].values)
        ends = {row[1].removesuffix("_gru"): curves[row].end for row in rows}
        epoch = curves[rows[0]].values.index(lowest) + 1
        return lowest < min(ends.values()), f"standard {lowest:.4f} after epoch {epoch}; end: {_values(ends)}"

    return Claim("GRU: stopped early, the standard one beats all others at their end", rows, test)


CLAIMS = [
    *(
        claim(group, cell)
        for group, cell in (("figure2", "lstm"), ("figure10", "gru"))
        for claim in (only_variational_does_not_overfit, variational_ends_lowest, naive_rises_and_oscillates)
    ),
    early_stopping_beats_all("figure10"),
    ends_in_order(
        "without dropout of words, dropout of recurrent connections makes overfitting worse",
        {f"p_U = {u}": ("figure3", f"pu{u}_pe0") for u in ("0.5", "0")},
    ),
    ends_in_order(
        "with dropout of words it is the other way round",
        {f"p_U = {u}": ("figure3", f"pu{u}_pe0.5") for u in ("0", "0.5")},
    ),
    erratic_without_recurrent_dropout(),
    down_up_down(),
    ends_in_order(
        "the longer the sequences, the better",
        {
            "T = 20": ("length_sweep", "t20"),
            "50": ("length_sweep", "t50"),
            "200": ("figure2", "variational_lstm"),
            "400": ("length_sweep", "t400"),
        },
    ),
    ends_in_order(
        "the more weight decay, the better",
        {f"l2 = {l2}": ("decay_sweep", f"l2_{l2}") for l2 in ("1e-6", "1e-5", "1e-4")}
        | {"1e-3": ("figure2", "variational_lstm")},
    ),
    naive_and_window_masks_are_alike(),
]


def claims_table(results: list[Result]) -> pd.DataFrame:
    """Each claim, the evidence from our runs, and whether it holds; MC against the approximation comes last."""
    runs: dict[Row, list[Result]] = {}
    for run in results:
        if run.experiment == "sentiment":
            runs.setdefault((run.group, run.row), []).append(run)
    lines = []
    for claim in CLAIMS:
        verdict, evidence = NOT_RUN, "–"
        try:
            curves = {row: _curve(runs[row]) for row in claim.rows}
        except (KeyError, ValueError):
            pass  # a row that was not run, or not for long enough
        else:
            holds, evidence = claim.test(curves)
            verdict = HOLDS if holds else FAILS
            epochs = {len(curve.values) for curve in curves.values()}
            evidence += f" ({' to '.join(str(n) for n in dict.fromkeys((min(epochs), max(epochs))))} epochs)"
        lines.append({"claim": claim.text, "verdict": verdict, "evidence": evidence})
    return pd.DataFrame([*lines, _mc_line(runs)])


def _mc_line(runs: dict[Row, list[Result]]) -> dict[str, str]:
    pairs = {
        f"{group} {row}": (run.metrics["test_rmse"], run.metrics["test_rmse_mc"])
        for (group, row), (run, *_) in runs.items()
        if row.startswith("variational") and "test_rmse_mc" in run.metrics and len(run.curve) > LAST_EPOCHS
    }
    alike = all(abs(mc / approximation - 1) <= ALIKE for approximation, mc in pairs.values())
    evidence = "; ".join(f"{name} {approx:.4f}, MC {mc:.4f}" for name, (approx, mc) in pairs.items())
    verdict = NOT_RUN if not pairs else HOLDS if alike else FAILS
    return {"claim": "MC and the dropout approximation are alike", "verdict": verdict, "evidence": evidence or "–"}


def _curve(runs: list[Result]) -> Curve:
    curves = [run.points("test_rmse")[1] for run in kept(runs)]
    epochs = min((len(curve) for curve in curves), default=0)
    return Curve([mean(curve[i] for curve in curves) for i in range(epochs)])


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
