"""What a language model's test perplexity owes to choices that are made at test time."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import Tensor

from datamodules.streams import StreamWindows, TokenStreams
from lightning_modules.language_model import LanguageModel
from lightning_modules.recurrent_module import TEST, VALIDATION

TEMPERATURES = [round(0.7 + 0.05 * step, 2) for step in range(13)]
"""Among which the best on validation is chosen: 0.7, 0.75, ..., 1.3."""


def test_time_choices(model: LanguageModel, data: TokenStreams) -> list[dict[str, Any]]:
    """Perplexities by the dropout approximation, and by means over K sampled networks, with and without temperature.

    Validation and test text are each evaluated in one pass, all means over the same networks, for the test text those
    that a test with as many samples has; K = 1, 2, 5, ... are the first of them. The validation text is one stream
    here, as the test text is, so its perplexity is not quite that of training, where it is as many streams as a batch
    has. The temperature is the one of `TEMPERATURES` with the lowest validation perplexity, for each choice and each K;
    it divides the logits of every network.

    Args:
        model: trained; its `mc_samples`, `mc_masks` and `mc_word_dropout` say what is sampled.
        data: set up.

    Returns:
        For each choice: `mean` ("approximation", "arithmetic", or "geometric", which is divided by its sum over the
        vocabulary), `masks` ("stream", "window", None for the approximation), `samples` (K, 0 for the approximation),
        `valid_ppl` and `test_ppl` at temperature 1, `temperature`, and the perplexities at it, `valid_ppl_tempered` and
        `test_ppl_tempered`.

    Raises:
        ValueError: a perplexity is not finite.
    """

    def nll(split: str, stage: int, temperatures: list[float]) -> dict[tuple[str, str | None], Tensor]:
        windows = StreamWindows(data.ids[split][:, None], data.window, keep_remainder=True)
        found = model.test_time_nll(windows, stage, temperatures)
        if not all((values < math.log(sys.float_info.max)).all() for values in found.values()):  # nan is not, either
            raise ValueError(f"the model's {split} perplexity is not finite: its training has diverged, or it has none")
        return found

    valid = nll("validation", VALIDATION, TEMPERATURES)
    best = {way: values.argmin(dim=0).tolist() for way, values in valid.items()}
    used = sorted({1.0, *(TEMPERATURES[i] for indices in best.values() for i in indices)})
    test = nll("test", TEST, used)
    choices = []
    for (mean, masks), indices in best.items():
        valid_NC, test_NC = valid[mean, masks].tolist(), test[mean, masks].tolist()
        at_1, used_1 = TEMPERATURES.index(1.0), used.index(1.0)
        for i, tuned in enumerate(indices):
            temperature = TEMPERATURES[tuned]
            choices.append(
                {
                    "mean": mean,
                    "masks": masks,
                    "samples": model.mc_counts[i] if masks else 0,
                    "valid_ppl": math.exp(valid_NC[at_1][i]),
                    "test_ppl": math.exp(test_NC[used_1][i]),
                    "temperature": temperature,
                    "valid_ppl_tempered": math.exp(valid_NC[tuned][i]),
                    "test_ppl_tempered": math.exp(test_NC[used.index(temperature)][i]),
                }
            )
    return choices
