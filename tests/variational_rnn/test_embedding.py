"""Dropout of words: one scalar for every sequence and word type."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn

from variational_rnn import VariationalEmbedding


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


@pytest.mark.parametrize("word_masks", ["type", "token"])
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


@pytest.mark.parametrize("word_masks", ["type", "token"])
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


def test_a_copy_computes_the_same():
    embedding = embedding_of()
    words, mask = torch.randint(50, (7, 3)), embedding.sample_masks(3)
    assert torch.equal(copy.deepcopy(embedding)(words, mask), embedding(words, mask))


def test_representation_shows_the_dropout_scheme():
    shown = "VariationalEmbedding(50, 4, word_dropout=0.5, word_masks='type', mask_sharing='batch')"
    assert repr(embedding_of(mask_sharing="batch")) == shown
