"""What else of autograd and tracing the layers go with: double backward, transforms, dispatch modes, subclasses."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from variational_rnn import LayerMasks, RNNMasks, VariationalGRU, VariationalLSTM, VariationalRNN

LAYERS = [VariationalLSTM, VariationalGRU, VariationalRNN]
DROPOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.5}
any_layer = pytest.mark.parametrize("ours", LAYERS)


def layer_and_its_reference(ours, *sizes, **kwargs):
    layer = ours(*sizes, **DROPOUT, **kwargs)
    reference = copy.deepcopy(layer)
    reference.backend = "reference"
    return layer, reference


def with_gradient_penalty(rnn, x, masks):
    """Gradients of a loss and ten times the square of its gradient with respect to x."""
    loss = rnn(x, masks=masks)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + 10 * gradient.square().sum(), [x, *rnn.parameters()])


@any_layer
@pytest.mark.parametrize(
    "options", [{}, {"gate_masks": "untied", "bidirectional": True, "num_layers": 2, "bias": False}]
)
def test_a_gradient_penalty_trains_the_weights_as_it_does_with_the_reference(ours, options):
    layer, reference = layer_and_its_reference(ours, 3, 4, **options)
    x, masks = torch.randn(5, 2, 3, requires_grad=True), layer.sample_masks(2)
    torch.testing.assert_close(
        with_gradient_penalty(layer, x, masks), with_gradient_penalty(reference, x, masks), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("ours", "torchs"), [(VariationalLSTM, nn.LSTM), (VariationalGRU, nn.GRU), (VariationalRNN, nn.RNN)]
)
def test_with_masks_that_keep_everything_a_gradient_penalty_is_torchs(ours, torchs):
    layer, plain = ours(3, 4), torchs(3, 4)
    plain.load_state_dict(layer.state_dict())
    plain.forward = lambda x, masks: torchs.forward(plain, x)
    x, keeps_all = torch.randn(5, 2, 3, requires_grad=True), RNNMasks((LayerMasks(recurrent=torch.ones(1, 1, 2, 4)),))
    torch.testing.assert_close(
        with_gradient_penalty(layer, x, keeps_all), with_gradient_penalty(plain, x, None), rtol=1e-4, atol=1e-4
    )


def test_a_gradient_penalty_goes_through_states_packed_sequences_and_memory_masks():
    layer, reference = layer_and_its_reference(VariationalLSTM, 3, 4, memory_dropout=0.4, bidirectional=True)
    x, masks = torch.randn(5, 3, 3, requires_grad=True), layer.sample_masks(3)

    def gradients(rnn):
        _, state = rnn(pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False), masks=masks)
        output, state = rnn(x, state, masks)  # so that the state, too, depends on the weights
        loss = output.square().sum() + state[1].sum()
        first = torch.autograd.grad(loss, [x, *rnn.parameters()], create_graph=True)
        return *first, *torch.autograd.grad(sum(part.square().sum() for part in first), [x, *rnn.parameters()])

    torch.testing.assert_close(gradients(layer), gradients(reference), rtol=1e-4, atol=1e-4)


@any_layer
def test_hessians_and_products_with_them_are_the_references(ours):
    layer, reference = layer_and_its_reference(ours, 2, 3)
    x, masks = torch.randn(3, 2, 2), layer.sample_masks(2)

    def of(rnn):
        def loss(x):
            return rnn(x, masks=masks)[0].square().sum()

        hessian = torch.autograd.functional.hessian(loss, x)
        return hessian, torch.autograd.functional.vhp(loss, x, torch.ones_like(x))[1]

    results = of(layer)
    assert results[0].any()
    torch.testing.assert_close(results, of(reference), rtol=1e-4, atol=1e-5)


@any_layer
def test_a_third_derivative_is_the_references(ours):
    layer, reference = layer_and_its_reference(ours, 2, 3)
    x, masks = torch.randn(3, 1, 2, requires_grad=True), layer.sample_masks(1)

    def third(rnn):
        y = rnn(x, masks=masks)[0].pow(3).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
            y = gradient.square().sum()
        return gradient

    torch.testing.assert_close(third(layer), third(reference), rtol=1e-3, atol=1e-4)


@any_layer
def test_a_jacobian_may_be_vectorized(ours):
    layer, reference = layer_and_its_reference(ours, 3, 4)
    x, masks = torch.randn(3, 2, 3), layer.sample_masks(2)
    at_once = torch.autograd.functional.jacobian(lambda x: layer(x, masks=masks)[0], x, vectorize=True)
    expected = torch.autograd.functional.jacobian(lambda x: reference(x, masks=masks)[0], x)
    torch.testing.assert_close(at_once, expected)


@any_layer
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_may_be_batched(ours, create_graph):
    layer, reference = layer_and_its_reference(ours, 3, 4)
    x, masks, batched = torch.randn(3, 2, 3, requires_grad=True), layer.sample_masks(2), torch.randn(6, 3, 2, 4)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(rnn(x, masks=masks)[0], x, batched, is_grads_batched=True, create_graph=create_graph)
            for rnn in (layer, reference)
        )
    )


@any_layer
def test_the_transforms_of_torch_func_are_the_references(ours):
    layer, reference = layer_and_its_reference(ours, 2, 3)
    x, masks = torch.randn(3, 2, 2), layer.sample_masks(2)

    def of(rnn):
        parameters = dict(rnn.named_parameters())

        def loss(parameters, x):
            return torch.func.functional_call(rnn, parameters, (x, None, masks))[0].square().sum()

        return torch.func.grad(loss)(parameters, x), torch.func.hessian(loss, argnums=1)(parameters, x)

    torch.testing.assert_close(of(layer), of(reference), rtol=1e-4, atol=1e-5)


@any_layer
def test_in_forward_mode_the_reference_computes(ours):
    layer, reference = layer_and_its_reference(ours, 3, 4)
    x, tangent, masks = torch.randn(3, 2, 3), torch.randn(3, 2, 3), layer.sample_masks(2)

    def derivative(rnn):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            return torch.autograd.forward_ad.unpack_dual(rnn(dual, masks=masks)[0]).tangent

    torch.testing.assert_close(derivative(layer), derivative(reference))


@any_layer
def test_under_fake_tensors_shapes_are_computed(ours):
    with FakeTensorMode():
        layer = ours(3, 4, **DROPOUT)
        x = torch.randn(5, 2, 3, requires_grad=True)
        output, _ = layer(x)
        output.sum().backward()
        assert output.shape == (5, 2, 4)
        assert x.grad.shape == x.shape


@any_layer
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_graph_of_make_fx_computes_the_same_on_another_input(ours, tracing_mode, pre_dispatch):
    layer = ours(3, 4, **DROPOUT)
    masks = layer.sample_masks(2)
    traced = make_fx(
        lambda x: layer(x, masks=masks)[0], tracing_mode=tracing_mode, pre_dispatch=pre_dispatch,
        _allow_non_fake_inputs=True,
    )(torch.randn(5, 2, 3))  # fmt: skip
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(traced(x), layer(x, masks=masks)[0])


@any_layer
def test_a_gradient_may_be_traced_by_make_fx(ours):
    layer = ours(3, 4, **DROPOUT)
    masks = layer.sample_masks(2)

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(layer(x, masks=masks)[0].square().sum(), x)[0]

    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(make_fx(gradient)(torch.randn(5, 2, 3))(x), gradient(x))


@any_layer
def test_a_dispatch_mode_sees_the_products(ours):
    layer, reference = layer_and_its_reference(ours, 3, 4)
    x, masks, flops = torch.randn(5, 2, 3), layer.sample_masks(2), []
    for rnn in (layer, reference):
        with FlopCounterMode(display=False) as counter:
            rnn(x, masks=masks)[0].sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


@any_layer
def test_a_wrapper_subclass_as_input_is_computed_by_its_own_operations(ours):
    layer = ours(3, 4, **DROPOUT)
    masks, x, other = layer.sample_masks(2), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    output, _ = layer(TwoTensor(x, other), masks=masks)
    torch.testing.assert_close(output.a, layer(x, masks=masks)[0])
    torch.testing.assert_close(output.b, layer(other, masks=masks)[0])


@any_layer
def test_parameters_may_be_distributed_tensors(ours, tmp_path):
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import distribute_module, distribute_tensor
        from torch.distributed.tensor.experimental import implicit_replication

        layer = ours(3, 4, **DROPOUT)
        masks, x = layer.sample_masks(2), torch.randn(5, 2, 3)
        expected = layer(x, masks=masks)[0]
        mesh = init_device_mesh("cpu", (1,))
        distribute_module(layer, mesh)
        with implicit_replication():
            output, _ = layer(distribute_tensor(x, mesh), masks=masks)
            output.sum().backward()
        torch.testing.assert_close(output.full_tensor(), expected)
        assert all(parameter.grad is not None for parameter in layer.parameters())
    finally:
        distributed.destroy_process_group()


@any_layer
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_masks_may_be_drawn_under_vmap(ours, randomness):
    layer = ours(3, 16, **DROPOUT)
    x = torch.randn(5, 2, 3).expand(4, 5, 2, 3)
    outputs = torch.vmap(lambda x: layer(x)[0], randomness=randomness)(x)
    assert len(outputs.flatten(1).unique(dim=0)) == (4 if randomness == "different" else 1)


@any_layer
def test_numbers_that_are_negated_lazily_are_read_with_their_sign(ours):
    layer, reference = layer_and_its_reference(ours, 3, 4)
    masks, values = layer.sample_masks(2), torch.randn(5, 2, 3, dtype=torch.complex64)
    x = values.conj().imag
    assert x.is_neg()
    torch.testing.assert_close(layer(x, masks=masks), reference(x, masks=masks))
    lazily = RNNMasks(
        tuple(LayerMasks(torch._neg_view(-of.input), torch._neg_view(-of.recurrent)) for of in masks.layers)
    )
    torch.testing.assert_close(layer(x, masks=lazily), layer(x, masks=masks))
    h = torch.randn(5, 2, 4)
    gradients = [
        torch.autograd.grad(rnn(x, masks=masks)[0], list(rnn.parameters()), torch._neg_view(h))
        for rnn in (layer, reference)
    ]
    torch.testing.assert_close(*gradients)


@any_layer
def test_gradients_that_are_zero_and_hold_no_memory_are_read_as_zeros(ours):
    layer, _ = layer_and_its_reference(ours, 3, 4)
    output, _ = layer(torch.randn(5, 2, 3))
    gradients = torch.autograd.grad(output, list(layer.parameters()), torch._efficientzerotensor(output.shape))
    assert not any(gradient.any() for gradient in gradients)
