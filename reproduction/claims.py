"""What the paper says about its sentiment experiment (protocol section 2.3), held against the runs."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import mean, median, stdev

import pandas as pd

from experiments.catalogue import labelled
from experiments.results import LIMITS, Result, comparable, without_diverged

LAST_EPOCHS = 25  # "the end of training" of a sentiment curve, protocol section 4, choice 24
RISES = 0.03  # a curve overfits if its end is so much above its lowest stretch
LEARNS = 0.03  # and it can only if that stretch is so much below the constant predictor
ALIKE = 0.02  # two errors are alike if they differ by no more
OSCILLATIONS_ALIKE = 0.4  # two standard errors of the ratio of two standard deviations of 25 values
MINIMUM = 60  # epochs: with fewer nothing is judged
EARLY = 10  # epochs within which early stopping is early
SMOOTH = 15  # epochs that are averaged before a curve's ups and downs are looked at
HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"

Row = tuple[str, str]
"""Group and row."""

Verdict = tuple[str, str]
"""HOLDS, FAILS or UNDECIDED, and the evidence."""


@dataclass(frozen=True)
class Curve:
    """Test RMSE by epoch, in rating units, of one run, and that of the constant predictor."""

    values: list[float]
    constant: float
    planned: int
    """Epochs that the experiment plans."""

    def averages(self, epochs: int) -> list[float]:
        """Means over so many epochs in a row."""
        return [mean(self.values[i : i + epochs]) for i in range(len(self.values) - epochs + 1)]

    @property
    def end(self) -> float:
        """Mean over the last epochs."""
        return mean(self.values[-LAST_EPOCHS:])

    @property
    def lowest(self) -> float:
        """Mean over the lowest five epochs in a row, so that a lucky one does not count."""
        return min(self.averages(5))

    @property
    def rise(self) -> float:
        """How far the last epochs' median is above the lowest five before them, as a share; negative if it still falls.

        The median, so that a breakdown of a few epochs, from which training recovers, is not taken for overfitting.
        """
        return median(self.values[-LAST_EPOCHS:]) / min(self.averages(5)[:-LAST_EPOCHS]) - 1

    @property
    def oscillation(self) -> float:
        """Standard deviation of the steps from epoch to epoch, over the last epochs."""
        last = self.values[-LAST_EPOCHS:]
        return stdev(after - before for before, after in pairwise(last))

    @property
    def learns(self) -> float:
        """How far the lowest five epochs are below the constant predictor, as a share."""
        return 1 - self.lowest / self.constant


@dataclass(frozen=True)
class Curves:
    """Runs of a row that may be averaged, one for each seed."""

    runs: list[Curve]

    @property
    def epochs(self) -> int:
        """How many each run has."""
        return len(self.runs[0].values)

    @property
    def planned(self) -> int:
        """How many the experiment plans."""
        return self.runs[0].planned

    def cut(self, epochs: int) -> "Curves":
        """The first epochs only."""
        return Curves([Curve(run.values[:epochs], run.constant, run.planned) for run in self.runs])

    def mean(self, statistic: str) -> float:
        """Mean over seeds of `end`, `lowest`, `rise`, `oscillation` or `learns`."""
        return mean(getattr(run, statistic) for run in self.runs)

    @property
    def noise(self) -> float:
        """How much it oscillates, as a share of its level."""
        return self.mean("oscillation") / self.mean("lowest")

    @property
    def overfits(self) -> bool:
        """Whether the end is above the lowest stretch: by a share that matters, and by more than it oscillates."""
        return self.mean("rise") > max(RISES, self.noise)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the rows that it is about by their names in the evidence, and the test of it.

    Where the rows are compared with each other, they are cut to the length that all have. A claim about where training
    ends does not fail before its planned end: what still falls may come to hold.
    """

    text: str
    rows: dict[str, Row]
    test: Callable[[dict[str, Curves]], Verdict]
    compares: bool = True
    is_of_the_end: bool = False

    def judge(self, found: dict[Row, Curves]) -> Verdict:
        """The verdict on it; NOT_RUN if a row was not run, or not for long enough."""
        curves = {name: found[row] for name, row in self.rows.items() if row in found}
        shortest = min((curve.epochs for curve in curves.values()), default=0)
        if len(curves) < len(self.rows) or shortest < MINIMUM:
            return NOT_RUN, "–"
        if self.compares:
            curves = {name: curve.cut(shortest) for name, curve in curves.items()}
        verdict, evidence = self.test(curves)
        longest = max(curve.epochs for curve in curves.values())
        planned = max(curve.planned for curve in curves.values())
        if verdict == FAILS and self.is_of_the_end and shortest < planned:
            verdict = UNDECIDED
        seeds = min(len(curve.runs) for curve in curves.values())
        length = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        epochs = f"{length} of {planned} epochs" if shortest < planned else f"{length} epochs"
        return verdict, f"{evidence} ({epochs}{f', {seeds} seeds at least' if seeds > 1 else ''})"


