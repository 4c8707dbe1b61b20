"""What trained models say about texts that are not of their data."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from datamodules import PennTreebank, RatedText
from datamodules.reader import Reader
from lightning_modules import LanguageModel, SentimentRegressor
from lightning_modules import texts as module
from lightning_modules.recurrent_module import TEST
from lightning_modules.texts import Ratings
from training.trainer import Trainer
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


def test_memory_does_not_grow_with_a_text_but_for_its_words(
    model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGIT_ROWS", 24)
    built = model(vocab_size=500)
    built.reader = Reader(("<unk>", "<eos>", *(f"w{i}" for i in range(498))), "spaces", window=5)

    def peak(words: int) -> int:
        text = " ".join(f"w{i % 498}" for i in range(words))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            built.surprisals(text, mc_samples=4)
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))

    peak(60)  # what is made once
    words_more, bytes_more = 600, peak(660) - peak(60)
    assert bytes_more < 100 * words_more  # some numbers for each word; logits alone would be 2,000 bytes


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


@given(words=st.lists(st.sampled_from([*"abcdefghi", "\n"]), min_size=2, max_size=30), carry_state=st.booleans())
def test_a_surprisal_does_not_depend_on_the_words_that_follow(words: list[str], carry_state: bool) -> None:
    torch.manual_seed(0)
    built = LanguageModel(11, 6, init_scale=1.0, carry_state=carry_state, **DROPOUT).double()
    built.reader = LANGUAGE
    text = " ".join(["a", *words])
    part = " ".join(["a", *words[: len(words) // 2]])
    whole, alone = built.surprisals(text, 2), built.surprisals(part, 2)
    n = len(alone.words) - 1  # but for the <eos> that ends the part
    assert whole.words[:n] == alone.words[:n]
    for name in ("approximation", "mc", "information"):
        assert torch.allclose(getattr(whole, name)[:n], getattr(alone, name)[:n], rtol=1e-9, atol=1e-12), name


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


def masks_drawn_by(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list of the masks that the model draws from now on."""
    drawn: list[Any] = []
    sample_masks = model.sample_masks

    def recorded(*arguments: Any, **options: Any) -> Any:
        drawn.append(sample_masks(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(model, "sample_masks", recorded)
    return drawn


@pytest.mark.parametrize("rows", [3, 12, 512])
def test_naive_masks_are_fresh_at_each_step(
    rows: int, model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)
    built = model(time_masks="fresh")
    drawn = masks_drawn_by(built, monkeypatch)
    said = built.surprisals(TEXT, 3)
    assert said.mc is not None
    assert said.mc.isfinite().all()
    steps = torch.cat([masks.output for masks in drawn])
    assert len(steps) == len(said.words)
    assert len(steps.flatten(1).unique(dim=0)) == len(steps)


def test_a_model_without_dropout_is_not_sampled_by_default_and_not_on_demand(
    model: Callable[..., LanguageModel],
) -> None:
    built = model(**dict.fromkeys(DROPOUT, 0.0), word_dropout=0.3)
    assert built.surprisals(TEXT).mc is None
    with pytest.raises(ValueError, match="the model has no dropout"):
        built.surprisals(TEXT, 3)


@pytest.mark.parametrize("samples", [-1, 1, 1001, 2.5, math.nan, True, "5"])
def test_a_number_of_samples_out_of_range_is_refused(samples: int, model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match=f"0 .*or from 2 to 1000, got {samples}"):
        model().surprisals(TEXT, samples)


def test_a_model_that_does_not_know_how_it_reads_says_what_to_do(language_model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match="set its `reader`"):
        language_model().surprisals(TEXT)


# --- generation -------------------------------------------------------------------------------------------------------


PROMPTS = ("a", "b c", "a b c d e", "i h\ng f e\n\nd", "c x y a", "")
VARIED = {"init_scale": 1.0, "hidden_size": 48, "softmax_bias": False}  # what comes next depends on all that was read


def stepped(model: LanguageModel, text: str, words: int, masks: Any = None) -> list[str]:
    """The likeliest continuation by a network that reads one word at a time."""
    unread = LANGUAGE.ids(text)[:-1] or [LANGUAGE.vocabulary.index("<eos>")]
    state, continuation = None, []
    model.eval()
    while len(continuation) < words:
        for word in unread:
            with torch.no_grad():
                logits, state = model(torch.tensor([[word]]), state, masks)
        unread = [int(logits[0, 0].argmax())]
        continuation.append(LANGUAGE.vocabulary[unread[0]])
    return continuation


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1e-9}, {"top_k": 1}])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("rows", [1, 3, 512])
def test_the_likeliest_continuation_is_that_of_a_network_that_reads_word_by_word(
    options: dict[str, Any], cell: str, rows: int, model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)  # of which so many are read at once
    built = model(cell=cell, **VARIED)
    expected = [stepped(built, prompt, 9) for prompt in PROMPTS]
    found = [built.generate(prompt, 9, sampled=False, sequences=2, **options) for prompt in PROMPTS]
    assert found == [[words, words] for words in expected]
    assert len({words[0] for words in expected}) > 3


