"""The CPU kernels compute what the reference computes."""

import contextlib
import copy
import functools
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence

from variational_rnn import VariationalGRU, VariationalLSTM, VariationalRNN, functional
from variational_rnn.kernels import build, cpu, softmax
from variational_rnn.masks import LayerMasks

LAYERS = {
    "lstm": (VariationalLSTM, {}),
    "moon": (VariationalLSTM, {"memory_dropout": 0.4}),
    "gru": (VariationalGRU, {}),
    "rnn_tanh": (VariationalRNN, {}),
    "rnn_relu": (VariationalRNN, {"nonlinearity": "relu"}),
}
DROPOUT = {"input_dropout": 0.3, "recurrent_dropout": 0.5}
bf16_autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
any_layer = pytest.mark.parametrize("layer", LAYERS)
is_built = pytest.mark.skipif(build.extension() is None, reason="the CPU kernels cannot be built here")
needs_bf16 = pytest.mark.skipif(
    build.extension() is None or not build.extension().vrnn_has_bf16(), reason="this processor has no products of bf16"
)
needs_tiles = pytest.mark.skipif(
    build.extension() is None or not build.extension().vrnn_has_tiles(), reason="this processor has no AMX"
)


def layer_and_its_reference(layer, *sizes, **kwargs):
    ours, options = LAYERS[layer]
    fast = ours(*sizes, **options, **kwargs)
    reference = copy.deepcopy(fast)
    reference.backend = "reference"
    return fast, reference


def run(rnn, x, hx, masks, lengths=None):
    """Output and states, and the gradients of x, hx and every parameter."""
    input = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, state = rnn(input, hx, masks)
    output = output if lengths is None else output.data
    outputs = (output, *(state if isinstance(state, tuple) else (state,)))
    loss = sum(part.square().sum() for part in outputs)
    leaves = [x, *(hx if isinstance(hx, tuple) else (hx,)), *rnn.parameters()]
    return outputs, torch.autograd.grad(loss, leaves)


def assert_close_for_their_size(results, expected):
    """Sums of many products round differently: the error is measured by the largest entry."""
    for one, other in zip(results, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max())


@pytest.fixture
def no_reference(monkeypatch):
    def unroll(*args, **kwargs):
        raise AssertionError("the reference ran")

    monkeypatch.setattr("variational_rnn.functional.unroll", unroll)


CASES = {
    "layer": st.sampled_from(list(LAYERS)),
    "input_size": st.integers(1, 70),
    "hidden_size": st.integers(1, 70),
    "num_layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
    "bias": st.booleans(),
    "input_dropout": st.sampled_from([0.0, 0.3, 0.5]),
    "recurrent_dropout": st.sampled_from([0.0, 0.3, 0.5]),
    "gate_masks": st.sampled_from(["tied", "untied"]),
    "time_masks": st.sampled_from(["constant", "fresh"]),
    "mask_rows": st.sampled_from(["one each", "one"]),
    "steps": st.integers(1, 24),
    "batch": st.integers(1, 30),
    "packed": st.booleans(),
}


def case_of(layer, input_size, hidden_size, num_layers, steps, batch, mask_rows, packed, **options):
    """A layer and its reference, and what `run` runs them on."""
    torch.manual_seed(0)
    fast, reference = layer_and_its_reference(layer, input_size, hidden_size, num_layers, **options)
    x = torch.randn(steps, batch, input_size, requires_grad=True)
    shape = (fast.num_layers * (1 + fast.bidirectional), batch, hidden_size)
    hx = torch.randn(shape, requires_grad=True)
    if isinstance(fast, VariationalLSTM):
        hx = (hx, torch.randn(shape, requires_grad=True))
    masks = fast.sample_masks(batch if mask_rows == "one each" else 1, steps)
    lengths = torch.randint(1, steps + 1, (batch,)) if packed else None
    if packed:
        lengths[0] = steps
    return fast, reference, (x, hx, masks, lengths)


