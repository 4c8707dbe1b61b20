"""The metrics of runs: what they are called and how they are printed, by the names under which they are logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric; lower is better.

    Attributes:
        what: its full name.
        digits: after the decimal point.
        published: name of the figure in the published ones of a row, if there may be one.
        brief: its name in the line that tells the origin of a result; None where that leaves it out.
        is_mc: whether it is of sampled networks, whose number K is then named.
    """

    what: str
    digits: int
    published: str | None = None
    brief: str | None = None
    is_mc: bool = False


METRICS = {
    "valid_ppl": Metric("validation perplexity", 2, brief="valid"),
    "valid_ppl_lua": Metric(
        "validation perplexity, as the original code prints it", 2, published="valid", brief="valid as printed"
    ),
    "test_ppl": Metric("test perplexity", 2, published="test", brief="test"),
    "test_ppl_mc": Metric("test perplexity, MC", 2, published="test_mc", brief="MC", is_mc=True),
    "test_ppl_mc_window": Metric(
        "test perplexity, MC, masks per window", 2, brief="MC with masks per window", is_mc=True
    ),
    "test_ppl_sliding": Metric("test perplexity, each word from the window before it alone", 2),
    "valid_rmse": Metric("validation RMSE", 4),
    "test_rmse": Metric("test RMSE", 4, brief="test"),
    "test_rmse_review": Metric("test RMSE, by review", 4),
    "test_rmse_mc": Metric("test RMSE, MC", 4, brief="MC", is_mc=True),
    "test_rmse_review_mc": Metric("test RMSE, by review, MC", 4, is_mc=True),
    "constant_rmse": Metric("test RMSE of the mean training rating as prediction", 4),
}


def published_figure(published: dict[str, Any], metric: str | None) -> str:
    """A published mean with its deviation if that is known, e.g. "79.0 ± 0.1"; "n/a" if nothing is published."""
    if metric not in published:
        return "n/a"
    values = published[metric] if isinstance(published[metric], list) else [published[metric]]
    return " ± ".join(f"{value:.1f}" for value in values)
