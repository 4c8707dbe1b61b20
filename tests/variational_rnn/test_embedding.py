"""Dropout of words: one scalar for every sequence and word type."""

import copy
import itertools
import re
from functools import partial

import pytest
import torch
from torch import nn

from variational_rnn import VariationalEmbedding

word_masks_of_both_kinds = pytest.mark.parametrize("word_masks", ["type", "token"])


def scales(embedding, words, mask=None):
    """The factor every looked-up vector was multiplied with."""
    plain = nn.functional.embedding(words, embedding.weight)
    return (embedding(words, mask) / plain).mean(-1)


def embedding_of(**kwargs):
    return VariationalEmbedding(50, 4, word_dropout=0.5, dtype=torch.float64, **kwargs)


def test_a_word_is_kept_or_dropped_at_all_its_occurrences_in_a_sequence():
    words = torch.randint(50, (200, 3))
    scales_TB = scales(embedding_of(), words)
    for word, row in itertools.product(range(50), range(3)):
        assert len(scales_TB[:, row][words[:, row] == word].unique()) <= 1
    torch.testing.assert_close(scales_TB.unique(), torch.tensor([0.0, 2.0], dtype=torch.float64))


def test_another_sequence_and_another_call_drop_other_words():
    embedding = embedding_of()
    words = torch.arange(50).unsqueeze(1).expand(50, 3)
    rows = torch.cat([scales(embedding, words), scales(embedding, words)], dim=1).t()
    assert len(rows.unique(dim=0)) == 6


def test_masks_agree_in_one_half_of_the_words_of_two_sequences():
    mask = VariationalEmbedding(10_000, 1, word_dropout=0.5).sample_masks(2)
    assert abs((mask[0] == mask[1]).float().mean().item() - 0.5) < 5 * 0.5 / 100