@contextlib.contextmanager
def threads_set(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@is_built
@settings(max_examples=300)
@given(case=st.fixed_dictionaries(CASES), threads=st.sampled_from([1, 2]))
def test_outputs_states_and_gradients_equal_the_references(case, threads):
    fast, reference, arguments = case_of(**case)
    with threads_set(threads):
        (outputs, gradients), expected = run(fast, *arguments), run(reference, *arguments)
    assert_close_for_their_size((*outputs, *gradients), (*expected[0], *expected[1]))


@is_built
@any_layer
def test_it_runs_where_every_sequence_has_masks_of_its_own(layer, no_reference):
    fast, _ = layer_and_its_reference(layer, 3, 4, 2, bidirectional=True, **DROPOUT)
    fast(torch.randn(5, 2, 3))[0].sum().backward()
    with torch.no_grad():
        fast.eval()(torch.randn(5, 2, 3), masks=fast.sample_masks(2))


@is_built
@any_layer
@pytest.mark.parametrize(("steps", "batch", "hidden"), [(20, 24, 200), (3, 128, 128)])
def test_it_equals_the_reference_at_the_sizes_of_the_paper(layer, steps, batch, hidden):
    fast, reference = layer_and_its_reference(layer, hidden, hidden, **DROPOUT, gate_masks="untied")
    for parameter in fast.parameters():
        torch.nn.init.uniform_(parameter, -0.05, 0.05)
    reference.load_state_dict(fast.state_dict())
    x = torch.randn(steps, batch, hidden, requires_grad=True)
    masks = fast.sample_masks(batch)
    for one, other in zip(run_from_zeros(fast, x, masks), run_from_zeros(reference, x, masks), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@is_built
@any_layer
@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_saturated_gates_stay_finite_and_equal_the_references(layer, magnitude):
    if layer == "rnn_relu":
        magnitude = 1e4  # it grows with every step
    fast, reference = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    x = (magnitude * torch.randn(5, 2, 3)).requires_grad_()
    masks = fast.sample_masks(2)
    results = [run_from_zeros(rnn, x, masks) for rnn in (fast, reference)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert all(part.isfinite().all() for part in results[0])


def run_from_zeros(rnn, x, masks):
    output, _ = rnn(x, masks=masks)
    return output, *torch.autograd.grad(output.sum(), [x, *rnn.parameters()])


@is_built
@any_layer
def test_input_may_be_strided_and_parameters_views(layer):
    fast, reference = layer_and_its_reference(layer, 3, 20, **DROPOUT, batch_first=True)
    masks, x = fast.sample_masks(4), torch.randn(4, 3, 14)[..., ::2].transpose(1, 2).requires_grad_()
    assert not x.is_contiguous()
    weights = {name: torch.stack([p, p], dim=-1)[..., 0] for name, p in fast.named_parameters()}
    outputs = [torch.func.functional_call(rnn, weights, (x, None, masks))[0] for rnn in (fast, reference)]
    gradients = [torch.autograd.grad(output.square().sum(), [x, *fast.parameters()]) for output in outputs]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@is_built
@any_layer
def test_a_graph_can_be_gone_through_twice(layer):
    fast, _ = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    output, _ = fast(torch.randn(5, 2, 3), masks=fast.sample_masks(2))
    first = torch.autograd.grad(output.sum(), list(fast.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), list(fast.parameters())), first, rtol=0, atol=0)


@is_built
@any_layer
@pytest.mark.parametrize("asked", ["output", "state"])
def test_a_gradient_may_come_through_the_output_or_the_state_alone(layer, asked):
    fast, reference = layer_and_its_reference(layer, 3, 20, 2, **DROPOUT)
    masks, x = fast.sample_masks(2), torch.randn(5, 2, 3)
    results = []
    for rnn in (fast, reference):
        output, state = rnn(x, masks=masks)
        part = output if asked == "output" else state[-1] if isinstance(state, tuple) else state
        results.append(torch.autograd.grad(part.sum(), list(rnn.parameters())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@is_built
@any_layer
def test_frozen_parameters_and_inputs_get_no_gradient_and_the_rest_the_same(layer):
    fast, reference = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    masks, x = fast.sample_masks(2), torch.randn(5, 2, 3)
    results = []
    for rnn in (fast, reference):
        rnn.weight_ih_l0.requires_grad_(False)
        rnn(x, masks=masks)[0].sum().backward()
        assert rnn.weight_ih_l0.grad is None
        results.append(rnn.weight_hh_l0.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@is_built
def test_the_same_seed_gives_the_same_masks_whatever_the_backend():
    fast, reference = layer_and_its_reference("lstm", 3, 20, **DROPOUT)
    x, outputs = torch.randn(5, 2, 3), []
    for rnn in (fast, reference):
        torch.manual_seed(1)
        outputs.append(rnn(x)[0])
    torch.testing.assert_close(*outputs)


@is_built
def test_what_it_does_not_compute_is_left_to_the_reference(monkeypatch):
    def unroll(*args, **kwargs):
        raise AssertionError("the fast kernel ran")

    monkeypatch.setattr("variational_rnn.kernels.cpu.unroll", unroll)
    x = torch.randn(5, 2, 3)
    VariationalLSTM(3, 4, **DROPOUT).double()(x.double())
    VariationalLSTM(3, 4, proj_size=2, **DROPOUT)(x)
    VariationalLSTM(3, 4, backend="reference", **DROPOUT)(x)
    learned = VariationalGRU(3, 4, **DROPOUT)
    masks = learned.sample_masks(2)
    masks.layers[0].input.requires_grad_()
    learned(x, masks=masks)
    with torch.autocast("cpu", dtype=torch.float16):
        VariationalLSTM(3, 4, **DROPOUT)(x)
    with bf16_autocast():
        VariationalLSTM(3, 4, **DROPOUT)(x.half())
        VariationalLSTM(3, 4, **DROPOUT).bfloat16()(x.bfloat16())


@is_built
def test_a_cell_that_no_kernel_knows_is_left_to_the_reference(monkeypatch):
    monkeypatch.setitem(functional.CELLS, "NEW_GRU", functional.CELLS["GRU"])
    gru = VariationalGRU(3, 4, **DROPOUT)
    x, masks = torch.randn(5, 2, 3), gru.sample_masks(2)
    expected = gru(x, masks=masks)
    gru.mode = "NEW_GRU"
    assert "no cell NEW_GRU" in cpu.why_unsupported("NEW_GRU", x, (x[0],), functional.Weights(x, x), LayerMasks())
    torch.testing.assert_close(gru(x, masks=masks), expected)


def test_a_change_of_any_source_file_has_another_name_in_the_cache(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho built > "$2"\n', encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sources = shutil.copytree(build.FOLDER, tmp_path / "sources")
    monkeypatch.setattr(build, "FOLDER", sources)
    names = [build._built([str(compiler)], []).name]
    for name in ("gemm.h", "rnn.cpp", "softmax.cpp"):
        (sources / name).write_text((sources / name).read_text() + "// changed", encoding="utf-8")
        names.append(build._built([str(compiler)], []).name)
    assert len(set(names)) == 4


@is_built
@any_layer
def test_on_a_processor_without_bf16_products_it_computes_float32_under_autocast(layer, monkeypatch, no_reference):
    fast, _ = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    x, masks = torch.randn(5, 2, 3), fast.sample_masks(2)
    expected = fast(x, masks=masks)[0]
    library = build.extension()
    older = SimpleNamespace(
        vrnn_has_bf16=lambda: 0, vrnn_forward=library.vrnn_forward, vrnn_backward=library.vrnn_backward
    )
    monkeypatch.setattr(build, "extension", lambda: older)
    with bf16_autocast():
        assert torch.equal(fast(x, masks=masks)[0], expected)


def no_home():
    raise RuntimeError("there is no home")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda patch, tmp: patch.setenv("CXX", "no-such-compiler"), "there is no compiler no-such-compiler"),
        (lambda patch, tmp: patch.setenv("CXX", "false --now"), "cannot be built (false failed)"),
        (lambda patch, tmp: patch.setattr(Path, "home", no_home), "cannot be built (there is no home)"),
        (lambda patch, tmp: (tmp / "variational_rnn").write_text("in the way"), "cannot be built"),
        (lambda patch, tmp: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "VSX"), "processor (VSX)"),
    ],
    ids=["no compiler", "broken compiler", "no home", "no cache folder", "another processor"],
)
def test_where_it_cannot_be_built_the_reference_computes_and_why_is_said_once(
    monkeypatch, tmp_path, caplog, prepare, reason
):
    monkeypatch.setenv("XDG_CACHE_HOME", "" if reason.endswith("home)") else str(tmp_path))
    prepare(monkeypatch, tmp_path)
    build.extension.cache_clear()
    try:
        gru = VariationalGRU(3, 4, **DROPOUT)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                gru(torch.randn(5, 2, 3))
        [record] = caplog.records
        assert reason in record.getMessage()
    finally:
        build.extension.cache_clear()


@pytest.mark.parametrize(
    ("unknown", "has_bf16"),
    [pytest.param("avx512bf16", 0, marks=needs_bf16), pytest.param("amx", 1, marks=needs_tiles)],
)
def test_a_compiler_that_does_not_know_some_instructions_builds_the_rest(unknown, has_bf16, monkeypatch, tmp_path):
    compiler = tmp_path / "old-compiler"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *{unknown}*) exit 1;; esac\nexec c++ "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.extension.cache_clear()
    try:
        library = build.extension()
        assert (library.vrnn_has_bf16(), library.vrnn_has_tiles()) == (has_bf16, 0)
    finally:
        build.extension.cache_clear()


@is_built
def test_it_is_built_in_an_empty_cache_and_leaves_one_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.extension.cache_clear()
    try:
        assert build.extension() is not None
        assert [file.suffix for file in (tmp_path / "variational_rnn").iterdir()] == [".so"]
    finally:
        build.extension.cache_clear()


@is_built
@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda content: content[:-1] + b"?"])
def test_a_damaged_file_of_the_cache_is_built_again_and_a_whole_one_is_not(damage, monkeypatch, tmp_path):
    built = Path(build.extension()._name)
    compiler = tmp_path / "compiler"  # that has it ready
    copies = f'while [ "$1" != -o ]; do shift; done\ncp {shlex.quote(str(built))} "$2"'
    compiler.write_text(f"#!/bin/sh\n{copies}\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "variational_rnn"
    try:
        build.extension.cache_clear()
        assert build.extension() is not None
        [file] = folder.iterdir()
        file.unlink()  # not written over, since this process has loaded it
        file.write_bytes(damage(built.read_bytes()))
        build.extension.cache_clear()
        assert build.extension() is not None
        assert [found.read_bytes() for found in folder.iterdir()] == [built.read_bytes()]
        compiler.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        build.extension.cache_clear()
        assert build.extension() is not None
    finally:
        build.extension.cache_clear()


@is_built
@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="it runs with AVX2 already")
def test_with_the_instructions_of_an_older_processor_it_computes_the_same():
    code = (
        "import torch; from tests import conftest; from tests.variational_rnn import test_cpu_kernels as tests; "
        "assert torch.backends.cpu.get_cpu_capability() == 'AVX2'; "
        "tests.test_outputs_states_and_gradients_equal_the_references()"
    )
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"})


