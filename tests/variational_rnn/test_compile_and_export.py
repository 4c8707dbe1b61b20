"""What else of torch the layers go with: compilers and exporters, checkpointing, parametrizations, autocast."""

import warnings

import pytest
import torch
import torch.utils.checkpoint
from safetensors.torch import load_model, save_model
from torch import nn
from torch._dynamo.testing import CompileCounter

from variational_rnn import (
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalGRUCell,
    VariationalLSTM,
    VariationalLSTMCell,
    VariationalRNN,
    VariationalRNNCell,
)
from variational_rnn.kernels import build, cpu

DROPOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.5}
any_layer = pytest.mark.parametrize("ours", [VariationalLSTM, VariationalGRU, VariationalRNN])
any_cell = pytest.mark.parametrize("ours", [VariationalLSTMCell, VariationalGRUCell, VariationalRNNCell])
slowly = pytest.mark.parametrize(
    "ours",
    [VariationalLSTM, *(pytest.param(ours, marks=pytest.mark.slow) for ours in (VariationalGRU, VariationalRNN))],
)
any_mode = pytest.mark.parametrize("mode", ["training", "given masks", "eval"])


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()


class Tagger(nn.Module):
    """What people compile: a model with all of this library's dropout in it."""

    def __init__(self, ours):
        super().__init__()
        self.embedding = VariationalEmbedding(8, 4, word_dropout=0.3)
        self.rnn = ours(4, 6, 2, **DROPOUT)
        self.dropout = VariationalDropout(0.3)
        self.output = nn.Linear(6, 2)

    def forward(self, words):
        return self.output(self.dropout(self.rnn(self.embedding(words))[0]))


