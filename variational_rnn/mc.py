"""Monte Carlo dropout: dropout that stays on at test time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import nn

_COUNTING = threading.Lock()
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class DropoutModule(nn.Module):
    """Base of this library's modules: their dropout is live in training and inside `mc_dropout`."""

    _mc_contexts = 0  # number of open `mc_dropout` contexts

    @property
    def dropout_is_live(self) -> bool:
        """Whether a forward pass without given masks samples masks."""
        return self.training or self._mc_contexts > 0

    def __prepare_scriptable__(self) -> nn.Module:
        """Raise under torch.jit.script, which cannot compile `forward`."""
        raise NotImplementedError(
            f"torch.jit.script does not know {type(self).__name__}: use torch.export, or torch.jit.trace in eval mode"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies are outside of open contexts, which would not close for them."""
        return {name: value for name, value in super().__getstate__().items() if name != "_mc_contexts"}


# Modules of torch.nn in which `training` switches dropout and nothing else.
TORCH_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RNNBase,
    nn.MultiheadAttention,
)


@contextmanager
def mc_dropout(module: ModuleT, *, torch_dropout: bool = False) -> Iterator[ModuleT]:
    """Context in which the dropout of this library stays live inside `module`, although `module.eval()` was called.

    Each forward pass draws new masks, that is a new sample of the weights from the approximate posterior (section 3 of
    the paper). `module.training` is the same before, within and after, so other layers stay in the mode they are in and
    a trainer's bookkeeping of train and eval mode has no effect. Contexts nest; the former setting comes back when one
    is left, also by an exception.

    Args:
        module: a network, or a part of one.
        torch_dropout: keep torch.nn's own dropout live too: nn.Dropout and its relatives, and the dropout inside
            nn.LSTM, GRU, RNN and MultiheadAttention. Calls of torch.nn.functional.dropout in a module of your own
            follow that module's `training` and are not found.

    A copy made inside the context is not in it, but keeps the hooks that torch_dropout puts on torch.nn's modules.

    Raises:
        ValueError: there is no layer with dropout in `module`; every pass would give the same. Or
            torch_dropout is asked for inside a compiled module, whose code would not notice.

    Example:
        >>> import torch
        >>> from variational_rnn import VariationalGRU
        >>> gru = VariationalGRU(10, 20, input_dropout=0.25, recurrent_dropout=0.25).eval()
        >>> x = torch.randn(7, 3, 10)
        >>> with mc_dropout(gru):
        ...     samples = torch.stack([gru(x)[0] for _ in range(5)])
        >>> samples.shape, bool((samples.std(dim=0) > 0).all())
        (torch.Size([5, 7, 3, 20]), True)
    """
    ours = [m for m in module.modules() if isinstance(m, DropoutModule)]
    torchs = [
        m
        for m in module.modules()
        if torch_dropout and isinstance(m, TORCH_DROPOUT) and (vars(m).get("p") or vars(m).get("dropout"))
    ]
    if not ours and not torchs:
        what = "no dropout" if torch_dropout else "no module of variational_rnn"
        hint = "" if torch_dropout else " (torch_dropout=True looks for torch.nn's too)"
        raise ValueError(f"mc_dropout found {what} in {type(module).__name__}: there is nothing to sample{hint}")
    if torch_dropout and any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in module.modules()):
        raise ValueError("torch_dropout has no effect on compiled code: pass the module that was compiled, or none")
    with ExitStack() as restored:
        for torchs_own in torchs:
            _train_while_called(torchs_own, restored)
        for encoder in module.modules():
            if torchs and isinstance(
                encoder, nn.TransformerEncoder
            ):  # nested tensors would need the path without dropout
                restored.callback(setattr, encoder, "use_nested_tensor", encoder.use_nested_tensor)
                encoder.use_nested_tensor = False
        for m in ours:
            _count(m, 1)
            restored.callback(_count, m, -1)
        yield module


def _count(module: DropoutModule, step: int) -> None:
    with _COUNTING:  # several threads may open contexts
        module._mc_contexts += step


def _train_while_called(module: nn.Module, until: ExitStack) -> None:
    """Set training mode for the time of each call only, so that no other code sees or resets the flag."""
    modes: list[bool] = []

    def enter(module: nn.Module, args: Any) -> None:
        modes.append(module.training)
        module.training = True

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        module.training = modes.pop()

    until.callback(module.register_forward_pre_hook(enter).remove)
    # The hooks of an inner context come last before a call, so they have to come first behind it.
    until.callback(module.register_forward_hook(leave, prepend=True, always_call=True).remove)