def _idle(curves: dict[str, Curves]) -> str | None:
    """Evidence that a network learnt nothing, of which nobody can say whether it overfits."""
    idle = [
        f"{name} learnt nothing: lowest {curve.mean('lowest'):.4f}, the constant predictor {curve.runs[0].constant:.4f}"
        for name, curve in curves.items()
        if curve.mean("learns") < LEARNS
    ]
    return "; ".join(idle) or None


def _values(curves: dict[str, Curves], statistic: str, form: str) -> str:
    return ", ".join(f"{name} {curve.mean(statistic):{form}}" for name, curve in curves.items())


def _ends(curves: dict[str, Curves]) -> str:
    return "end: " + _values(curves, "end", ".4f")


def _rises(curves: dict[str, Curves]) -> str:
    """How far each is above its lowest, and how much it oscillates where only that excuses it."""
    excused = {name for name, curve in curves.items() if curve.mean("rise") > RISES and not curve.overfits}
    return "above lowest: " + ", ".join(
        f"{name} {curve.mean('rise'):+.1%}" + (f" (oscillates by {curve.noise:.1%})" if name in excused else "")
        for name, curve in curves.items()
    )


def _only_variational_does_not_overfit(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle(curves):
        return UNDECIDED, idle
    overfits = {name: curve.overfits for name, curve in curves.items()}
    holds = overfits == {"standard": True, "naive": True, "variational": False}
    return HOLDS if holds else FAILS, _rises(curves)


def _falling(curves: dict[str, Curves], statistic: str) -> str:
    """Whether a value falls from each row to the next: differences within ALIKE or the noise do not count."""
    margin = max(ALIKE, *(curve.noise for curve in curves.values()))
    values = [curve.mean(statistic) for curve in curves.values()]
    # Ends are errors, compared by their ratio; rises are shares already.
    falls = [(a - b) / (a if statistic == "end" else 1) for a, b in combinations(values, 2)]
    if min(falls) < -margin:
        return FAILS
    return HOLDS if falls[len(values) - 2] > margin else UNDECIDED  # of the first and the last


def _ends_fall(curves: dict[str, Curves]) -> Verdict:
    return _falling(curves, "end"), _ends(curves)


def _overfitting_falls(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle(curves):
        return UNDECIDED, idle
    return _falling(curves, "rise"), _rises(curves)


def _variational_ends_lowest(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle({"variational": curves["variational"]}):
        return UNDECIDED, f"{_ends(curves)}; {idle}"
    ends = {name: curve.mean("end") for name, curve in curves.items()}
    best_other = min(end for name, end in ends.items() if name != "variational")
    margin = 1 - ends["variational"] / best_other
    verdict = HOLDS if margin > ALIKE else FAILS if margin < -ALIKE else UNDECIDED
    return verdict, _ends(curves)


def _most_erratic_first(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle(curves):
        return UNDECIDED, idle
    first, *others = (curve.mean("oscillation") for curve in curves.values())
    more, less = ((1 + sign * OSCILLATIONS_ALIKE) * max(others) for sign in (1, -1))
    verdict = HOLDS if first > more else FAILS if first < less else UNDECIDED
    return verdict, "from epoch to epoch: " + _values(curves, "oscillation", ".4f")


def _naive_rises_and_oscillates(curves: dict[str, Curves]) -> Verdict:
    naive = {"naive": curves["naive"]}
    if idle := _idle(naive):
        return UNDECIDED, idle
    verdict, evidence = _most_erratic_first(curves)
    return verdict if naive["naive"].overfits else FAILS, f"{_rises(naive)}; {evidence}"


def _down_up_down(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle(curves):
        return UNDECIDED, idle
    [curve] = curves.values()
    cuts = []
    for run in curve.runs:
        values = run.averages(SMOOTH)
        # The best way to cut the curve: down to a low, up to a high, down to the end.
        cuts.append(
            max(
                (min(values[0] / low - 1, high / low - 1, 1 - values[-1] / high), low, high, values[-1])
                for j, high in enumerate(values)
                for low in [min(values[: j + 1])]
            )
        )
    swing, low, high, end = (mean(values) for values in zip(*cuts, strict=True))
    holds = swing > max(RISES, curve.noise)
    return HOLDS if holds else FAILS, f"lowest {low:.4f}, then up to {high:.4f}, then {end / high - 1:+.1%}"


def _both_overfit_alike(curves: dict[str, Curves]) -> Verdict:
    if idle := _idle(curves):
        return UNDECIDED, idle
    fresh, constant = curves.values()
    alike = abs(constant.mean("end") / fresh.mean("end") - 1) <= ALIKE and fresh.overfits and constant.overfits
    return HOLDS if alike else FAILS, f"{_ends(curves)}; {_rises(curves)}"


def _early_stopping_beats_all(curves: dict[str, Curves]) -> Verdict:
    idle = _idle(curves)
    curves = {name: curve for name, curve in curves.items() if name == "standard" or curve.mean("learns") >= LEARNS}
    early = [run.values[:EARLY] for run in curves["standard"].runs]
    lowest = mean(min(values) for values in early)
    epochs = ", ".join(str(values.index(min(values)) + 1) for values in early)
    margin = 1 - lowest / min(curve.mean("end") for curve in curves.values())
    verdict = HOLDS if margin > ALIKE else FAILS if margin < -ALIKE else UNDECIDED
    evidence = f"standard {lowest:.4f} after epoch {epochs}; {_ends(curves)}"
    return verdict, f"{evidence}; {idle}" if idle else evidence


def _main_claims(group: str, cell: str, name: str, settings: str = "") -> list[Claim]:
    standard, naive = ({row: (group, f"{row}_{cell}")} for row in ("standard", "naive"))
    variational = {"variational": (group, f"variational_{cell}{settings}")}
    all_three = standard | naive | variational
    return [
        Claim(
            f"{name}: only the variational one does not overfit",
            all_three,
            _only_variational_does_not_overfit,
            compares=False,
        ),
        Claim(f"{name}: the variational one ends lowest", all_three, _variational_ends_lowest, is_of_the_end=True),
        Claim(
            f"{name}: with naive dropout the test error rises and oscillates",
            naive | variational,
            _naive_rises_and_oscillates,
        ),
    ]


STEPS = ("0", "0.1", "0.2", "0.3", "0.4", "0.5")  # of p_U and p_E in the sweeps


def _corner(recurrent: str, word: str) -> Row:
    """Of Figure 3, or what lies between."""
    if {recurrent, word} <= {"0", "0.5"}:
        group = "figure3"
    else:
        group = {"0": "recurrent_sweep", "0.5": "recurrent_sweep_words"}.get(word, "word_sweep")
    return group, f"pu{recurrent}_pe{word}"


VARIATIONAL = ("figure2", "variational_lstm")
VARIATIONAL_ROWS = [VARIATIONAL, ("figure10", "variational_gru"), ("figure10", "variational_gru_p0.5")]
CLAIMS = [
    *_main_claims("figure2", "lstm", "LSTM"),
    *_main_claims("figure10", "gru", "GRU"),
    *_main_claims("figure10", "gru", "GRU, p = 0.5", "_p0.5"),
    Claim(
        f"GRU: stopped early (within {EARLY} epochs), the standard one beats all others at their end",
        {name: ("figure10", f"{name}_gru") for name in ("standard", "naive", "variational")},
        _early_stopping_beats_all,
        is_of_the_end=True,
    ),
    *_main_claims("figure2_modern", "lstm", "LSTM of today"),
    *_main_claims("figure10_modern", "gru", "GRU of today"),
    Claim(
        "without dropout of words, dropout of recurrent connections makes overfitting worse",
        {f"p_U = {u}": _corner(u, "0") for u in ("0.5", "0")},
        _overfitting_falls,
    ),
    Claim(
        "with dropout of words it is the other way round",
        {f"p_U = {u}": _corner(u, "0.5") for u in ("0", "0.5")},
        _overfitting_falls,
    ),
    Claim(
        "p_U = 0, p_E = 0.5 is the most erratic of the four (p_U, p_E)",
        {f"({u}, {e})": _corner(u, e) for u, e in (("0", "0.5"), ("0", "0"), ("0.5", "0"), ("0.5", "0.5"))},
        _most_erratic_first,
    ),
    Claim(
        "p_U = 0.5, p_E = 0 goes down, up, and down again",
        {"curve": _corner("0.5", "0")},
        _down_up_down,
        is_of_the_end=True,
    ),
    Claim(
        "the more dropout of recurrent connections, the more overfitting, without dropout of words",
        {f"p_U = {u}": _corner(u, "0") for u in reversed(STEPS)},
        _overfitting_falls,
    ),
    Claim(
        "the more dropout of recurrent connections, the less overfitting, with dropout of words",
        {f"p_U = {u}": _corner(u, "0.5") for u in STEPS},
        _overfitting_falls,
    ),
    Claim(
        "the more dropout of words, the less overfitting",
        {f"p_E = {e}": _corner("0.5", e) for e in STEPS},
        _overfitting_falls,
    ),
    Claim(
        "the longer the sequences, the better",
        {"T = 20": ("length_sweep", "t20"), "50": ("length_sweep", "t50")}
        | {"200": VARIATIONAL, "400": ("length_sweep", "t400")},
        _ends_fall,
        is_of_the_end=True,
    ),
    Claim(
        "the more weight decay, the better",
        {f"l2 = {l2}": ("decay_sweep", f"l2_{l2}") for l2 in ("1e-6", "1e-5", "1e-4")} | {"1e-3": VARIATIONAL},
        _ends_fall,
        is_of_the_end=True,
    ),
    Claim(
        "LSTM: masks on input and output only overfit alike, whether fresh at each step or kept",
        {"fresh": ("figure2", "naive_lstm"), "kept": ("window_masks", "constant_lstm")},
        _both_overfit_alike,
    ),
]


def claims_table(results: list[Result]) -> pd.DataFrame:
    """Each claim, the evidence from our runs, and whether it holds; MC against the approximation comes last."""
    runs: dict[Row, list[Result]] = {}
    for run in results:
        if run.experiment == "sentiment":
            runs.setdefault((run.group, run.row), []).append(run)
    runs = {row: _complete(of_row) for row, of_row in runs.items()}
    found = {row: _curves(of_row) for row, of_row in runs.items() if of_row}
    verdicts = [(claim.text, *claim.judge(found)) for claim in CLAIMS]
    long = {row: curves for row, curves in found.items() if curves.epochs >= MINIMUM}
    learnt = {row: runs[row] for row, curves in long.items() if curves.mean("learns") >= LEARNS}
    mc = ("MC and the dropout approximation are alike", *_mc_and_approximation(learnt))
    return pd.DataFrame([*verdicts, mc], columns=["claim", "verdict", "evidence"])


def _mc_and_approximation(runs: dict[Row, list[Result]]) -> Verdict:
    """Of the variational networks of Figures 2 and 10, by the mean over the epochs with MC among the last ones.

    The other rows with dropout that have learnt something are in the evidence only, like the error by review.
    """
    above = {row: ratio for row, of_row in runs.items() if (ratio := _mc_above(of_row, "test_rmse")) is not None}
    names = {(group, row): f"{labelled(row)} ({group})" for group, row in above}
    judged = {row: ratio for row, ratio in above.items() if row in VARIATIONAL_ROWS}
    if not judged:
        return NOT_RUN, "–"
    parts = []
    for row, ratio in judged.items():
        by_review = _mc_above(runs[row], "test_rmse_review")
        parts.append(f"{names[row]} {ratio:+.1%}" + ("" if by_review is None else f", by review {by_review:+.1%}"))
    evidence = f"error of MC against that of the approximation: {'; '.join(parts)}"
    if others := sorted((ratio, names[row]) for row, ratio in above.items() if row not in judged):
        ends = dict.fromkeys([others[0], others[-1]])
        evidence += "; other rows: " + " to ".join(f"{ratio:+.1%} ({name})" for ratio, name in ends)
    return HOLDS if all(abs(ratio) <= ALIKE for ratio in judged.values()) else FAILS, evidence


def _mc_above(runs: list[Result], metric: str) -> float | None:
    """How far MC is above the approximation, as a share, where both were measured; None where they were not."""
    ratios = []
    for run in runs:
        last = [entry for entry in run.curve[-LAST_EPOCHS:] if f"{metric}_mc" in entry]
        if last:
            ratios.append(sum(entry[f"{metric}_mc"] for entry in last) / sum(entry[metric] for entry in last) - 1)
    return mean(ratios) if ratios else None


def _complete(runs: list[Result]) -> list[Result]:
    """Of a row the first set that may be averaged with runs that did not diverge, saw all data, and have all errors."""
    for same in comparable(runs):
        complete = [
            run
            for run in without_diverged(same)
            if run.points("test_rmse")[0] == list(range(1, len(run.curve) + 1))
            and "constant_rmse" in run.metrics
            and all(run.trainer.get(limit) is None for limit in LIMITS)
        ]
        if complete:
            return complete
    return []


def _curves(runs: list[Result]) -> Curves:
    return Curves([Curve(run.points("test_rmse")[1], run.metrics["constant_rmse"], run.planned_epochs) for run in runs])
