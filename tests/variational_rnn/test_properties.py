"""What holds for any layer, whatever its options and input."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from variational_rnn import VariationalGRU, VariationalLSTM, VariationalRNN

LAYERS = st.fixed_dictionaries(
    {
        "ours": st.sampled_from([VariationalLSTM, VariationalGRU, VariationalRNN]),
        "num_layers": st.integers(1, 2),
        "bidirectional": st.booleans(),
        "gate_masks": st.sampled_from(["tied", "untied"]),
        "mask_sharing": st.sampled_from(["sequence", "batch"]),
        "backend": st.sampled_from(["auto", "reference"]),
        "input_dropout": st.sampled_from([0.0, 0.3]),
        "recurrent_dropout": st.sampled_from([0.0, 0.5]),
    }
)


def layer_of(ours, **options):
    torch.manual_seed(0)
    return ours(3, 5, **options)


def state_for(rnn, batch):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), batch, rnn.hidden_size)
    return tuple(torch.randn(shape) for _ in range(2 if isinstance(rnn, VariationalLSTM) else 1))


def in_torchs_form(state):
    return state if len(state) == 2 else state[0]


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


@settings(max_examples=60)
@given(layer=LAYERS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=20), packed=st.booleans(), data=st.data())
def test_a_batch_in_another_order_gives_the_same_results_in_that_order(layer, lengths, packed, data):
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    rnn = layer_of(**layer)
    x, state, masks = torch.randn(6, len(lengths), 3), state_for(rnn, len(lengths)), rnn.sample_masks(len(lengths))

    def results(sequences):
        given = x[:, sequences].requires_grad_()
        of_them = tuple(part[:, sequences] for part in state)
        input = given
        if packed:
            input = pack_padded_sequence(given, torch.tensor(lengths)[sequences], enforce_sorted=False)
        output, final = rnn(input, in_torchs_form(of_them), masks.select(sequences))
        output = pad_packed_sequence(output, total_length=6)[0] if packed else output
        (gradient,) = torch.autograd.grad(output.square().sum() + sum(part.sum() for part in parts_of(final)), given)
        return output, *parts_of(final), gradient

    in_order = results(torch.arange(len(lengths)))
    torch.testing.assert_close(results(order), tuple(part[:, order] for part in in_order), rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(layer=LAYERS, windows=st.lists(st.integers(1, 5), min_size=1, max_size=4), batch=st.integers(1, 4))
def test_windows_with_one_draw_of_masks_and_carried_state_are_one_sequence(layer, windows, batch):
    rnn = layer_of(**layer | {"bidirectional": False})
    x, state, masks = torch.randn(sum(windows), batch, 3), state_for(rnn, batch), rnn.sample_masks(batch)
    expected, final = rnn(x, in_torchs_form(state), masks)
    outputs, carried = [], in_torchs_form(state)
    for window in x.split(windows):
        output, carried = rnn(window, carried, masks)
        outputs.append(output)
    torch.testing.assert_close(
        (torch.cat(outputs), *parts_of(carried)), (expected, *parts_of(final)), rtol=1e-4, atol=1e-5
    )
