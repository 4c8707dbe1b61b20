"""What trained models say about texts that are not of their data."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import PennTreebank, RatedText
from datamodules.reader import Reader
from lightning_modules import LanguageModel, SentimentRegressor
from lightning_modules import language_model as module
from lightning_modules.experiment import TEST
from lightning_modules.sentiment_regressor import Ratings
from lightning_modules.trainer import Trainer
from variational_rnn import mc_dropout

DROPOUT = {"input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
LANGUAGE = Reader(("<unk>", "<eos>", *"abcdefghi"), "spaces", window=5)
RATED = Reader(("<pad>", "<start>", "<unk>", "<unused>", *(f"w{i}" for i in range(26))), "words", chunk_length=6)
TEXT = "a b c x\nd e f g h i\n\na a b\n"


@pytest.fixture
def model(language_model: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    def build(**changes: Any) -> LanguageModel:
        built = language_model(**DROPOUT | changes)
        built.reader = LANGUAGE
        return built

    return build


def log_probs(model: LanguageModel, ids: Tensor, masks: Any) -> Tensor:
    """ln p of every word type after each word but the last, [N, V], of one network in one pass from zeros."""
    with torch.no_grad():
        return model.eval()(ids[:-1, None], None, masks)[0].squeeze(1).log_softmax(dim=-1)


# --- language models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"cell": "gru"}, {"carry_state": False}, {"word_dropout": 0.3}])
def test_perplexities_of_the_test_file_are_those_of_the_test(
    changes: dict[str, Any], tiny_treebank: Path, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    data = PennTreebank(tiny_treebank.parent, batch_size=2, window=5, vocab_size=12)
    model = LanguageModel(12, 6, init_scale=0.5, mc_samples=3, **DROPOUT | changes).double()
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    said = model.surprisals((tiny_treebank / "ptb.test.txt").read_text(), mc_samples=3, seed=0)
    assert said.perplexity == pytest.approx(metrics["test_ppl"], rel=1e-6)
    assert said.perplexity_mc == pytest.approx(metrics["test_ppl_mc"], rel=1e-6)
    assert len(said.words) == len(data.ids["test"]) - 1


@pytest.mark.parametrize("rows", [1, 3, 512])
def test_mc_is_the_mean_probability_of_networks_that_are_each_kept_for_the_whole_text(
    rows: int, model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)
    built = model(word_dropout=0.4)
    said = built.surprisals(TEXT, mc_samples=4, seed=7)
    ids = torch.tensor(LANGUAGE.ids(TEXT))
    masks = built.sample_masks(4, 1, built.generator(TEST, 0, 0, seed=7))._replace(words=None)
    networks = torch.stack([log_probs(built, ids, masks.select([k])) for k in range(4)])
    mean = networks.exp().mean(dim=0)
    entropy = -(mean * mean.log()).sum(dim=-1)
    each = -(networks.exp() * networks).sum(dim=-1).mean(dim=0)
    targets = ids[1:, None]
    alone = log_probs(built, ids, None)
    assert said.mc is not None
    assert said.information is not None
    assert torch.allclose(said.approximation, -alone.gather(1, targets).squeeze(1))
    assert torch.allclose(said.mc, -mean.gather(1, targets).squeeze(1).log())
    assert torch.allclose(said.information, entropy - each)
    assert said.information.max() > 1e-3
    assert said.perplexity == pytest.approx(math.exp(float(said.approximation.mean())))


def test_words_are_those_that_the_model_reads_and_unknown_ones_are_told(model: Callable[..., LanguageModel]) -> None:
    said = model().surprisals("a x\nb", mc_samples=0)
    assert said.words == ["x", "<eos>", "b", "<eos>"]
    assert said.known == [False, True, True, True]
    assert said.mc is None
    assert said.perplexity_mc is None


def test_a_seed_gives_the_same_networks_and_another_one_others(model: Callable[..., LanguageModel]) -> None:
    built = model()
    first, again, other = (built.surprisals(TEXT, 3, seed).mc for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_naive_masks_are_fresh_at_each_step(model: Callable[..., LanguageModel]) -> None:
    said = model(time_masks="fresh").surprisals(TEXT, 3)
    assert said.mc is not None
    assert said.mc.isfinite().all()


def test_a_model_without_dropout_is_not_sampled_by_default_and_not_on_demand(
    model: Callable[..., LanguageModel],
) -> None:
    built = model(**dict.fromkeys(DROPOUT, 0.0), word_dropout=0.3)
    assert built.surprisals(TEXT).mc is None
    with pytest.raises(ValueError, match="the model has no dropout"):
        built.surprisals(TEXT, 3)


@pytest.mark.parametrize("samples", [-1, 1, 1001])
def test_a_number_of_samples_out_of_range_is_refused(samples: int, model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match=f"0 .*or from 2 to 1000, got {samples}"):
        model().surprisals(TEXT, samples)


def test_a_model_that_does_not_know_how_it_reads_says_what_to_do(language_model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match="set its `reader`"):
        language_model().surprisals(TEXT)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1e-9])
def test_without_temperature_the_likeliest_word_is_taken(
    temperature: float, model: Callable[..., LanguageModel]
) -> None:
    built = model()
    ids = [2, 3]
    for _ in range(9):
        ids.append(int(log_probs(built, torch.tensor([*ids, 0]), None)[-1].argmax()))
    [words] = built.generate("a b", 9, temperature=temperature, sampled=False)
    assert words == [LANGUAGE.vocabulary[i] for i in ids[2:]]


def test_each_sequence_is_of_one_network_kept_from_the_first_word_of_the_text_to_the_end(
    model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, drawn = model(), []
    sample_masks = built.sample_masks

    def recorded(*arguments: Any, **options: Any) -> Any:
        drawn.append(sample_masks(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(built, "sample_masks", recorded)
    monkeypatch.setattr(module, "LOGIT_ROWS", 6)  # the text is read in parts
    sequences = built.generate("a b c d e\nf", 12, sequences=3, temperature=0, seed=4)
    [masks] = drawn
    for k, words in enumerate(sequences):
        ids = LANGUAGE.ids("a b c d e\nf")[:-1]
        network = masks._replace(words=None).select([k])
        for word in words:
            best = int(log_probs(built, torch.tensor([*ids, 0]), network)[-1].argmax())
            assert word == LANGUAGE.vocabulary[best]
            ids.append(best)


def test_a_seed_gives_the_same_sequences_and_another_one_others(model: Callable[..., LanguageModel]) -> None:
    built = model()
    first, again, other = (built.generate("a", 30, sequences=2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] != first[1]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_model_in_training_mode_generates_with_all_words_and_without_other_masks_than_its_networks(
    sampled: bool, model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, drawn = model(word_dropout=0.5).train(), []
    sample_masks = built.sample_masks

    def recorded(*arguments: Any, **options: Any) -> Any:
        drawn.append(sample_masks(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(built, "sample_masks", recorded)
    sequences = built.generate("a b c", 12, sequences=2, temperature=0, sampled=sampled)
    assert len(drawn) == sampled
    for k, words in enumerate(sequences):
        ids = [2, 3, 4]
        network = drawn[0].select([k])._replace(words=None) if sampled else None
        for word in words:
            ids.append(int(log_probs(built, torch.tensor([*ids, 0]), network)[-1].argmax()))
            assert word == LANGUAGE.vocabulary[ids[-1]]


def test_only_words_of_the_vocabulary_are_generated_where_the_softmax_has_more_rows(
    model: Callable[..., LanguageModel],
) -> None:
    built = model(vocab_size=14)
    with torch.no_grad():
        built.softmax.bias[11:] = 50.0
    drawn = {word for words in built.generate("a", 5, sequences=100, top_k=11) for word in words}
    assert drawn <= set(LANGUAGE.vocabulary)
    assert len(drawn) > 3


def test_the_likeliest_words_are_those_of_the_known_ones_where_unknown_is_not_drawn(
    model: Callable[..., LanguageModel],
) -> None:
    built = model()
    with torch.no_grad():
        built.softmax.bias[0] = 50.0
    best = 1 + log_probs(built, torch.tensor([2, 0]), None)[-1][1:].topk(2).indices
    drawn = built.generate("a", 1, sequences=200, top_k=2, unknown=False, sampled=False)
    assert {word for [word] in drawn} == {LANGUAGE.vocabulary[i] for i in best}


def test_the_default_temperature_leaves_the_probabilities_as_they_are(model: Callable[..., LanguageModel]) -> None:
    built = model()
    options: dict[str, Any] = {"words": 1, "sequences": 1000, "sampled": False, "seed": 3}
    assert built.generate("a", **options) == built.generate("a", **options, temperature=1.0)


def test_words_are_drawn_from_the_likeliest_ones_and_not_unknown_if_so_asked(
    model: Callable[..., LanguageModel],
) -> None:
    built = model()
    best = log_probs(built, torch.tensor([2, 0]), None)[-1].topk(2).indices.tolist()
    words = {built.generate("a", 1, top_k=2, sampled=False, seed=seed)[0][0] for seed in range(20)}
    assert words == {LANGUAGE.vocabulary[i] for i in best}
    [free] = built.generate("a", 300)
    [known] = built.generate("a", 300, unknown=False)
    assert "<unk>" in free
    assert "<unk>" not in known


def test_frequencies_of_drawn_words_are_their_probabilities(model: Callable[..., LanguageModel]) -> None:
    built = model()
    logits = log_probs(built, torch.tensor([2, 0]), None)[-1] / 0.5
    drawn = built.generate("a", 1, sequences=1000, temperature=0.5, sampled=False)
    counts = torch.tensor([sum(words == [word] for words in drawn) for word in LANGUAGE.vocabulary])
    expected = 1000 * logits.softmax(dim=-1)
    assert ((counts - expected).abs() < 4 * expected.sqrt() + 1).all()


def test_an_empty_text_begins_a_line(model: Callable[..., LanguageModel]) -> None:
    built = model()
    best = int(log_probs(built, torch.tensor([1, 0]), None)[-1].argmax())
    assert built.generate("", 1, temperature=0, sampled=False) == [[LANGUAGE.vocabulary[best]]]


@pytest.mark.parametrize(
    "wrong",
    [{"words": 0}, {"sequences": 0}, {"sequences": 1001}, {"top_k": 0}, {"top_k": 12}]
    + [{"temperature": value} for value in (-1.0, math.inf, math.nan)],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], model: Callable[..., LanguageModel]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be at least .* got {value}"):
        model().generate("a", **{"words": 3} | wrong)


# --- ratings ----------------------------------------------------------------------------------------------------------

TEXTS = ["w3 w4 w9", "w1 " * 14, "nothing known", "w5"]


@pytest.mark.parametrize("changes", [{}, {"word_dropout": 0.3}, {"mask_pads": True}, {"time_masks": "fresh"}])
@pytest.mark.parametrize("layer", [{"cell": "gru"}, {"cell": "lstm"}, {"dropout_scale": "test"}])
def test_a_text_is_rated_by_the_mean_over_its_chunks_under_each_network(
    changes: dict[str, Any], layer: dict[str, Any], regressor: Callable[..., SentimentRegressor]
) -> None:
    if {"mask_pads", "dropout_scale"} <= changes.keys() | layer.keys():
        pytest.skip("the layers of 2015 read the pads")
    model = regressor(**DROPOUT | changes | layer).double()
    model.reader = RATED
    model.target_mean.fill_(3.0)
    ratings = model.rate(TEXTS, mc_samples=3, seed=5)
    generator = model.generator(TEST, seed=5)
    networks = [model.sample_masks(1, 6, generator) for _ in range(3)]
    with torch.no_grad():
        for text, (approximation, *samples) in zip(
            TEXTS, torch.cat([ratings.approximation[None], ratings.samples]).T, strict=True
        ):
            chunks = [torch.tensor(chunk)[:, None] for chunk in RATED.chunks(text)]
            assert approximation == pytest.approx(float(torch.stack([model(chunk) for chunk in chunks]).mean()))
            with mc_dropout(model):
                for network, sample in zip(networks, samples, strict=True):
                    assert sample == pytest.approx(float(torch.stack([model(c, network) for c in chunks]).mean()))
    assert ratings.std.min() > 0


def test_one_string_is_not_rated_letter_by_letter(regressor: Callable[..., SentimentRegressor]) -> None:
    model = regressor(**DROPOUT)
    model.reader = RATED
    with pytest.raises(TypeError, match=r"got one string: rate\(\[text\]\)"):
        model.rate(TEXTS[0])


def test_a_rating_does_not_depend_on_the_texts_beside_it(
    regressor: Callable[..., SentimentRegressor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = regressor(**DROPOUT).double()
    model.reader = RATED
    together = model.rate(TEXTS, 3).samples
    monkeypatch.setattr("lightning_modules.sentiment_regressor.BATCH", 2)
    assert torch.allclose(model.rate(TEXTS, 3).samples, together)
    assert torch.allclose(torch.cat([model.rate([text], 3).samples for text in TEXTS], dim=1), together)


def test_ratings_of_the_test_texts_have_the_error_of_the_test(tmp_path: Path, trainer: Callable[..., Trainer]) -> None:
    rows = [{"text": f"film {i} is {'good ' * (i % 9)}", "rating": i / 3} for i in range(40)]
    (tmp_path / "rated.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = RatedText(tmp_path / "rated.jsonl", chunk_length=4, vocab_size=9)
    model = SentimentRegressor(9, embedding_size=7, hidden_size=5)
    metrics = {k: v for part in trainer().test(model, datamodule=data, verbose=False) for k, v in part.items()}
    tested = [data.texts[i] for i in dict.fromkeys(data.chunks["test"]["review"])]
    errors = model.rate([row["text"] for row in tested]).approximation - torch.tensor([row["rating"] for row in tested])
    assert float(errors.square().mean().sqrt()) == pytest.approx(metrics["test_rmse_review"], rel=1e-5)


def test_mean_and_spread_are_those_of_the_networks_that_were_sampled() -> None:
    ratings = Ratings(torch.tensor([7.0]), torch.tensor([[1.0], [2.0], [6.0]]), None)
    assert float(ratings.mean) == pytest.approx(3)
    assert float(ratings.std) == pytest.approx(math.sqrt((4 + 1 + 9) / 3))


def test_the_noise_of_ratings_is_that_of_how_they_were_predicted(
    regressor: Callable[..., SentimentRegressor],
) -> None:
    model = regressor(**DROPOUT)
    model.reader = RATED
    model.noise = {"tau": 4.0, "tau_mc": 9.0}
    assert (model.rate(TEXTS, 0).tau, model.rate(TEXTS, 3).tau) == (4.0, 9.0)


def test_an_interval_without_noise_is_of_the_networks_alone() -> None:
    samples = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    low, high = Ratings(samples[0], samples, None).interval(0.8)
    assert (float(low), float(high)) == pytest.approx((0.1, 0.9))


def test_an_interval_with_noise_has_its_probability_under_the_mixture_of_gaussians() -> None:
    samples = torch.randn(7, 3, dtype=torch.float64) * torch.tensor([0.1, 3.0, 100.0])
    for level in (0.5, 0.9, 0.999):
        low, high = Ratings(samples[0], samples, 0.25).interval(level)
        below = [torch.special.ndtr((end - samples) / 2).mean(dim=0) for end in (low, high)]
        assert torch.allclose(below[0], torch.full((3,), (1 - level) / 2, dtype=torch.float64))
        assert torch.allclose(below[1], torch.full((3,), (1 + level) / 2, dtype=torch.float64))


def test_an_interval_of_the_approximation_is_of_one_gaussian() -> None:
    low, high = Ratings(torch.tensor([5.0]), torch.zeros(0, 1), 0.25).interval(0.95)
    assert (float(low), float(high)) == pytest.approx((5 - 2 * 1.959964, 5 + 2 * 1.959964))


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_the_level_of_an_interval_is_a_probability(level: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {level}"):
        Ratings(torch.zeros(1), torch.zeros(2, 1), None).interval(level)
    with pytest.raises(ValueError, match="no interval without"):
        Ratings(torch.zeros(1), torch.zeros(0, 1), None).interval()