# --- hard gates -------------------------------------------------------------------------------------------------------


def unrolled(unroll, leaves, masks, lengths=None, reverse=False, mode="HARD_LSTM"):
    """Outputs and states of an LSTM, and the gradients of x, h, c and the parameters."""
    x, h_0, c_0, *weights = leaves
    weights = functional.Weights(*weights)
    h, state = unroll(mode, x, (h_0, c_0), weights, masks, lengths=lengths, reverse=reverse)
    loss = sum((part * torch.arange(1, part.size(-1) + 1) / part.size(-1)).sum() for part in (h, *state))
    return h, *state, *torch.autograd.grad(loss, leaves)


HARD_CASES = {
    "input_size": st.integers(1, 70),
    "hidden_size": st.integers(1, 70),
    "steps": st.integers(1, 12),
    "batch": st.integers(1, 30),
    "bias": st.booleans(),
    "input_dropout": st.sampled_from([0.0, 0.5]),
    "recurrent_dropout": st.sampled_from([0.0, 0.5]),
    "memory_dropout": st.sampled_from([0.0, 0.4]),
    "gate_masks": st.sampled_from(["tied", "untied"]),
    "time_masks": st.sampled_from(["constant", "fresh"]),
    "mask_sharing": st.sampled_from(["sequence", "batch"]),
}