def test_token_masks_differ_between_occurrences_of_a_word():
    scales_TB = scales(embedding_of(word_masks="token"), torch.zeros(200, 2, dtype=torch.long))
    torch.testing.assert_close(scales_TB.unique(), torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert len(scales_TB[:, 0].unique()) == 2
    assert not torch.equal(scales_TB[:, 0], scales_TB[:, 1])


@word_masks_of_both_kinds
def test_batch_first_is_the_transpose(word_masks):
    embedding = embedding_of(word_masks=word_masks)
    transposed = embedding_of(word_masks=word_masks, batch_first=True)
    transposed.load_state_dict(embedding.state_dict())
    words = torch.randint(50, (7, 3))
    mask = embedding.sample_masks(3, 7)
    torch.testing.assert_close(transposed(words.t(), mask), embedding(words, mask).transpose(0, 1))
    torch.manual_seed(1)
    sampled = embedding(words)
    torch.manual_seed(1)
    torch.testing.assert_close(transposed(words.t()), sampled.transpose(0, 1))


@word_masks_of_both_kinds
def test_the_scale_is_the_entry_of_the_given_mask_in_eval_too(word_masks):
    embedding = embedding_of(word_masks=word_masks).eval()
    words, mask = torch.randint(50, (7, 3)), embedding.sample_masks(3, 7)
    scales_TB = scales(embedding, words, mask)
    for t, b in itertools.product(range(7), range(3)):
        assert scales_TB[t, b] == (mask[b, words[t, b]] if word_masks == "type" else mask[t, b])


@pytest.mark.parametrize("word_dropout", [0.0, 0.5])
def test_in_eval_and_with_p_0_it_is_torchs_embedding(word_dropout):
    plain = nn.Embedding(50, 4, padding_idx=0)
    embedding = VariationalEmbedding(50, 4, word_dropout=word_dropout, padding_idx=0).train(word_dropout == 0)
    embedding.load_state_dict(plain.state_dict())
    words = torch.randint(50, (7, 3))
    assert torch.equal(embedding(words), plain(words))


def test_only_kept_rows_of_the_matrix_get_a_gradient():
    embedding = embedding_of()
    words, mask = torch.randint(30, (20, 2)), embedding.sample_masks(2)
    embedding(words, mask).sum().backward()
    expected = torch.zeros(50, dtype=torch.float64)
    for word, scale in zip(words.t().flatten(), mask.gather(1, words.t()).flatten(), strict=True):
        expected[word] += scale
    torch.testing.assert_close(embedding.weight.grad, expected.unsqueeze(1).expand(50, 4))


@word_masks_of_both_kinds
def test_a_mask_shared_by_the_batch_drops_the_same_words_from_all_sequences(word_masks):
    embedding = embedding_of(word_masks=word_masks, mask_sharing="batch")
    words = torch.randint(50, (40, 1)).expand(40, 3)
    one, other = scales(embedding, words), scales(embedding, words)
    for scales_TB in (one, other):
        assert len(scales_TB.unique(dim=1)[0]) == 1
        torch.testing.assert_close(scales_TB.unique(), torch.tensor([0.0, 2.0], dtype=torch.float64))
    assert not torch.equal(one, other)


def test_a_mask_shared_by_the_batch_belongs_to_types_also_where_sequences_have_them_at_other_places():
    embedding = embedding_of(mask_sharing="batch")
    words = torch.stack([torch.randperm(50) for _ in range(4)], dim=1)
    by_type = scales(embedding, words).gather(0, words.argsort(dim=0))
    assert len(by_type.unique(dim=1)[0]) == 1


@pytest.mark.parametrize(
    ("word_masks", "mask_sharing", "shape"),
    [
        ("type", "sequence", (3, 50)),
        ("type", "batch", (1, 50)),
        ("token", "sequence", (7, 3)),
        ("token", "batch", (7, 1)),
    ],
)
def test_masks_have_a_row_for_each_sequence_or_one_for_the_batch_in_the_dtype_of_the_matrix(
    word_masks, mask_sharing, shape
):
    mask = embedding_of(word_masks=word_masks, mask_sharing=mask_sharing).sample_masks(3, 7)
    assert mask.shape == shape
    assert mask.dtype == torch.float64
    assert VariationalEmbedding(50, 4).sample_masks(3) is None


@word_masks_of_both_kinds
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_words_of_a_single_sequence_are_a_batch_of_one(word_masks, batch_first, mask_sharing):
    embedding = embedding_of(word_masks=word_masks, batch_first=batch_first, mask_sharing=mask_sharing)
    words, mask = torch.randint(50, (20,)), embedding.sample_masks(1, 20)
    batch = words.unsqueeze(0 if batch_first else 1)
    assert torch.equal(embedding(words, mask), embedding(batch, mask).squeeze(0 if batch_first else 1))
    assert embedding(words).shape == (20, 4)
    assert len(scales(embedding, words).round().unique()) == 2


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (5, 2, 3), (2, 1, 3, 2)])
def test_in_eval_words_of_any_dimensions_are_looked_up_as_torch_does(shape):
    embedding, words = embedding_of().eval(), torch.randint(50, shape)
    assert torch.equal(embedding(words), nn.functional.embedding(words, embedding.weight))


@pytest.mark.parametrize("shape", [(), (5, 2, 3)])
def test_where_words_are_dropped_only_one_sequence_or_a_batch_of_them_is_accepted(shape):
    with pytest.raises(ValueError, match=re.escape(f"expected words [T, B] or [T], got {list(shape)}")):
        embedding_of()(torch.zeros(shape, dtype=torch.long))


@word_masks_of_both_kinds
@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("word", [50, -1])
def test_a_word_outside_the_vocabulary_is_an_index_error_in_training_too(word_masks, in_training, word):
    with pytest.raises(IndexError):
        embedding_of(word_masks=word_masks).train(in_training)(torch.tensor([[3], [word]]))


def test_words_of_32_bits_are_accepted_as_torch_accepts_them():
    embedding, words = embedding_of(), torch.randint(50, (7, 3))
    mask = embedding.sample_masks(3)
    assert torch.equal(embedding(words.int(), mask), embedding(words, mask))


def test_the_padding_word_gets_no_gradient_under_masks():
    embedding = embedding_of(padding_idx=7)
    words = torch.tensor([[7, 1], [2, 7], [1, 2]])
    embedding(words, torch.full((2, 50), 2.0, dtype=torch.float64)).sum().backward()
    has_gradient = embedding.weight.grad.any(dim=1).nonzero().flatten()
    assert has_gradient.tolist() == [1, 2]
    assert not embedding(words, embedding.sample_masks(2))[words == 7].any()