def assert_same_with_gradients(compiled, model, *args):
    results = []
    for function in (compiled, model):
        torch.manual_seed(1)
        output = function(*args)
        output = output[0] if isinstance(output, tuple) else output
        results.append((output, torch.autograd.grad(output.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(*results)


@slowly
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model_computes_the_same_with_the_recurrent_layer_left_out_of_the_graph(ours, training):
    model = Tagger(ours).train(training)
    compiled = torch.compile(model, backend="aot_eager")
    assert_same_with_gradients(compiled, model, torch.randint(8, (5, 3)))


@pytest.mark.parametrize(
    ("ours", "torchs"), [(VariationalLSTM, nn.LSTM), (VariationalGRU, nn.GRU), (VariationalRNN, nn.RNN)]
)
def test_compilation_makes_as_few_graphs_and_breaks_as_around_torchs_layer_whatever_the_lengths(ours, torchs):
    class Head(nn.Module):
        def forward(self, h):
            return h.tanh().square()

    class Model(nn.Module):
        def __init__(self, rnn):
            super().__init__()
            self.rnn, self.head = rnn, Head()

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    def compiled(rnn):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        graphs = CompileCounter()
        model = torch.compile(Model(rnn), backend=graphs)
        for steps in range(5, 15):
            model(torch.randn(steps, 3, 4)).sum().backward()
        return graphs.frame_count, graphs.op_count, sum(torch._dynamo.utils.counters["graph_break"].values())

    graphs, operations, breaks = compiled(ours(4, 6, 2, **DROPOUT))
    assert graphs > 0
    assert (graphs, operations) == compiled(torchs(4, 6, 2))[:2]
    assert breaks <= 1


@pytest.mark.parametrize("ours", [VariationalLSTM, VariationalGRU, VariationalRNN])
def test_in_a_compiled_model_the_fast_backend_computes(ours, monkeypatch):
    if build.extension() is None:
        pytest.skip("the CPU kernels cannot be built here")
    unroll, calls = cpu.unroll, []
    monkeypatch.setattr(cpu, "unroll", lambda *args, **kwargs: calls.append(args) or unroll(*args, **kwargs))
    torch.compile(Tagger(ours), backend="eager")(torch.randint(8, (5, 3))).sum().backward()
    assert len(calls) == 2


@slowly
@pytest.mark.parametrize("mode", ["training", "given masks"])
@torch._dynamo.config.patch(allow_rnn=True)
def test_where_torch_allows_it_the_reference_is_compiled_without_a_break(ours, mode):
    rnn = ours(3, 4, 2, **DROPOUT)
    masks = rnn.sample_masks(2) if mode == "given masks" else None
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    assert_same_with_gradients(compiled, rnn, torch.randn(5, 2, 3), None, masks)


@pytest.mark.slow
@any_layer
@torch._dynamo.config.patch(allow_rnn=True)
def test_inductor_computes_the_same(ours):
    rnn = ours(3, 4, **DROPOUT, gate_masks="untied")
    compiled = torch.compile(rnn, fullgraph=True)
    assert_same_with_gradients(compiled, rnn, torch.randn(4, 2, 3), None, rnn.sample_masks(2))


@any_cell
@any_mode
def test_a_compiled_cell_computes_the_same_without_a_break(ours, mode):
    cell = ours(3, 4, **DROPOUT).train(mode != "eval")
    masks = None if mode == "eval" else cell.sample_masks(2)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    assert_same_with_gradients(compiled, cell, torch.randn(2, 3), None, masks)


@any_layer
@any_mode
def test_an_exported_layer_computes_the_same(ours, mode):
    rnn = ours(3, 4, 2, **DROPOUT).train(mode == "training")
    args = (torch.randn(5, 2, 3), None, rnn.sample_masks(2) if mode == "given masks" else None)
    exported = torch.export.export(rnn, args).module()
    torch.manual_seed(1)
    expected = rnn(*args)
    torch.manual_seed(1)
    torch.testing.assert_close(exported(*args), expected)


@any_layer
def test_an_exported_layer_takes_any_batch_size(ours):
    rnn = ours(3, 4, **DROPOUT).eval()
    exported = torch.export.export(rnn, (torch.randn(5, 2, 3),), dynamic_shapes={"input": {1: torch.export.Dim("B")}})
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(exported.module()(x), rnn(x))


@slowly
@pytest.mark.parametrize("with_masks", [False, True])
def test_onnx_computes_the_same_in_eval_and_with_given_masks(ours, with_masks, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    rnn = ours(3, 4, 2, **DROPOUT).eval()
    masks = rnn.sample_masks(2) if with_masks else None
    args = (torch.randn(5, 2, 3), None, masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(rnn, args, tmp_path / "rnn.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "rnn.onnx")
    given = [args[0], *(mask for layer in (masks.layers if masks else ()) for mask in layer if mask is not None)]
    inputs = {node.name: value.numpy() for node, value in zip(session.get_inputs(), given, strict=True)}
    output, *state = (torch.from_numpy(result) for result in session.run(None, inputs))
    expected, expected_state = rnn(*args)
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(tuple(state) if len(state) == 2 else state[0], expected_state)


@any_layer
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_layer_computes_the_same_at_other_sizes(ours):
    rnn = ours(3, 4, 2, **DROPOUT).eval()
    traced = torch.jit.trace(rnn, torch.randn(5, 2, 3))
    x = torch.randn(7, 3, 3)
    torch.testing.assert_close(traced(x), rnn(x))


@any_layer
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_draws_the_same_masks_again(ours, use_reentrant):
    rnn, x = ours(3, 4, **DROPOUT), torch.randn(5, 2, 3, requires_grad=True)

    def gradients(call):
        torch.manual_seed(1)
        return torch.autograd.grad(call(x)[0].square().sum(), x)

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(rnn, x, use_reentrant=use_reentrant)

    if use_reentrant:  # it only supports backward()
        x.grad = None
        torch.manual_seed(1)
        checkpointed(x)[0].square().sum().backward()
        torch.testing.assert_close((x.grad,), gradients(rnn))
    else:
        torch.testing.assert_close(gradients(checkpointed), gradients(rnn))


@any_layer
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_weights_can_be_reparametrized(ours, mask_sharing):
    rnn = ours(3, 4, **DROPOUT, mask_sharing=mask_sharing)
    masks, x = rnn.sample_masks(2), torch.randn(5, 2, 3)
    expected, _ = rnn(x, masks=masks)
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    output, _ = rnn(x, masks=masks)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert all(parameter.grad.any() for name, parameter in rnn.named_parameters() if "weight" in name)


@any_layer
@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_state_of_the_step_loop_keeps_the_precision_of_the_parameters(ours, gate_masks, x_dtype):
    rnn = ours(3, 4, 2, **DROPOUT, gate_masks=gate_masks)
    x, masks = torch.randn(5, 2, 3), rnn.sample_masks(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = rnn(x.to(x_dtype), masks=masks)
        again, _ = rnn(x.to(x_dtype), torch.utils._pytree.tree_map(lambda part: part.bfloat16(), state), masks)
    h = state[0] if isinstance(state, tuple) else state
    assert output.dtype == again.dtype == h.dtype == torch.float32
    torch.testing.assert_close(output, rnn(x, masks=masks)[0], rtol=0.05, atol=0.05)


@any_layer
@pytest.mark.parametrize("mask_sharing", ["sequence", "batch"])
def test_under_autocast_state_and_masks_go_on_to_the_next_window_and_gradients_are_close(ours, mask_sharing):
    rnn = ours(3, 4, 2, **DROPOUT, mask_sharing=mask_sharing)
    x, masks = torch.randn(6, 2, 3), rnn.sample_masks(2)

    def gradients():
        first, state = rnn(x[:3], masks=masks)
        second, _ = rnn(x[3:], state, masks)
        return torch.autograd.grad((first.float().square().sum() + second.float().square().sum()), rnn.parameters())

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gradients(), expected, rtol=0.1, atol=0.1)


def test_a_layer_and_torchs_read_each_others_safetensors(tmp_path):
    layer = VariationalLSTM(3, 4, num_layers=2, recurrent_dropout=0.3).eval()
    save_model(layer, tmp_path / "layer.safetensors")
    x = torch.randn(5, 2, 3)
    for other in (VariationalLSTM(3, 4, num_layers=2), torch.nn.LSTM(3, 4, num_layers=2)):
        load_model(other.eval(), tmp_path / "layer.safetensors")
        assert torch.equal(other(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "module", [VariationalLSTM(3, 4), VariationalGRUCell(3, 4), VariationalEmbedding(3, 4), VariationalDropout(0.5)]
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_scripting_is_refused_with_what_works_instead(module):
    with pytest.raises(NotImplementedError, match=f"{type(module).__name__}: use torch.export, or torch.jit.trace"):
        torch.jit.script(nn.Sequential(module))


@any_layer
def test_a_tracer_that_takes_the_layer_for_a_leaf_traces_the_model_around_it(ours):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, nn.RNNBase) or super().is_leaf_module(module, name)

    model = nn.Sequential(ours(3, 4, **DROPOUT)).eval()
    traced, x = torch.fx.GraphModule(model, Tracer().trace(model)), torch.randn(5, 2, 3)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_of_torch_that_loads_the_parameters_can_be_quantized():
    lstm, plain = VariationalLSTM(8, 16, **DROPOUT).eval(), nn.LSTM(8, 16).eval()
    plain.load_state_dict(lstm.state_dict())
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {nn.LSTM})
    assert type(quantized[0]) is not nn.LSTM
    x = torch.randn(5, 2, 8)
    torch.testing.assert_close(quantized(x)[0], lstm(x)[0], atol=0.05, rtol=0)