def hard_case(input_size, hidden_size, steps, batch, **options):
    """What `unrolled` runs: gates that are open, closed, and in between."""
    torch.manual_seed(0)
    lstm = VariationalLSTM(input_size, hidden_size, **options)
    for parameter in lstm.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    x = 5 * torch.randn(steps, batch, input_size)
    state = torch.randn(2, batch, hidden_size)
    [masks] = lstm.sample_masks(batch, steps).layers
    return [leaf.detach().requires_grad_() for leaf in (x, *state, *lstm.parameters())], masks


@is_built
@settings(max_examples=150)
@given(
    case=st.fixed_dictionaries(HARD_CASES), packed=st.booleans(), reverse=st.booleans(), threads=st.sampled_from([1, 2])
)
def test_with_hard_gates_outputs_states_and_gradients_equal_the_references(case, packed, reverse, threads):
    leaves, masks = hard_case(**case)
    lengths = torch.randint(1, case["steps"] + 1, (case["batch"],)) if packed else None
    with threads_set(threads):
        results, expected = (
            unrolled(unroll, leaves, masks, lengths, reverse) for unroll in (cpu.unroll, functional.unroll)
        )
    assert_close_for_their_size(results, expected)


@is_built
@pytest.mark.parametrize("mode", ["HARD_LSTM", "LSTM"])
def test_with_hard_gates_it_equals_the_reference_at_the_sizes_of_the_paper(mode):
    leaves, masks = hard_case(128, 128, steps=20, batch=128, **DROPOUT, gate_masks="untied")
    results, expected = (unrolled(unroll, leaves, masks, mode=mode) for unroll in (cpu.unroll, functional.unroll))
    assert_close_for_their_size(results, expected)