@pytest.mark.parametrize("changes", [{}, {"word_dropout": 0.4}, {"cell": "gru"}])
def test_each_sequence_is_of_one_network_kept_from_the_first_word_of_the_text_to_the_end(
    changes: dict[str, Any], model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = model(**VARIED | changes)
    drawn = masks_drawn_by(built, monkeypatch)
    monkeypatch.setattr(module, "LOGIT_ROWS", 12)  # the text is read in parts
    sequences = built.generate("a b c d e\nf", 12, sequences=6, temperature=0, seed=4)
    [masks] = drawn
    networks = [masks._replace(words=None).select([k]) for k in range(6)]
    assert sequences == [stepped(built, "a b c d e\nf", 12, network) for network in networks]
    assert len(set(map(tuple, sequences))) == 6


def test_each_sequence_is_drawn_from_the_likeliest_words_of_its_own_network(
    model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = model(**VARIED)
    drawn = masks_drawn_by(built, monkeypatch)
    sequences = built.generate("a b c", 1, sequences=200, top_k=2, temperature=5.0, unknown=False)
    ranks = []
    for k, [word] in enumerate(sequences):
        logits = log_probs(built, torch.tensor([2, 3, 4, 0]), drawn[0]._replace(words=None).select([k]))[-1]
        logits[LANGUAGE.vocabulary.index("<unk>")] = -math.inf
        ranks.append(int((logits > logits[LANGUAGE.vocabulary.index(word)]).sum()))
    assert set(ranks) == {0, 1}


def test_an_empty_text_begins_a_line(model: Callable[..., LanguageModel]) -> None:
    built = model(**VARIED)
    best = [int(log_probs(built, torch.tensor([i, 0]), None)[-1].argmax()) for i in range(11)]
    after_eos = best[LANGUAGE.vocabulary.index("<eos>")]
    assert after_eos != best[LANGUAGE.vocabulary.index("<unk>")]
    for text in ("", "\n"):
        assert built.generate(text, 1, temperature=0, sampled=False) == [[LANGUAGE.vocabulary[after_eos]]]


def test_words_that_are_as_likely_as_the_last_of_the_top_k_are_not_drawn(model: Callable[..., LanguageModel]) -> None:
    built = model(init_scale=0.0)  # all words are equally likely
    for top_k in (1, 3, 11):
        assert len({words[0] for words in built.generate("a", 1, sequences=300, top_k=top_k)}) == top_k


def test_a_temperature_divides_the_logits_of_each_sequence(model: Callable[..., LanguageModel]) -> None:
    built = model(init_scale=1.0)
    logits = log_probs(built, torch.tensor([2, 3, 0]), None)[-1]
    for temperature in (0.5, 1.0, 3.0):
        drawn = built.generate("a b", 1, sequences=1000, temperature=temperature, sampled=False)
        counts = torch.tensor([sum(words == [word] for words in drawn) for word in LANGUAGE.vocabulary])
        expected = 1000 * (logits / temperature).softmax(dim=-1)
        assert ((counts - expected).abs() < 4 * expected.sqrt() + 1).all()


def test_a_seed_gives_the_same_sequences_and_another_one_others(model: Callable[..., LanguageModel]) -> None:
    built = model()
    first, again, other = (built.generate("a", 30, sequences=2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] != first[1]


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


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"words": 0}, "at least 1 and at most 100000"),
        ({"sequences": 0}, "at least 1 and at most 1000"),
        ({"sequences": 1001}, "at least 1 and at most 1000"),
        ({"top_k": 0}, "at least 1 and at most 11"),
        ({"top_k": 12}, "at least 1 and at most 11"),
        ({"seed": -1}, "at least 0 and at most 9223372036854775807"),
        *(({name: 2.5}, "a whole number") for name in ("words", "sequences", "top_k", "seed")),
        *(({name: True}, "a whole number") for name in ("words", "sequences", "top_k", "seed")),
        ({"temperature": -1.0}, "at least 0"),
        *(({"temperature": value}, "a finite number") for value in (math.inf, math.nan, "1", True, None)),
    ],
)
def test_arguments_out_of_range_are_refused(
    wrong: dict[str, Any], allowed: str, model: Callable[..., LanguageModel]
) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got {value!r}$"):
        model().generate("a", **{"words": 3} | wrong)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None])