PRETRAINED = {"padding_idx": 3, "max_norm": 1.5, "norm_type": 1.0, "scale_grad_by_freq": True}


def trained_on(embedding, words):
    """Vectors, and the gradient of their squared sum; max_norm has changed the matrix then."""
    vectors = embedding(words)
    vectors.square().sum().backward()
    gradient = embedding.weight.grad
    embedding.weight.grad = None
    return vectors.detach().clone(), gradient.to_dense(), embedding.weight.detach().clone()


@pytest.mark.parametrize(
    "option", [{}, {"sparse": True}, *({name: value} for name, value in PRETRAINED.items()), PRETRAINED], ids=str
)
def test_an_existing_embedding_is_shared_with_all_of_its_options(option):
    plain = nn.Embedding(50, 4, dtype=torch.float64, **option)
    twin = copy.deepcopy(plain)
    embedding = VariationalEmbedding.from_embedding(plain, word_masks="token", mask_sharing="batch", batch_first=True)
    assert embedding.weight is plain.weight
    for name in (*PRETRAINED, "sparse", "num_embeddings", "embedding_dim"):
        assert getattr(embedding, name) == getattr(plain, name)
    assert (embedding.word_masks, embedding.mask_sharing, embedding.batch_first) == ("token", "batch", True)
    words = torch.randint(6, (5, 4))
    torch.testing.assert_close(trained_on(embedding, words), trained_on(twin, words), rtol=0, atol=0)
    assert torch.equal(plain.weight, twin.weight)


def test_training_an_embedding_with_dropout_trains_the_one_it_was_made_from():
    plain = nn.Embedding(50, 4)
    before = plain.weight.detach().clone()
    embedding = VariationalEmbedding.from_embedding(plain, word_dropout=0.5)
    mask = torch.zeros(1, 50)
    mask[0, 3] = 2.0
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.25)
    embedding(torch.arange(50), mask).sum().backward()
    assert plain.weight.grad is embedding.weight.grad
    optimizer.step()
    before[3] -= 0.25 * 2
    torch.testing.assert_close(plain.weight, before)


@pytest.mark.parametrize("in_training", [True, False])
def test_an_existing_embedding_keeps_its_mode_and_a_given_matrix_its_frozenness(in_training):
    matrix = torch.randn(50, 4)
    for freeze in (True, False):
        plain = nn.Embedding.from_pretrained(matrix, freeze=freeze, padding_idx=3).train(in_training)
        embedding = VariationalEmbedding.from_embedding(plain, word_dropout=0.5)
        assert embedding.training == embedding.dropout_is_live == in_training
        assert embedding.weight.requires_grad != freeze
        assert embedding.weight.data_ptr() == matrix.data_ptr()
        assert plain.training == in_training
        words = torch.arange(50)
        assert torch.equal(embedding(words), plain(words)) != in_training