@is_built
def test_hard_gates_differ_from_sigmoids():
    leaves, masks = hard_case(5, 20, steps=4, batch=3)
    hard, soft = (unrolled(cpu.unroll, leaves, masks, mode=mode) for mode in ("HARD_LSTM", "LSTM"))
    for one, other in zip(hard, soft, strict=True):
        assert (one - other).abs().max() > 1e-3


@is_built
@pytest.mark.parametrize("unroll", [cpu.unroll, functional.unroll], ids=["fast", "reference"])
def test_a_hard_gate_is_linear_between_minus_two_and_a_half_and_two_and_a_half_and_flat_outside(unroll):
    before = torch.tensor([-1e30, -9.0, -2.51, -2.49, -1.0, 0.0, 1.0, 2.49, 2.51, 9.0, 1e30])
    x = torch.zeros(1, len(before), 4)
    x[..., 1] = before  # of the forget gates; c is 1, and what is added to it 0
    x.requires_grad_()
    weights = functional.Weights(torch.eye(4), torch.zeros(4, 1))
    state = (torch.zeros(len(before), 1), torch.ones(len(before), 1))
    _, (_, c) = unroll("HARD_LSTM", x, state, weights, LayerMasks())
    expected = [min(max(0.2 * value + 0.5, 0.0), 1.0) for value in before.tolist()]
    torch.testing.assert_close(c.flatten(), torch.tensor(expected))
    [gradient] = torch.autograd.grad(c.sum(), x)
    slope = torch.tensor([0.2 if abs(value) < 2.5 else 0.0 for value in before.tolist()])
    torch.testing.assert_close(gradient[0, :, 1], slope)


@needs_bf16
def test_under_autocast_hard_gates_are_the_references_with_its_factors_rounded():
    leaves, masks = hard_case(30, 40, steps=5, batch=7, **DROPOUT, gate_masks="untied")
    with bf16_autocast():
        results = unrolled(cpu.unroll, leaves, masks)
    with mock.patch.object(functional, "masked_linear", rounded_masked_linear):
        expected = unrolled(functional.unroll, leaves, masks)
    assert_close_by_norm(0.02, results, expected)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


class RoundedLinear(torch.autograd.Function):
    """x W^T with the factors of its products rounded, in the backward pass too."""

    @staticmethod
    def forward(ctx, x, weight):
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.bfloat16().float()
        return dy @ weight, dy.flatten(0, -2).t() @ x.flatten(0, -2)


def rounded_masked_linear(x, weight, bias, mask):
    masks = (torch.ones(()),) if mask is None else mask.unbind(-3)
    weights = weight.chunk(len(masks))
    product = torch.cat([RoundedLinear.apply(x * z, w) for z, w in zip(masks, weights, strict=True)], dim=-1)
    return product if bias is None else product + bias


def run_in_bf16(fast, reference, arguments, threads=1):
    """What `run` gives under autocast, and the reference in float32 with the factors of its products rounded."""
    without_torchs_kernels = mock.patch.object(LayerMasks, "is_shared", False)
    with bf16_autocast(), without_torchs_kernels, threads_set(threads):
        results = run(fast, *arguments)
    with mock.patch.object(functional, "masked_linear", rounded_masked_linear):
        return results, run(reference, *arguments)


def assert_close_by_norm(tolerance, results, expected):
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= tolerance * other.norm()


