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


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_weight_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"weight_decay must lie in \[0, 1\), got {decay}"):
        DecoupledSGD([parameter_with_gradient(1.0, 1.0)], lr=0.1, decay=decay)
