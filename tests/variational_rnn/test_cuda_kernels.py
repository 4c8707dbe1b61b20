"""The CUDA kernels compute what the reference computes: on a GPU, or else by Triton's interpreter on the CPU."""

import contextlib
import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from variational_rnn import VariationalGRU, VariationalLSTM, VariationalRNN, functional, kernels

pytest.importorskip("triton")
from variational_rnn.kernels import cuda
from variational_rnn.masks import LayerMasks

LAYERS = {
    "lstm": (VariationalLSTM, {}),
    "moon": (VariationalLSTM, {"memory_dropout": 0.4}),
    "gru": (VariationalGRU, {}),
    "rnn_tanh": (VariationalRNN, {}),
    "rnn_relu": (VariationalRNN, {"nonlinearity": "relu"}),
}
DROPOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.5}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
any_layer = pytest.mark.parametrize("layer", LAYERS)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True, scope="module")
def layers_use_the_cuda_backend():
    """On the CPU too, where it is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("variational_rnn.modules.choose_kernel", lambda *_: cuda.unroll)
        yield


def layer_and_its_reference(layer, *sizes, **kwargs):
    ours, options = LAYERS[layer]
    fast = ours(*sizes, **options, **kwargs).to(DEVICE)
    reference = copy.deepcopy(fast)
    reference.backend = "reference"
    return fast, reference


def run(rnn, x, hx, masks, lengths=None):
    """Output and state, and the gradients of x, hx and every parameter."""
    input = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, state = rnn(input, hx, masks)
    output = output if lengths is None else output.data
    states = state if isinstance(state, tuple) else (state,)
    loss = sum(part.square().sum() for part in (output, *states))
    leaves = [x, *(hx if isinstance(hx, tuple) else (hx,)), *rnn.parameters()]
    return output, *states, *torch.autograd.grad(loss, leaves)


def state_for(rnn, batch):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), batch, rnn.hidden_size)
    h, c = (torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(2))
    return (h, c) if isinstance(rnn, VariationalLSTM) else h


def assert_close_for_their_size(results, expected, tolerance=1e-5):
    for one, other in zip(results, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@settings(max_examples=40)
@given(
    layer=st.sampled_from(list(LAYERS)),
    input_size=st.integers(1, 5),
    hidden_size=st.sampled_from([1, 7, 16, 21, 70]),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    dropout=st.fixed_dictionaries({name: st.sampled_from([0.0, 0.5]) for name in DROPOUT}),
    gate_masks=st.sampled_from(["tied", "untied"]),
    time_masks=st.sampled_from(["constant", "fresh"]),
    mask_rows=st.sampled_from(["one each", "one"]),
    steps=st.integers(1, 4),
    batch=st.sampled_from([1, 3, 18, 37]),
    packed=st.booleans(),
)
def test_outputs_states_and_gradients_equal_the_references(
    layer, input_size, hidden_size, bidirectional, bias, dropout, gate_masks, time_masks, mask_rows, steps, batch,
    packed,
):  # fmt: skip
    torch.manual_seed(0)
    fast, reference = layer_and_its_reference(
        layer, input_size, hidden_size, bidirectional=bidirectional, bias=bias, **dropout, gate_masks=gate_masks,
        time_masks=time_masks,
    )  # fmt: skip
    x = torch.randn(steps, batch, input_size, device=DEVICE, requires_grad=True)
    masks = fast.sample_masks(batch if mask_rows == "one each" else 1, steps)
    lengths = torch.randint(1, steps + 1, (batch,)) if packed else None
    if packed:
        lengths[0] = steps
    hx = state_for(fast, batch)
    assert_close_for_their_size(*(run(rnn, x, hx, masks, lengths) for rnn in (fast, reference)))


@any_layer
@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
def test_depths_of_several_blocks_and_two_layers(layer, gate_masks):
    fast, reference = layer_and_its_reference(layer, 3, 150, 2, **DROPOUT, gate_masks=gate_masks)
    x = torch.randn(2, 5, 3, device=DEVICE, requires_grad=True)
    masks, hx = fast.sample_masks(5), state_for(fast, 5)
    assert_close_for_their_size(*(run(rnn, x, hx, masks) for rnn in (fast, reference)))


@any_layer
def test_it_runs_in_training_and_the_reference_does_not(layer, monkeypatch):
    def unroll(*args, **kwargs):
        raise AssertionError("the reference ran")

    monkeypatch.setattr("variational_rnn.functional.unroll", unroll)
    fast, _ = layer_and_its_reference(layer, 3, 4, **DROPOUT)
    fast(torch.randn(2, 3, 3, device=DEVICE))[0].sum().backward()
    assert all(p.grad is not None for p in fast.parameters())


@any_layer
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gradient_that_is_differentiated_again_is_the_references(layer, autocast):
    lower = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter has no products of bfloat16
    fast, reference = layer_and_its_reference(layer, 3, 4, **DROPOUT, bidirectional=True)
    x, masks = torch.randn(3, 2, 3, device=DEVICE, requires_grad=True), fast.sample_masks(2)

    def gradients(rnn):
        with torch.autocast(DEVICE, lower, enabled=autocast):
            _, state = rnn(pack_padded_sequence(x, torch.tensor([2, 3]), enforce_sorted=False), masks=masks)
            loss = rnn(x, state, masks)[0].square().sum()
        first = torch.autograd.grad(loss, [x, *rnn.parameters()], create_graph=True)
        return *first, *torch.autograd.grad(sum(part.square().sum() for part in first), [x, *rnn.parameters()])

    assert_close_for_their_size(gradients(fast), gradients(reference), 0.05 if autocast else 1e-5)


@any_layer
def test_batched_gradients_are_the_references(layer):
    fast, reference = layer_and_its_reference(layer, 3, 4, **DROPOUT)
    x, masks = torch.randn(3, 2, 3, device=DEVICE, requires_grad=True), fast.sample_masks(2)
    batched = torch.randn(4, 3, 2, 4, device=DEVICE)
    gradients = (
        torch.autograd.grad(rnn(x, masks=masks)[0], x, batched, is_grads_batched=True) for rnn in (fast, reference)
    )
    assert_close_for_their_size(*gradients)


@any_layer
def test_gradients_that_are_negated_lazily_are_read_with_their_sign(layer):
    fast, reference = layer_and_its_reference(layer, 3, 4, **DROPOUT)
    x, masks, gradient = torch.randn(3, 2, 3, device=DEVICE), fast.sample_masks(2), torch.randn(3, 2, 4, device=DEVICE)
    gradients = (
        torch.autograd.grad(rnn(x, masks=masks)[0], list(rnn.parameters()), torch._neg_view(gradient))
        for rnn in (fast, reference)
    )
    assert_close_for_their_size(*gradients)


@any_layer
def test_saturated_gates_stay_finite_and_equal_the_references(layer):
    fast, reference = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    x = (1e4 * torch.randn(3, 2, 3, device=DEVICE)).requires_grad_()
    masks, hx = fast.sample_masks(2), state_for(fast, 2)
    results, expected = (run(rnn, x, hx, masks) for rnn in (fast, reference))
    assert all(part.isfinite().all() for part in results)
    assert_close_for_their_size(results, expected, 1e-4)


@any_layer
@pytest.mark.parametrize("gate_masks", ["tied", "untied"])
def test_under_autocast_products_are_in_lower_precision_and_the_state_is_float32(layer, gate_masks):
    lower = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter has no products of bfloat16
    fast, reference = layer_and_its_reference(layer, 8, 24, **DROPOUT, gate_masks=gate_masks)
    x = torch.randn(4, 3, 8, device=DEVICE, requires_grad=True)
    masks, hx = fast.sample_masks(3), state_for(fast, 3)
    expected = run(reference, x, hx, masks)
    with torch.autocast(DEVICE, dtype=lower):
        results = run(fast, x, hx, masks)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).norm() <= 0.02 * other.norm()


def test_a_repeated_call_computes_by_a_graph_what_the_first_ones_compute():
    """On the CPU no graph is recorded; the calls are the same."""
    fast, reference = layer_and_its_reference("lstm", 3, 20, **DROPOUT)
    for _ in range(cuda.WARM_UP + 3):
        x = torch.randn(3, 4, 3, device=DEVICE, requires_grad=True)
        masks, hx = fast.sample_masks(4), state_for(fast, 4)
        assert_close_for_their_size(*(run(rnn, x, hx, masks) for rnn in (fast, reference)))


@needs_gpu
def test_results_of_an_earlier_call_outlive_later_ones():
    fast, _ = layer_and_its_reference("lstm", 3, 20, **DROPOUT)
    inputs = torch.randn(6, 3, 4, 3, device=DEVICE)
    masks = fast.sample_masks(4)
    outputs = [fast(x, masks=masks)[0] for x in inputs]
    again = [fast(x, masks=masks)[0].clone() for x in inputs]
    assert all(torch.equal(one, other) for one, other in zip(outputs, again, strict=True))


@needs_gpu
def test_a_training_step_never_waits_for_the_gpu():
    fast, _ = layer_and_its_reference("lstm", 3, 20, 2, **DROPOUT)
    x = torch.randn(3, 4, 3, device=DEVICE)
    for _ in range(cuda.WARM_UP + 2):
        fast(x)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_layers_on_a_gpu_choose_it():
    x, state = torch.randn(2, 3, 4, device=DEVICE), (torch.zeros(3, 5, device=DEVICE),)
    weights = functional.Weights(torch.randn(5, 4, device=DEVICE), torch.randn(5, 5, device=DEVICE))
    assert kernels.choose_kernel("RNN_TANH", x, state, weights, LayerMasks()) is cuda.unroll


class OnGPU(torch.Tensor):
    is_cuda = True


class PretendedGraph:
    """Stands for torch.cuda.CUDAGraph where there is no GPU: a replay calls what was recorded on the same tensors."""

    def replay(self):
        function, inputs, outputs = self.recorded
        for output, again in zip(outputs, function(*inputs), strict=True):
            output.copy_(again)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A function behind Graphs, and how often it was really called."""
    calls = []

    def double_and_sum(x, y):
        calls.append((x, y))
        return 2 * x, x + y

    @contextlib.contextmanager
    def record(graph, **_):
        yield
        graph.recorded = (lambda x, y: (2 * x, x + y)), calls[-1], record.outputs()

    graphs = cuda.Graphs(double_and_sum)
    kept = []
    graphs.function = lambda *inputs: kept.append(double_and_sum(*inputs)) or kept[-1]
    record.outputs = lambda: kept[-1]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return graphs, calls