def bf16_cases(**given):
    batch = {"batch": st.integers(1, 30) | st.sampled_from([31, 32, 33, 49, 65])}  # tiles have 16 rows, and go by two
    return st.fixed_dictionaries(CASES | batch | given).filter(
        lambda case: case["input_dropout"] or case["recurrent_dropout"]
    )


@needs_bf16
@settings(max_examples=150)
@given(case=bf16_cases(num_layers=st.just(1), steps=st.just(1)), threads=st.sampled_from([1, 2]))
def test_under_autocast_a_step_is_the_references_with_its_factors_rounded(case, threads):
    (outputs, gradients), (other_outputs, other_gradients) = run_in_bf16(*case_of(**case), threads)
    assert_close_for_their_size(outputs, other_outputs)
    assert_close_by_norm(0.005, gradients, other_gradients)


@needs_bf16
@settings(max_examples=150)
@given(case=bf16_cases(), threads=st.sampled_from([1, 2]))
def test_under_autocast_outputs_states_and_gradients_are_the_references_with_its_factors_rounded(case, threads):
    fast, reference, arguments = case_of(**case)
    for parameter in fast.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1)
    reference.load_state_dict(fast.state_dict())
    results, expected = run_in_bf16(fast, reference, arguments, threads)
    for one, other in zip(results, expected, strict=True):
        assert_close_by_norm(0.01, one, other)  # h differs in its last bits, and may then round the other way


@needs_bf16
@settings(max_examples=150)
@given(
    case=bf16_cases(
        layer=st.just("rnn_relu"), num_layers=st.just(1), steps=st.integers(1, 3),
        input_dropout=st.sampled_from([0.0, 0.5]), recurrent_dropout=st.sampled_from([0.0, 0.5]),
    ),
    threads=st.sampled_from([1, 2]),
)  # fmt: skip
def test_under_autocast_integers_give_exactly_what_the_reference_gives_with_its_factors_rounded(case, threads):
    fast, reference, (x, h_0, masks, lengths) = case_of(**case)
    with torch.no_grad():
        for tensor in (x, h_0, *fast.parameters()):
            tensor.copy_(torch.randint_like(tensor, -1, 2))
    reference.load_state_dict(fast.state_dict())
    results, expected = run_in_bf16(fast, reference, (x, h_0, masks, lengths), threads)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


@needs_bf16
@any_layer
def test_under_autocast_results_at_the_sizes_of_the_paper_are_close_to_those_in_float32(layer):
    fast, reference = layer_and_its_reference(layer, 200, 200, **DROPOUT, gate_masks="untied")
    for parameter in fast.parameters():
        torch.nn.init.uniform_(parameter, -0.05, 0.05)
    reference.load_state_dict(fast.state_dict())
    x = torch.randn(20, 24, 200, requires_grad=True)
    masks = fast.sample_masks(24)
    with bf16_autocast():
        results = run_from_zeros(fast, x, masks)
    tolerance = 0.06 if layer == "rnn_relu" else 0.006  # a rectifier near zero opens or closes
    assert_close_by_norm(tolerance, results, run_from_zeros(reference, x, masks))


@needs_bf16
@any_layer
def test_under_autocast_saturated_gates_stay_finite(layer):
    fast, reference = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    x = (1e4 * torch.randn(5, 2, 3)).requires_grad_()
    masks = fast.sample_masks(2)
    with bf16_autocast():
        results = run_from_zeros(fast, x, masks)
    with mock.patch.object(functional, "masked_linear", rounded_masked_linear):
        assert_close_by_norm(0.01, results, run_from_zeros(reference, x, masks))
    assert all(part.isfinite().all() for part in results)


@needs_bf16
@any_layer
def test_under_autocast_x_may_be_bfloat16_and_all_but_its_gradient_is_float32(layer, no_reference):
    fast, _ = layer_and_its_reference(layer, 3, 20, 2, **DROPOUT)
    x, masks = torch.randn(5, 2, 3).bfloat16(), fast.sample_masks(2)
    h_0 = torch.randn(2, 2, 20, requires_grad=True)
    hx = (h_0, torch.randn(2, 2, 20, requires_grad=True)) if isinstance(fast, VariationalLSTM) else h_0
    with bf16_autocast():
        (outputs, (dx, *gradients)), (others, (other_dx, *other_gradients)) = (
            run(fast, leaf.detach().requires_grad_(), hx, masks) for leaf in (x, x.float())
        )
    assert {part.dtype for part in (*outputs, *gradients)} == {torch.float32}
    torch.testing.assert_close((outputs, gradients), (others, other_gradients), rtol=0, atol=0)
    torch.testing.assert_close(dx, other_dx.bfloat16(), rtol=0, atol=0)


