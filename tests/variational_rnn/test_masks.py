"""What masks look like, where they come from and how long they live."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from variational_rnn import (
    LayerMasks,
    RNNMasks,
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalLSTM,
    VariationalRNN,
)
from variational_rnn.masks import sample_mask

LAYERS = [VariationalLSTM, VariationalGRU, VariationalRNN]
any_layer = pytest.mark.parametrize("ours", LAYERS)


def all_masks(masks):
    return [mask for layer in masks.layers for mask in layer if mask is not None]


def differ(tensors):
    return not any(torch.equal(one, other) for one, other in itertools.combinations(tensors, 2))


@given(p=st.floats(0.05, 0.95))
def test_a_mask_is_0_or_1_over_1_minus_p_and_its_mean_is_1(p):
    torch.manual_seed(0)
    n = 20_000
    mask = sample_mask(n, p=p, dtype=torch.float64)
    torch.testing.assert_close(mask.unique(), torch.tensor([0, 1 / (1 - p)], dtype=torch.float64))
    assert abs(mask.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / n)


@given(p=st.one_of(st.floats(max_value=0, exclude_max=True), st.floats(min_value=1), st.just(math.nan)))
@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((lambda p, ours=ours: ours(2, 3, input_dropout=p), "input_dropout") for ours in LAYERS),
        *((lambda p, ours=ours: ours(2, 3, recurrent_dropout=p), "recurrent_dropout") for ours in LAYERS),
        (lambda p: VariationalLSTM(2, 3, memory_dropout=p), "memory_dropout"),
        (lambda p: VariationalEmbedding(2, 3, word_dropout=p), "word_dropout"),
        (lambda p: VariationalDropout(p), "p"),
    ],
)
def test_p_outside_0_to_1_is_refused_with_the_name_of_the_argument(build, name, p):
    with pytest.raises(ValueError, match=rf"^{name} .*\[0, 1\), got {re.escape(str(p))}$"):
        build(p)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((lambda ours=ours: ours(2, 3, gate_masks="none"), "gate_masks") for ours in LAYERS),
        *((lambda ours=ours: ours(2, 3, time_masks="none"), "time_masks") for ours in LAYERS),
        *((lambda ours=ours: ours(2, 3, backend="none"), "backend") for ours in LAYERS),
        (lambda: VariationalEmbedding(2, 3, word_masks="none"), "word_masks"),
        (lambda: VariationalDropout(0.1, time_masks="none"), "time_masks"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_name_of_the_argument(build, name):
    with pytest.raises(ValueError, match=rf"^{name} must be .*'none'"):
        build()


@any_layer
@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
def test_masks_have_a_size_for_what_varies_and_one_for_what_is_shared(ours, gate_masks, time_masks):
    rnn = ours(
        3, 4, 2, bidirectional=True, input_dropout=0.5, recurrent_dropout=0.5, gate_masks=gate_masks,
        time_masks=time_masks,
    )  # fmt: skip
    gates = len(rnn.weight_ih_l0) // 4 if gate_masks == "untied" else 1
    steps = 7 if time_masks == "fresh" else 1
    layers = rnn.sample_masks(5, 7).layers
    assert [tuple(layer.input.shape) for layer in layers] == [(steps, gates, 5, size) for size in (3, 3, 8, 8)]
    assert [tuple(layer.recurrent.shape) for layer in layers] == [(steps, gates, 5, 4)] * 4
    assert [layer.memory for layer in layers] == [None] * 4


def test_masks_differ_between_sequences_gates_layers_directions_slots_and_calls():
    lstm = VariationalLSTM(
        64, 64, 2, input_dropout=0.5, recurrent_dropout=0.5, memory_dropout=0.5, gate_masks="untied", bidirectional=True
    )
    rows = []
    for _ in range(2):
        for layer in lstm.sample_masks(3).layers:
            rows += [*layer.input[..., :64].reshape(-1, 64), *layer.recurrent.reshape(-1, 64), *layer.memory]
    assert len(rows) == 2 * 4 * 3 * (4 + 4 + 1)
    assert differ(rows)


def test_fresh_masks_differ_between_steps():
    masks = VariationalGRU(64, 64, input_dropout=0.5, recurrent_dropout=0.5, time_masks="fresh").sample_masks(2, 6)
    for mask in all_masks(masks):
        assert differ(mask.reshape(-1, 64))


@any_layer
@pytest.mark.parametrize(("time_masks", "is_constant"), [("constant", True), ("fresh", False)])
def test_a_network_sees_the_same_input_at_every_step_only_if_masks_are_constant(ours, time_masks, is_constant):
    rnn = ours(32, 8, input_dropout=0.5, time_masks=time_masks)
    for name, parameter in rnn.named_parameters():
        if name.startswith("weight_hh"):
            torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 1, 32).expand(6, 1, 32)
    x_gates_of_first_step = rnn(x[:1], masks=None)[0]  # another draw
    outputs = torch.cat([rnn(x[t : t + 1], masks=masks)[0] for t, masks in enumerate(self_masks(rnn))])
    assert is_constant or differ(outputs)
    assert x_gates_of_first_step.shape == (1, 1, 8)


@any_layer
def test_given_masks_are_used_in_eval(ours):
    rnn = ours(3, 8, input_dropout=0.5, recurrent_dropout=0.5)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    in_training = rnn(x, masks=masks)
    torch.testing.assert_close(rnn.eval()(x, masks=masks), in_training, rtol=0, atol=0)
    assert not torch.allclose(rnn(x)[0], in_training[0])