def test_a_seed_is_a_whole_number_of_63_bits(
    seed: Any, model: Callable[..., LanguageModel], regressor: Callable[..., SentimentRegressor]
) -> None:
    rating = regressor(**DROPOUT)
    rating.reader = RATED
    for refused in (lambda: model().surprisals(TEXT, 2, seed), lambda: rating.rate(TEXTS, 2, seed)):
        with pytest.raises(ValueError, match=f"^seed must be .*, got {seed}$"):
            refused()


@pytest.mark.parametrize("sampled", [False, True])
def test_a_model_in_training_mode_generates_with_all_words_and_without_other_masks_than_its_networks(
    sampled: bool, model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = model(word_dropout=0.5).train()
    drawn = masks_drawn_by(built, monkeypatch)
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


@pytest.mark.parametrize(
    "text", [None, math.nan, 3, b"a b", ["a b"], "a\0b", "a \ud800", pandas.Series(["a"])], ids=repr
)
def test_what_is_no_text_is_refused(text: Any, model: Callable[..., LanguageModel]) -> None:
    for refused in (model().surprisals, lambda text: model().generate(text, 3)):
        with pytest.raises(ValueError, match=r"^the text is .*(, which is not a text|give it a text)"):
            refused(text)


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_a_blank_text_has_no_surprisals(text: str, model: Callable[..., LanguageModel]) -> None:
    with pytest.raises(ValueError, match=r"^the text is empty"):
        model().surprisals(text)


def test_numbers_of_numpy_are_taken(
    model: Callable[..., LanguageModel], regressor: Callable[..., SentimentRegressor]
) -> None:
    built, rating = model(), regressor(**DROPOUT)
    rating.reader = RATED
    whole, real = numpy.int64, numpy.float32
    found = built.generate("a", whole(4), sequences=whole(2), temperature=real(0.5), top_k=whole(3), seed=whole(5))
    assert found == built.generate("a", 4, sequences=2, temperature=0.5, top_k=3, seed=5)
    assert torch.equal(built.surprisals(TEXT, whole(3), whole(5)).mc, built.surprisals(TEXT, 3, 5).mc)  # type: ignore[arg-type]
    found = rating.rate(TEXTS, whole(3), whole(5))
    assert torch.equal(found.samples, rating.rate(TEXTS, 3, 5).samples)
    assert torch.equal(found.interval(real(0.5))[0], found.interval(0.5)[0])


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


@pytest.fixture
def rating_model(regressor: Callable[..., SentimentRegressor]) -> SentimentRegressor:
    model = regressor(**DROPOUT).double()
    model.reader = RATED
    return model


FRAME = pandas.DataFrame({"text": TEXTS, "length": [3, 14, 2, 1]})


@pytest.mark.parametrize(
    "texts",
    [
        FRAME["text"].sort_values(),
        FRAME["text"].sample(frac=1, random_state=1),
        FRAME["text"][FRAME["length"] < 10],
        FRAME.set_index("length")["text"],
        pandas.Index(TEXTS),
        numpy.array(TEXTS),
        numpy.array(TEXTS, dtype=object),
        Dataset.from_dict({"text": TEXTS})["text"],
        tuple(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        dict(enumerate(TEXTS)).values(),
        iter(TEXTS),
        (text for text in TEXTS),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_any_iterable_of_texts_is_rated_in_its_order_of_iteration(texts: Any, rating_model: SentimentRegressor) -> None:
    texts, listed = itertools.tee(texts) if isinstance(texts, Iterator) else (texts, texts)
    expected = rating_model.rate([str(text) for text in listed], 3)
    ratings = rating_model.rate(texts, 3)
    assert torch.equal(ratings.approximation, expected.approximation)
    assert torch.equal(ratings.samples, expected.samples)


@given(rows=st.lists(st.tuples(st.sampled_from(range(len(TEXTS))), st.integers(-3, 3)), min_size=1, max_size=9))
def test_a_rating_depends_on_its_text_alone_in_any_selection_order_and_labelling(rows: list[tuple[int, int]]) -> None:
    order, labels = zip(*rows, strict=True)
    torch.manual_seed(0)
    model = SentimentRegressor(30, embedding_size=7, hidden_size=5, **DROPOUT).double()
    model.reader = RATED
    expected = model.rate(TEXTS, 2)
    chosen = model.rate(pandas.Series([TEXTS[i] for i in order], index=labels), 2)
    assert torch.allclose(chosen.approximation, expected.approximation[list(order)], rtol=1e-12)
    assert torch.allclose(chosen.samples, expected.samples[:, list(order)], rtol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [None, math.nan, pandas.NA, 3, 2.5, b"bytes", "", " \n", "a\0b", "\udcff", ["w3"], Path("w3")],
    ids=repr,
)
@pytest.mark.parametrize("kind", [list, lambda texts: pandas.Series(texts, index=[7, 7, 0], dtype=object)])
def test_what_is_no_text_is_named_by_its_position(wrong: Any, kind: Any, rating_model: SentimentRegressor) -> None:
    with pytest.raises(ValueError, match=r"^the text at position 2 \(from 0\) is .*(not a text|give it a text)"):
        rating_model.rate(kind(["w3", "w4", wrong]))


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (TEXTS[0], "got one string: put it into a list"),
        (b"w3", "got one string"),
        (FRAME, "got a DataFrame: pass one of its columns"),
        ({"text": "w3"}, "got a dict: pass one of its columns, or its values"),
        (None, r"got None \(NoneType\): pass a list"),
        (3, r"got 3 \(int\)"),
        (numpy.array("w3"), "ndarray"),
    ],
)
def test_what_is_not_several_texts_is_refused(texts: Any, named: str, rating_model: SentimentRegressor) -> None:
    with pytest.raises(TypeError, match=f"several texts are needed, .*{named}"):
        rating_model.rate(texts)


@pytest.mark.parametrize("texts", [[], FRAME["text"][FRAME["length"] > 99], (text for text in ())])
def test_no_texts_are_refused(texts: Any, rating_model: SentimentRegressor) -> None:
    with pytest.raises(ValueError, match="there are no texts"):
        rating_model.rate(texts)


def test_a_rating_does_not_depend_on_the_texts_beside_it(
    regressor: Callable[..., SentimentRegressor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = regressor(**DROPOUT).double()
    model.reader = RATED
    together = model.rate(TEXTS, 3).samples
    monkeypatch.setattr("lightning_modules.texts.BATCH", 2)
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


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan, "0.9", True, 90])
def test_the_level_of_an_interval_is_a_probability(level: Any) -> None:
    with pytest.raises(ValueError, match=rf"level must be (above 0 and below 1|a finite number), got '?{level}"):
        Ratings(torch.zeros(1), torch.zeros(2, 1), None).interval(level)
    with pytest.raises(ValueError, match="no interval without"):
        Ratings(torch.zeros(1), torch.zeros(0, 1), None).interval()