@needs_bf16
@any_layer
@pytest.mark.parametrize("autocast", [True, False])
def test_the_backward_pass_has_the_precision_of_the_forward_pass_inside_of_autocast_and_outside(layer, autocast):
    fast, _ = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    with bf16_autocast(enabled=autocast):
        output, _ = fast(torch.randn(5, 2, 3), masks=fast.sample_masks(2))
    loss = output.square().sum()
    outside = torch.autograd.grad(loss, list(fast.parameters()), retain_graph=True)
    with bf16_autocast():
        torch.testing.assert_close(torch.autograd.grad(loss, list(fast.parameters())), outside, rtol=0, atol=0)


@needs_bf16
@any_layer
def test_the_same_seed_gives_the_same_masks_under_autocast(layer):
    fast, _ = layer_and_its_reference(layer, 3, 20, **DROPOUT)
    x, outputs = torch.randn(5, 2, 3), []
    for enabled in (True, False):
        torch.manual_seed(1)
        with bf16_autocast(enabled=enabled):
            outputs.append(fast(x)[0])
    assert_close_by_norm(0.01, outputs[:1], outputs[1:])


@needs_tiles
@any_layer
def test_where_the_system_gives_no_leave_for_tiles_vectors_compute_the_same(layer, monkeypatch, no_reference):
    fast, _ = layer_and_its_reference(layer, 70, 50, num_layers=2, **DROPOUT)
    x, masks = torch.randn(9, 37, 70, requires_grad=True), fast.sample_masks(37)

    def results():
        with bf16_autocast():
            output = fast(x, masks=masks)[0]
            return [output, *torch.autograd.grad(output.square().sum(), [x, *fast.parameters()])]

    by_tiles = results()
    build.extension.cache_clear()
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    try:
        assert not build.extension().vrnn_has_tiles()
        assert_close_by_norm(1e-3, by_tiles, results())
    finally:
        build.extension.cache_clear()


@needs_tiles
def test_products_of_torch_which_have_tiles_of_their_own_are_right_before_and_after_ours():
    a, b = torch.randn(100, 200), torch.randn(200, 300)
    expected = a.bfloat16() @ b.bfloat16()
    with bf16_autocast():
        for rows in (100, 20, 7, 100):
            ours = softmax.matmul(a[:rows], b)
            torch.testing.assert_close(ours.bfloat16(), expected[:rows], rtol=1e-2, atol=1e-2)
            assert torch.equal(a @ b, expected)


def strided(rows, columns, row_step=1, column_step=1):
    """A random matrix among entries that are not its own."""
    storage = torch.full((rows * row_step + 1, columns * column_step + 1), torch.nan)
    return storage[:-1:row_step, :-1:column_step].copy_(torch.randn(rows, columns))


@is_built
@pytest.mark.parametrize("autocast", [False, pytest.param(True, marks=needs_bf16)])
@settings(max_examples=150)
@given(
    rows=st.integers(1, 50) | st.just(300),
    columns=st.integers(1, 70),
    depth=st.integers(1, 70) | st.integers(1022, 1027),
    turned=st.tuples(st.booleans(), st.booleans()),
    steps=st.tuples(*[st.tuples(st.integers(1, 2), st.integers(1, 2))] * 2),
    bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_a_product_has_float32_sums_of_factors_rounded_under_autocast(
    rows, columns, depth, turned, steps, bias, threads, autocast
):
    torch.manual_seed(0)
    a = strided(depth, rows, *steps[0]).t() if turned[0] else strided(rows, depth, *steps[0])
    b = strided(columns, depth, *steps[1]).t() if turned[1] else strided(depth, columns, *steps[1])
    bias = torch.randn(columns) if bias else None
    with bf16_autocast(enabled=autocast), threads_set(threads):
        result = softmax.matmul(a, b, bias)
    a, b = ((factor.bfloat16() if autocast else factor).double() for factor in (a, b))
    bias = torch.zeros(columns) if bias is None else bias
    assert result.dtype == torch.float32
    assert ((result - (a @ b + bias)).abs() <= 1e-5 * (a.abs() @ b.abs() + bias.abs())).all()