def test_making_an_embedding_of_another_draws_no_random_numbers():
    plain, before = nn.Embedding(50, 4), torch.get_rng_state()
    VariationalEmbedding.from_embedding(plain, word_dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_instance_of_a_subclass_can_be_given_dropout():
    class Vectors(nn.Embedding):
        def __init__(self):
            super().__init__(50, 4, padding_idx=3, dtype=torch.float64)

    plain = Vectors()
    once = VariationalEmbedding.from_embedding(plain, word_dropout=0.5)
    twice = VariationalEmbedding.from_embedding(once, word_dropout=0.25)
    assert plain.weight is once.weight is twice.weight
    assert (once.word_dropout, twice.word_dropout) == (0.5, 0.25)
    assert type(twice) is VariationalEmbedding
    assert twice.padding_idx == 3


class TiedLanguageModel(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.softmax = nn.Linear(4, 50, bias=False, dtype=torch.float64)
        self.softmax.weight = embedding.weight

    def loss(self, words, targets, mask):
        logits = self.softmax(self.embedding(words, mask).tanh())
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("of_an_embedding", [False, True])
def test_the_gradient_of_a_matrix_tied_to_the_softmax_is_the_masked_lookups_plus_the_softmaxs(of_an_embedding):
    plain = nn.Embedding(50, 4, dtype=torch.float64)
    embedding = VariationalEmbedding.from_embedding(plain, word_dropout=0.5) if of_an_embedding else embedding_of()
    model = TiedLanguageModel(embedding)
    assert list(model.parameters()) == [embedding.weight]
    words, targets, mask = torch.randint(30, (20, 2)), torch.randint(50, (20, 2)), embedding.sample_masks(2)
    before = embedding.weight.detach().clone()

    model.loss(words, targets, mask).backward()

    looked_up, softmax = (before.clone().requires_grad_() for _ in range(2))
    dropped_for_each = [torch.diag(row) @ looked_up for row in mask]  # the matrix of every sequence, its rows dropped
    loss = 0.0
    for t, b in itertools.product(range(20), range(2)):
        logits = softmax @ dropped_for_each[b][words[t, b]].tanh()
        loss = loss - logits.log_softmax(0)[targets[t, b]] / (20 * 2)
    of_lookup, of_softmax = torch.autograd.grad(loss, [looked_up, softmax])

    torch.testing.assert_close(embedding.weight.grad, of_lookup + of_softmax)
    dropped = ~mask.any(dim=0)
    assert dropped.any()
    assert of_softmax[dropped].any(dim=1).all()
    torch.testing.assert_close(embedding.weight.grad[dropped], of_softmax[dropped])
    assert torch.equal(embedding.weight, before)


@word_masks_of_both_kinds
def test_a_mask_of_another_dtype_is_refused_naming_both(word_masks):
    embedding = embedding_of(word_masks=word_masks)
    mask = embedding.sample_masks(3, 7).float()
    with pytest.raises(ValueError, match=r"word mask has dtype torch\.float32, expected torch\.float64"):
        embedding(torch.zeros(7, 3, dtype=torch.long), mask)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"word_masks": "word"}, "word_masks must be one of 'type', 'token', got 'word'"),
        ({"mask_sharing": "none"}, "mask_sharing must be one of 'sequence', 'batch', got 'none'"),
        ({"word_dropout": 1.0}, "word_dropout is the probability to drop and must lie in [0, 1), got 1.0"),
    ],
)
def test_unknown_choices_and_probabilities_are_refused_by_name(kwargs, message):
    for make in (
        partial(VariationalEmbedding, 50, 4),
        partial(VariationalEmbedding.from_embedding, nn.Embedding(5, 4)),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(**kwargs)


@pytest.mark.parametrize(("word_masks", "shape"), [("type", (3, 60)), ("type", (4, 50)), ("token", (6, 3))])
def test_a_mask_of_a_wrong_shape_is_refused_naming_got_and_expected(word_masks, shape):
    with pytest.raises(ValueError, match=re.escape(f"has shape {list(shape)}, expected [")):
        embedding_of(word_masks=word_masks)(torch.zeros(7, 3, dtype=torch.long), torch.ones(shape))


def test_token_masks_need_the_number_of_steps():
    with pytest.raises(ValueError, match="pass steps"):
        embedding_of(word_masks="token").sample_masks(3)


def test_a_generator_gives_reproducible_masks():
    embedding = embedding_of()
    one, same, other = (embedding.sample_masks(3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_seed_is_a_generator_of_that_seed():
    embedding = embedding_of()
    before = torch.get_rng_state()
    of_seed, of_generator = (
        embedding.sample_masks(3, generator=seed) for seed in (7, torch.Generator().manual_seed(7))
    )
    assert torch.equal(of_seed, of_generator)
    assert not torch.equal(of_seed, embedding.sample_masks(3, generator=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_computes_the_same():
    embedding = embedding_of()
    words, mask = torch.randint(50, (7, 3)), embedding.sample_masks(3)
    assert torch.equal(copy.deepcopy(embedding)(words, mask), embedding(words, mask))


def test_representation_shows_the_dropout_scheme():
    shown = "VariationalEmbedding(50, 4, word_dropout=0.5, word_masks='type', mask_sharing='batch')"
    assert repr(embedding_of(mask_sharing="batch")) == shown


def test_only_an_embedding_of_torch_can_be_taken_over():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Embedding, got EmbeddingBag"):
        VariationalEmbedding.from_embedding(nn.EmbeddingBag(3, 4), word_dropout=0.5)
