import pytest
import torch

from lightning_modules.optim import DecoupledSGD


def parameter_with_gradient(value: float, gradient: float) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    return parameter


def test_weight_decay_comes_after_the_update() -> None:
    weight = parameter_with_gradient(3.0, 2.0)
    DecoupledSGD([weight], lr=0.5, decay=0.1).step()
    # (3 - 0.5 * 2) * 0.9; decay before the update would give 3 * 0.9 - 0.5 * 2 = 1.7.
    assert weight.item() == pytest.approx(1.8, rel=1e-12)


@pytest.mark.parametrize("lr", [0.0, 1e-3, 1.0])
def test_weight_decay_is_not_scaled_by_the_learning_rate(lr: float) -> None:
    weight = parameter_with_gradient(3.0, 0.0)
    DecoupledSGD([weight], lr=lr, decay=0.1).step()
    assert weight.item() == pytest.approx(2.7, rel=1e-12)


def test_weight_decay_reaches_every_parameter_group() -> None:
    first, second = parameter_with_gradient(1.0, 0.0), parameter_with_gradient(2.0, 0.0)
    DecoupledSGD([{"params": [first]}, {"params": [second], "lr": 0.1}], lr=1.0, decay=0.5).step()
    assert (first.item(), second.item()) == (0.5, 1.0)


def test_without_decay_it_is_plain_sgd() -> None:
    ours, theirs = parameter_with_gradient(3.0, 2.0), parameter_with_gradient(3.0, 2.0)
    DecoupledSGD([ours], lr=0.3).step()
    torch.optim.SGD([theirs], lr=0.3).step()
    assert torch.equal(ours, theirs)


def test_the_loss_of_a_closure_is_returned() -> None:
    weight = parameter_with_gradient(3.0, 2.0)
    assert DecoupledSGD([weight], lr=0.3, decay=0.1).step(lambda: 7.0) == 7.0


def test_clipping_within_the_step_is_torchs_clipping_before_it() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(size)) for size in (3, 5)] for _ in range(2))
    for gradient_norm in (0.5, 20.0):
        gradients = [torch.randn(3), torch.randn(5)]
        scale = gradient_norm / torch.nn.utils.get_total_norm(gradients)
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient * scale
        optimizer = DecoupledSGD(ours, lr=0.3, decay=0.01)
        optimizer.clip(torch.nn.utils.get_total_norm([p.grad for p in ours]), 5.0)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(theirs, 5.0)
        torch.optim.SGD(theirs, lr=0.3).step()
        for one, other in zip(ours, theirs, strict=True):
            with torch.no_grad():
                other *= 0.99
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["contiguous", "transposed gradient", "expanded gradient", "transposed parameter"])
def test_every_kind_of_parameter_is_clipped_updated_and_decayed(dtype: torch.dtype, form: str) -> None:
    torch.manual_seed(0)
    weight, gradient = (torch.randn(64, 48, dtype=dtype) for _ in range(2))
    if form == "transposed gradient":
        gradient = gradient.t().contiguous().t()
    elif form == "expanded gradient":
        gradient = gradient[:, :1].expand(64, 48)
    elif form == "transposed parameter":
        weight = weight.t().contiguous().t()
    parameter = torch.nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    parameter.grad = gradient if form == "expanded gradient" else gradient.clone()
    optimizer = DecoupledSGD([parameter], lr=0.5, decay=0.25)
    if form != "expanded gradient":  # which can be read, but not be written
        optimizer.clip(torch.tensor(4.0), 2.0)
        gradient = gradient / 2
    optimizer.step()
    tolerance = (
        1e-5 if dtype == torch.float64 else 0.02
    )  # the divisor is float32, and has torch's 1e-6 added to the norm
    expected = (weight - 0.5 * gradient) * 0.75
    torch.testing.assert_close(parameter.detach(), expected, rtol=tolerance, atol=tolerance)


def test_clipping_counts_for_one_step_only() -> None:
    weight = parameter_with_gradient(3.0, 2.0)
    optimizer = DecoupledSGD([weight], lr=0.5)
    optimizer.clip(torch.tensor(2.0), 0.5)
    optimizer.step()
    assert weight.item() == pytest.approx(2.75)
    weight.grad.fill_(2.0)
    optimizer.step()
    assert weight.item() == pytest.approx(1.75)


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_impossible_learning_rate_is_named(lr: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate must be .*, got {lr}"):
        DecoupledSGD([parameter_with_gradient(1.0, 1.0)], lr=lr)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_weight_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match=f"weight_decay must be .*, got {decay}"):
        DecoupledSGD([parameter_with_gradient(1.0, 1.0)], lr=0.1, decay=decay)