def on_gpu(*shape):
    return torch.randn(shape).as_subclass(OnGPU)


def test_a_graph_computes_on_what_each_call_is_given_and_its_results_stay(pretended_gpu):
    graphs, calls = pretended_gpu
    inputs = [(on_gpu(3, 4), on_gpu(3, 4)) for _ in range(6)]
    results = [graphs(x, y) for x, y in inputs]
    for (x, y), (doubled, total) in zip(inputs, results, strict=True):
        assert torch.equal(doubled, 2 * x)
        assert torch.equal(total, x + y)
    assert len(calls) == cuda.WARM_UP + 2, "recording calls it twice, a replay not at all"


def test_a_graph_recorded_in_inference_serves_training(pretended_gpu):
    graphs, _ = pretended_gpu
    with torch.inference_mode():
        for _ in range(cuda.WARM_UP + 1):
            graphs(on_gpu(3), on_gpu(3))
    x = on_gpu(3)
    assert torch.equal(graphs(x, x)[1], 2 * x)


def test_shapes_have_graphs_of_their_own_and_the_oldest_goes(pretended_gpu):
    graphs, _ = pretended_gpu
    for size in range(1, cuda.KEPT_GRAPHS + 3):
        for _ in range(cuda.WARM_UP + 2):
            x = on_gpu(size)
            assert torch.equal(graphs(x, x)[0], 2 * x)
    assert len(graphs.graphs) == cuda.KEPT_GRAPHS
    assert [key[0][0][0] for key in graphs.graphs] == [(size,) for size in range(3, cuda.KEPT_GRAPHS + 3)]


