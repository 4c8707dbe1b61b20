"""What masks look like, where they come from and how long they live."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

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


@pytest.mark.parametrize(("time_masks", "outputs"), [("constant", 1), ("fresh", 6)])
def test_a_constant_input_stays_constant_under_constant_masks_only(time_masks, outputs):
    rnn = VariationalRNN(32, 8, input_dropout=0.5, time_masks=time_masks)
    torch.nn.init.zeros_(rnn.weight_hh_l0)
    output, _ = rnn(torch.randn(1, 1, 32).expand(6, 1, 32))
    assert len(output.unique(dim=0)) == outputs


@any_layer
def test_given_masks_are_used_in_eval(ours):
    rnn = ours(3, 8, input_dropout=0.5, recurrent_dropout=0.5)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    in_training = rnn(x, masks=masks)
    torch.testing.assert_close(rnn.eval()(x, masks=masks), in_training, rtol=0, atol=0)
    assert not torch.allclose(rnn(x)[0], in_training[0])


@any_layer
@pytest.mark.parametrize("time_masks", ["constant", "fresh"])
@pytest.mark.parametrize(
    ("x", "batch_first", "batch", "steps"),
    [
        (torch.ones(5, 2, 3), False, 2, 5),
        (torch.ones(2, 5, 3), True, 2, 5),
        (torch.ones(5, 3), False, 1, 5),
        (torch.ones(5, 3), True, 1, 5),
        (pack_sequence([torch.ones(length, 3) for length in (2, 5)], enforce_sorted=False), False, 2, 5),
    ],
    ids=["padded", "batch first", "unbatched", "unbatched to batch first", "packed"],
)
def test_training_draws_the_masks_that_sample_masks_draws(ours, time_masks, x, batch_first, batch, steps):
    rnn = ours(3, 8, input_dropout=0.5, recurrent_dropout=0.5, time_masks=time_masks, batch_first=batch_first)
    masks = rnn.sample_masks(batch, steps, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    torch.testing.assert_close(list(rnn(x)[0]), list(rnn(x, masks=masks)[0]), rtol=0, atol=0)


@any_layer
def test_two_windows_with_the_same_masks_and_carried_state_are_one_long_sequence(ours):
    rnn = ours(3, 8, 2, input_dropout=0.5, recurrent_dropout=0.5, gate_masks="untied", dtype=torch.float64)
    x, masks = torch.randn(7, 2, 3, dtype=torch.float64), rnn.sample_masks(2)
    first, state = rnn(x[:3], masks=masks)
    second, state = rnn(x[3:], state, masks)
    torch.testing.assert_close((torch.cat([first, second]), state), rnn(x, masks=masks))


@any_layer
def test_a_mask_of_one_sequence_is_shared_by_the_batch_when_given(ours):
    rnn = ours(3, 8, 2, input_dropout=0.5, recurrent_dropout=0.5)
    x, masks = torch.randn(5, 1, 3), rnn.sample_masks(1)
    output, _ = rnn(x.expand(-1, 3, -1), masks=masks)
    torch.testing.assert_close(output, rnn(x, masks=masks)[0].expand(-1, 3, -1))


@any_layer
def test_a_generator_gives_reproducible_masks_and_leaves_the_global_one_alone(ours):
    rnn = ours(16, 16, input_dropout=0.5, recurrent_dropout=0.5)
    before = torch.get_rng_state()
    one, same, other = (
        all_masks(rnn.sample_masks(4, generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert differ([one[0], other[0]])
    assert differ([one[1], other[1]])
    assert torch.equal(torch.get_rng_state(), before)


@any_layer
def test_a_seed_is_a_generator_of_that_seed(ours):
    rnn = ours(16, 16, 2, input_dropout=0.5, recurrent_dropout=0.5)
    of_seed = all_masks(rnn.sample_masks(4, generator=7))
    of_generator = all_masks(rnn.sample_masks(4, generator=torch.Generator().manual_seed(7)))
    torch.testing.assert_close(of_seed, of_generator, rtol=0, atol=0)
    assert differ(of_seed)


def test_masks_of_some_sequences_can_be_selected_in_any_order():
    lstm = VariationalLSTM(3, 8, 2, input_dropout=0.5, recurrent_dropout=0.5, memory_dropout=0.5, gate_masks="untied")
    masks, sequences = lstm.sample_masks(5), torch.tensor([4, 0, 4])
    x = torch.randn(6, 5, 3)
    output, state = lstm(x[:, sequences], masks=masks.select(sequences))
    expected, (h, c) = lstm(x, masks=masks)
    torch.testing.assert_close((output, state), (expected[:, sequences], (h[:, sequences], c[:, sequences])))


def test_masks_shared_by_the_batch_stay_shared_when_sequences_are_selected():
    masks = VariationalGRU(3, 8, input_dropout=0.5, mask_sharing="batch").sample_masks(5)
    assert masks.select(torch.tensor([3, 1])).layers[0].input.shape == (1, 1, 1, 3)


@any_layer
def test_masks_have_the_dtype_of_the_parameters_and_can_be_moved_to_another(ours):
    rnn = ours(3, 4, 2, input_dropout=0.5, recurrent_dropout=0.5)
    masks = rnn.sample_masks(2)
    moved = masks.to(torch.float64)
    assert {mask.dtype for mask in all_masks(masks)} == {torch.float32}
    assert {mask.dtype for mask in all_masks(moved)} == {torch.float64}
    assert [layer.memory for layer in moved.layers] == [None, None]
    torch.testing.assert_close(all_masks(moved), all_masks(masks), check_dtype=False)
    output, _ = rnn.double()(torch.randn(5, 2, 3, dtype=torch.float64), masks=moved)
    assert output.dtype == torch.float64


@any_layer
def test_sampling_with_p_0_gives_no_masks(ours):
    assert ours(3, 4, 2).sample_masks(2) == RNNMasks((LayerMasks(), LayerMasks()))


INPUT = "time 1|5, gates 1|4, batch 1|2, features 3"
RECURRENT = "time 1|5, gates 1|4, batch 1|2, features 8"
MEMORY = "batch 1|2, features 8"


@pytest.mark.parametrize(
    ("layer", "name", "got", "expected"),
    [
        (LayerMasks(input=torch.ones(1, 1, 2, 9)), "input", [1, 1, 2, 9], INPUT),
        (LayerMasks(input=torch.ones(1, 1, 7, 3)), "input", [1, 1, 7, 3], INPUT),
        (LayerMasks(input=torch.ones(2, 3)), "input", [2, 3], INPUT),
        (LayerMasks(recurrent=torch.ones(1, 3, 2, 8)), "recurrent", [1, 3, 2, 8], RECURRENT),
        (LayerMasks(recurrent=torch.ones(4, 1, 2, 8)), "recurrent", [4, 1, 2, 8], RECURRENT),
        (LayerMasks(recurrent=torch.ones(1, 1, 2, 9)), "recurrent", [1, 1, 2, 9], RECURRENT),
        (LayerMasks(memory=torch.ones(3, 8)), "memory", [3, 8], MEMORY),
        (LayerMasks(memory=torch.ones(1, 1, 2, 8)), "memory", [1, 1, 2, 8], MEMORY),
    ],
    ids=["features", "batch", "dimensions", "gates", "steps", "hidden size", "memory batch", "memory dimensions"],
)
def test_masks_of_a_wrong_shape_are_refused_naming_axis_got_and_expected(layer, name, got, expected):
    with pytest.raises(ValueError, match=re.escape(f"{name} mask of l0 has shape {got}, expected [{expected}]")):
        VariationalLSTM(3, 8)(torch.zeros(5, 2, 3), masks=RNNMasks((layer,)))


def test_the_second_layer_expects_masks_as_wide_as_both_directions():
    gru = VariationalGRU(3, 8, 2, bidirectional=True)
    wrong = VariationalGRU(3, 8, 2, input_dropout=0.5).sample_masks(2).layers
    masks = RNNMasks((wrong[0], wrong[0], wrong[1], wrong[1]))
    with pytest.raises(ValueError, match=r"input mask of l1 has shape \[1, 1, 2, 8\], expected \[.*features 16\]"):
        gru(torch.zeros(5, 2, 3), masks=masks)


@any_layer
def test_masks_of_another_number_of_layers_are_refused_naming_both(ours):
    masks = ours(3, 8, input_dropout=0.5).sample_masks(2)
    with pytest.raises(ValueError, match=r"1 layers and directions.* has 4"):
        ours(3, 8, 2, bidirectional=True)(torch.zeros(5, 2, 3), masks=masks)


@any_layer
def test_fresh_masks_need_the_number_of_steps(ours):
    with pytest.raises(ValueError, match="pass steps"):
        ours(3, 8, input_dropout=0.5, time_masks="fresh").sample_masks(2)
