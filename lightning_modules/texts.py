"""Trained models on texts of a user's own: ratings, surprisals and generated words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from datamodules.checks import LARGEST_SEED, check_count, check_number, check_text, check_texts
from datamodules.reader import EOS, UNKNOWN
from datamodules.streams import StreamWindows
from lightning_modules.metrics import quantile
from lightning_modules.recurrent_module import MOST_SAMPLES, TEST
from variational_rnn import log_mean_exp, mc_dropout, mutual_information

if TYPE_CHECKING:
    from lightning_modules.language_model import LanguageModel
    from lightning_modules.sentiment_regressor import SentimentRegressor

LOGIT_ROWS = 512  # rows of logits held at once: 512 x 10,000 words x 4 bytes = 20 MB
MOST_WORDS = 100_000  # of a generated sequence
BATCH = 256  # chunks of texts that are predicted at once


class Surprisals(NamedTuple):
    """What a language model says about the N words of a text that follow its first one.

    Attributes:
        words: as the model reads them.
        known: whether the vocabulary has them; the others are read, and predicted, as <unk>.
        approximation: -ln p(word) in nats by the dropout approximation, [N].
        mc: -ln of the mean probability over K sampled networks, [N]; None without samples.
        information: mutual information of word and weights in nats, before the word is seen, [N]: how far the sampled
            networks disagree about what comes next; None without samples.
    """

    words: list[str]
    known: list[bool]
    approximation: Tensor
    mc: Tensor | None
    information: Tensor | None

    @property
    def perplexity(self) -> float:
        """Of the text, by the dropout approximation."""
        return float(self.approximation.mean().exp())

    @property
    def perplexity_mc(self) -> float | None:
        """Of the text, by MC."""
        return None if self.mc is None else float(self.mc.mean().exp())


class Ratings(NamedTuple):
    """What a regressor says about N texts, in rating units.

    Attributes:
        approximation: by the dropout approximation, [N].
        samples: of each of K sampled networks, [K, N].
        tau: precision of the noise, measured on held-out chunks, so that the interval of a text of several chunks is
            rather too wide; None if that was not done.
    """

    approximation: Tensor
    samples: Tensor
    tau: float | None

    @property
    def mean(self) -> Tensor:
        """MC prediction: the mean of the sampled networks, [N]."""
        return self.samples.mean(dim=0)

    @property
    def std(self) -> Tensor:
        """How far the sampled networks disagree, [N]: the model's uncertainty, without noise."""
        return self.samples.std(dim=0, correction=0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval, its ends [N] each: of the networks, and of the noise where tau is known.

        Args:
            level: probability of the interval.

        Raises:
            ValueError: level is not between 0 and 1, or there is neither a sample nor a tau.
        """
        [level] = check_number(above=0, below=1, level=level)
        if not len(self.samples) and self.tau is None:
            raise ValueError("there is no interval without sampled networks or noise")
        predictions = self.samples if len(self.samples) else self.approximation[None]
        return quantile(predictions, (1 - level) / 2, self.tau), quantile(predictions, (1 + level) / 2, self.tau)


@torch.inference_mode()
def surprisals(model: LanguageModel, text: str, mc_samples: int | None = None, seed: int = 0) -> Surprisals:
    """Predict every word of a text but the first, as `LanguageModel.surprisals`."""
    reader, samples = model.known_reader(), model.checked_samples(mc_samples)
    check_text(text)
    [seed] = check_count(0, LARGEST_SEED, seed=seed)
    words, ids = reader.words(text), torch.tensor(reader.ids(text), device=model.device)
    if len(ids) < 2:
        raise ValueError("a text needs two words, the end of a line included: the first one is not predicted")
    model.eval()
    steps = max(1, LOGIT_ROWS // max(1, samples))
    windows = StreamWindows(ids[:, None], steps if model.carry_state else reader.window or steps, True)
    model._eval_state, state, masks = None, None, None
    approximation, mc, information = [], [], []
    for index in range(len(windows)):
        inputs, targets = windows[index]
        approximation.append(model._surprisal((inputs, targets)).squeeze(1))
        if not samples:
            continue
        if masks is None or model.rnn.time_masks == "fresh":
            generator = model.generator(TEST, index, 0, seed=seed)
            masks = model.sample_masks(samples, len(inputs), generator)._replace(words=None)
        hidden, state = model._hidden(inputs.expand(-1, samples), state, masks)
        state = state if model.carry_state else None
        for hidden_TKH, targets_T1 in zip(hidden.split(steps), targets.split(steps), strict=True):
            log_probs_KTV = model.softmax(hidden_TKH).log_softmax(dim=-1).transpose(0, 1)
            log_probs_KT = log_probs_KTV.gather(-1, targets_T1.expand(samples, -1, 1)).squeeze(-1)
            mc.append(-log_mean_exp(log_probs_KT.double()))
            information.append(mutual_information(log_probs_KTV))
    model._eval_state = None
    return Surprisals(
        words[1:],
        [reader.knows(word) for word in words[1:]],
        torch.cat(approximation).double(),
        torch.cat(mc) if mc else None,
        torch.cat(information) if information else None,
    )


@torch.inference_mode()
def generate(
    model: LanguageModel,
    text: str,
    words: int,
    sequences: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    unknown: bool = True,
    sampled: bool = True,
    seed: int = 0,
) -> list[list[str]]:
    """Continue the last line of a text, as `LanguageModel.generate`."""
    reader = model.known_reader()
    vocabulary = reader.vocabulary
    [words] = check_count(1, MOST_WORDS, words=words)
    [sequences] = check_count(1, MOST_SAMPLES, sequences=sequences)
    if top_k is not None:
        [top_k] = check_count(1, len(vocabulary), top_k=top_k)
    [temperature] = check_number(0, temperature=temperature)
    [seed] = check_count(0, LARGEST_SEED, seed=seed)
    model.eval()
    prompt = reader.ids(text)[:-1] or [vocabulary.index(EOS)]  # the last line goes on
    inputs = torch.tensor(prompt, device=model.device)[:, None].expand(-1, sequences)
    generator = model.generator(TEST, seed=seed)
    state, masks = None, None
    chosen: list[Tensor] = []
    while len(chosen) < words:
        for window in inputs.split(max(1, LOGIT_ROWS // sequences)):
            if sampled and (masks is None or model.rnn.time_masks == "fresh"):
                masks = model.sample_masks(sequences, len(window), generator)._replace(words=None)
            hidden, state = model._hidden(window, state, masks)
        logits = model.softmax(hidden[-1]).double()[:, : len(vocabulary)]
        if not unknown and UNKNOWN in vocabulary:
            logits[:, vocabulary.index(UNKNOWN)] = -math.inf
        if top_k is not None:
            values, likeliest = logits.topk(top_k)  # exactly top_k, even if others are as likely
            logits = torch.full_like(logits, -math.inf).scatter(1, likeliest, values)
        if temperature == 0:
            inputs = logits.argmax(dim=-1)[None]
        else:
            # The largest is subtracted first, or a small temperature would make it infinite.
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
            inputs = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).T
        chosen.append(inputs[0])
    return [[vocabulary[i] for i in ids] for ids in torch.stack(chosen, dim=1).tolist()]


@torch.inference_mode()
def rate(model: SentimentRegressor, texts: Iterable[str], mc_samples: int | None = None, seed: int = 0) -> Ratings:
    """Predict the ratings of texts, as `SentimentRegressor.rate`."""
    reader, samples = model.known_reader(), model.checked_samples(mc_samples)
    texts = check_texts(texts)
    [seed] = check_count(0, LARGEST_SEED, seed=seed)
    model.eval()
    generator = model.generator(TEST, seed=seed)
    masks = [model.sample_masks(1, reader.chunk_length or 1, generator) for _ in range(samples)]
    chunks = [(chunk, number) for number, text in enumerate(texts) for chunk in reader.chunks(text)]
    sums = torch.zeros(1 + samples, len(texts), dtype=torch.float64, device=model.device)
    counts = torch.zeros(len(texts), dtype=torch.float64, device=model.device)
    for start in range(0, len(chunks), BATCH):
        batch, of = zip(*chunks[start : start + BATCH], strict=True)
        words = torch.tensor(batch, device=model.device).T
        predictions = [model(words)]
        with mc_dropout(model):
            predictions += [model(words, network.select([0] * len(batch))) for network in masks]
        index = torch.tensor(of, device=model.device)
        sums.index_add_(1, index, torch.stack(predictions).double())
        counts += index.bincount(minlength=len(texts))
    means = sums / counts
    return Ratings(means[0], means[1:], model.noise.get("tau_mc" if samples else "tau"))