def test_large_problems_are_not_recorded(pretended_gpu, monkeypatch):
    graphs, calls = pretended_gpu
    monkeypatch.setattr(cuda, "LARGEST_GRAPH", 10)
    for _ in range(cuda.WARM_UP + 3):
        graphs(on_gpu(6), on_gpu(6))
    assert not graphs.graphs
    assert len(calls) == cuda.WARM_UP + 3


def test_an_old_gpu_is_left_to_the_reference_and_why_is_said_once(caplog):
    kernels.cuda_kernel.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [kernels.cuda_kernel((7, 0)) for _ in range(3)] == [None] * 3
    [record] = caplog.records
    assert "compute capability 8.0, this GPU has 7.0" in record.getMessage()


def test_without_triton_the_reference_computes_and_why_is_said_once(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "variational_rnn.kernels.cuda")
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels.cuda_kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [kernels.cuda_kernel((9, 0)) for _ in range(3)] == [None] * 3
    finally:
        kernels.cuda_kernel.cache_clear()
    [record] = caplog.records
    assert "Triton does not work here (ModuleNotFoundError" in record.getMessage()


def test_where_triton_fails_on_the_gpu_the_reference_computes_and_why_is_said_once(monkeypatch, caplog):
    def try_out():
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(cuda, "try_out", try_out)
    kernels.cuda_kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [kernels.cuda_kernel((9, 0)) for _ in range(3)] == [None] * 3
    finally:
        kernels.cuda_kernel.cache_clear()
    [record] = caplog.records
    assert "Failed to find C compiler" in record.getMessage()


@pytest.mark.parametrize("setting", ["allow_tf32", "fp32_precision"])
def test_tf32_is_used_where_it_is_allowed_by_its_old_or_new_name(setting):
    """In a process of its own: once set by its new name it may not be read by the old one."""
    value = "True" if setting == "allow_tf32" else "'tf32'"
    code = (
        "import torch; from variational_rnn.kernels import cuda; assert not cuda._tf32_is_allowed(); "
        f"torch.backends.cuda.matmul.{setting} = {value}; assert cuda._tf32_is_allowed()"
    )
    if hasattr(torch.backends.cuda.matmul, setting):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_layers_import_neither_triton_nor_the_cuda_backend():
    code = (
        "import sys, torch; from variational_rnn import VariationalLSTM; "
        "VariationalLSTM(3, 4, recurrent_dropout=0.5)(torch.randn(2, 3, 3)); "
        "assert 'triton' not in sys.modules and 'variational_rnn.kernels.cuda' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from variational_rnn.kernels import cuda

INTEGERS = {"t", "now", "before", "after", "B", "mask_t", "mask_g", "mask_b", "memory_b"}
for mode, batch, gates, memory, lengths, precision in [
    ("LSTM", 20, 1, False, False, torch.float32),
    ("LSTM", 20, 4, True, True, torch.float32),
    ("LSTM", 20, 1, False, False, torch.bfloat16),
    ("LSTM", 128, 4, False, False, torch.bfloat16),
    ("GRU", 1, 3, False, True, torch.bfloat16),
    ("GRU", 20, 1, False, False, torch.float32),
    ("RNN_TANH", 20, 0, False, True, torch.bfloat16),
    ("RNN_RELU", 20, 1, False, False, torch.float16),
]:
    mask = torch.ones(1, gates, batch, 650) if gates else None
    grid, options = cuda._options(
        mode, batch, 650, mask, mask if memory else None, mask if lengths else None, precision, "ieee"
    )
    stages = options.pop("num_stages")
    absent = {
        "mask": mask is None, "memory": not memory, "lengths": not lengths, "bias_n": mode != "GRU",
        "product_n": mode != "GRU", "c": mode != "LSTM", "dc": mode != "LSTM",
    }
    options |= {name: None for name, missing in absent.items() if missing}
    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    for kernel in (cuda.forward_step, cuda.backward_step):
        types = {"lengths": "*i64", "weight": pointers[precision]}
        signature = {
            name: "constexpr" if name in options else "i32" if name in INTEGERS else types.get(name, "*fp32")
            for name in kernel.arg_names
        }
        if batch == 1:
            signature["B"] = "constexpr"
        values = options | ({"B": 1} if batch == 1 else {})
        constants = {(place,): values[name] for place, name in enumerate(kernel.arg_names) if name in values}
        # Tensors of torch are aligned, which Triton's JIT sees and loads them in larger pieces.
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if signature[name].startswith("*") or name.startswith("mask_")
        }
        compiled = triton.compile(
            ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
            target=GPUTarget("cuda", 90, 32), options={"num_stages": stages},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 99 * 1024, (mode, compiled.metadata.shared)
        print(mode, batch, gates, precision, compiled.metadata.shared)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux")
def test_the_kernels_compile_for_a_gpu_and_fit_into_the_shared_memory_of_all_since_ampere(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE, encoding="utf-8")
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, str(script)], check=True, env=environment)
