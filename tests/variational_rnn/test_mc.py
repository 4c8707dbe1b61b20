"""Monte Carlo dropout."""

import copy
import pickle
from contextlib import suppress

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from variational_rnn import (
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalLSTM,
    VariationalLSTMCell,
    VariationalRNN,
    VariationalRNNCell,
    log_mean_exp,
    mc_dropout,
)

WORDS = torch.arange(8).unsqueeze(1)


class Tagger(nn.Module):
    """A model with dropout of this library at three places, and an ordinary nn.Dropout and batch norm."""

    def __init__(self, p=0.5):
        super().__init__()
        self.embedding = VariationalEmbedding(8, 16, word_dropout=p)
        self.gru = VariationalGRU(16, 16, input_dropout=p, recurrent_dropout=p)
        self.dropout = VariationalDropout(p)
        self.ordinary = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, words):
        return self.norm(self.ordinary(self.dropout(self.gru(self.embedding(words))[0]).squeeze(1)))


def output_of(model, x):
    output = model(x)
    return output[0] if isinstance(output, tuple) else output


def is_stochastic(model, x=WORDS):
    return not torch.equal(output_of(model, x), output_of(model, x))


def test_dropout_is_live_within_the_context_only():
    model = Tagger().eval()
    assert not is_stochastic(model)
    with mc_dropout(model) as same:
        assert same is model
        assert is_stochastic(model)
    assert not is_stochastic(model)


def test_no_module_leaves_eval_and_ordinary_dropout_and_batch_norm_stay_off():
    model = Tagger().eval()
    with mc_dropout(model):
        assert not any(module.training for module in model.modules())
        assert torch.equal(model.ordinary(torch.ones(100)), torch.ones(100))
        model(WORDS)
        assert model.norm.num_batches_tracked == 0


def test_a_model_in_mixed_modes_keeps_every_mode():
    model = Tagger().train()
    model.gru.eval()
    before = [module.training for module in model.modules()]
    with mc_dropout(model):
        assert [module.training for module in model.modules()] == before
    assert [module.training for module in model.modules()] == before


def test_eval_called_within_the_context_does_not_switch_it_off():
    model = Tagger().train()
    with mc_dropout(model):
        model.eval()
        assert is_stochastic(model)
    assert not model.training
    assert not is_stochastic(model)


def test_contexts_nest():
    model = Tagger().eval()
    with mc_dropout(model):
        with mc_dropout(model.dropout):
            assert is_stochastic(model.dropout, torch.ones(4, 1, 16))
        assert is_stochastic(model.dropout, torch.ones(4, 1, 16))
    assert not is_stochastic(model)


def test_the_former_setting_comes_back_when_an_exception_leaves_the_context():
    model = Tagger().eval()
    with pytest.raises(KeyError), mc_dropout(model):
        raise KeyError
    assert not is_stochastic(model)


def test_a_part_of_a_model_can_be_sampled_alone():
    model = Tagger().eval()
    with mc_dropout(model.dropout):
        assert not is_stochastic(model.embedding)
        assert is_stochastic(model)


def test_a_model_with_nothing_to_sample_is_refused_by_name():
    with (
        pytest.raises(ValueError, match="in Sequential: there is nothing to sample"),
        mc_dropout(nn.Sequential(nn.LSTM(3, 4), nn.Dropout(0.5))),
    ):
        pass


def test_a_model_with_torchs_dropout_only_is_refused_with_a_hint_and_accepted_when_asked_for():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    with pytest.raises(ValueError, match=r"no module of variational_rnn in Sequential.*torch_dropout=True"):
        mc_dropout(model).__enter__()
    with mc_dropout(model, torch_dropout=True) as same:
        assert same is model
        assert is_stochastic(model, torch.randn(4, 8))


def test_a_model_with_no_dropout_at_all_is_refused_without_a_hint():
    with pytest.raises(ValueError, match=r"no dropout in Sequential: there is nothing to sample$"):
        mc_dropout(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), torch_dropout=True).__enter__()


def test_one_sample_with_p_0_is_the_approximation():
    model = Tagger(p=0.0).eval()
    approximation = model(WORDS).log_softmax(-1)
    with mc_dropout(model):
        samples = torch.stack([model(WORDS).log_softmax(-1)])
    assert torch.equal(log_mean_exp(samples), approximation)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (VariationalLSTM(8, 8, input_dropout=0.5), torch.randn(3, 2, 8)),
        (VariationalGRU(8, 8, recurrent_dropout=0.5, mask_sharing="batch"), torch.randn(3, 2, 8)),
        (VariationalRNN(8, 8, recurrent_dropout=0.5, time_masks="fresh"), torch.randn(3, 2, 8)),
        (VariationalEmbedding(8, 4, word_dropout=0.5, word_masks="token"), WORDS),
        (VariationalDropout(0.5), torch.ones(3, 2, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_layer_that_samples_its_masks_is_live_with_and_without_torchs_dropout(module, x):
    module.eval()
    for torch_dropout in (False, True):
        with mc_dropout(module, torch_dropout=torch_dropout):
            assert module.dropout_is_live
            assert is_stochastic(module, x)
        assert not module.dropout_is_live
        assert not is_stochastic(module, x)


@pytest.mark.parametrize("ours", [VariationalLSTMCell, VariationalRNNCell])
def test_a_cell_tells_a_loop_where_masks_are_needed(ours):
    cell = ours(3, 4, input_dropout=0.5).eval()
    with mc_dropout(cell):
        assert cell.dropout_is_live
    assert not cell.dropout_is_live


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)


TORCHS = {
    "Dropout": (lambda: nn.Dropout(0.5), torch.randn(9, 16)),
    "Dropout1d": (lambda: nn.Dropout1d(0.5), torch.randn(9, 16, 2)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), torch.randn(9, 16, 2, 2)),
    "Dropout3d": (lambda: nn.Dropout3d(0.5), torch.randn(9, 16, 2, 2, 2)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), torch.randn(9, 16)),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.5), torch.randn(9, 16, 2)),
    "LSTM": (lambda: nn.LSTM(16, 16, num_layers=2, dropout=0.5), torch.randn(9, 2, 16)),
    "GRU": (lambda: nn.GRU(16, 16, num_layers=2, dropout=0.5), torch.randn(9, 2, 16)),
    "RNN": (lambda: nn.RNN(16, 16, num_layers=2, dropout=0.5), torch.randn(9, 2, 16)),
    "MultiheadAttention": (lambda: Attention(16, 2, dropout=0.5, batch_first=True), torch.randn(9, 2, 16)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(16, 2, 16, dropout=0.5, batch_first=True),
        torch.randn(9, 2, 16),
    ),
}
any_torchs = pytest.mark.parametrize(("make", "x"), TORCHS.values(), ids=TORCHS)
torch_dropout_or_not = pytest.mark.parametrize("torch_dropout", [True, False])


def modes(model):
    return [module.training for module in model.modules()]


def hooks(model):
    return [
        hook
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
        for hook in getattr(module, kind)
    ]


@any_torchs
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_torchs_dropout_is_live_in_eval_when_asked_for(make, x, grad):
    module = make().eval()
    with torch.set_grad_enabled(grad):
        assert not is_stochastic(module, x)
        with mc_dropout(module, torch_dropout=True):
            assert is_stochastic(module, x)
        assert not is_stochastic(module, x)


@any_torchs
def test_torchs_dropout_stays_off_when_not_asked_for(make, x):
    model = nn.Sequential(make(), VariationalDropout(0.5)).eval()
    with mc_dropout(model):
        assert not is_stochastic(model[0], x)


@any_torchs
def test_torchs_dropout_drops_what_it_drops_in_training(make, x):
    module = make().eval()
    with mc_dropout(module, torch_dropout=True):
        torch.manual_seed(1)
        sampled = output_of(module, x)
    torch.manual_seed(1)
    torch.testing.assert_close(sampled, output_of(module.train(), x))


@any_torchs
def test_no_part_of_a_torch_module_is_left_in_another_mode_by_a_call(make, x):
    module = make().eval()
    with mc_dropout(module, torch_dropout=True):
        module(x)
        assert not any(modes(module))
    assert not any(modes(module))


def test_a_transformer_can_be_sampled_with_a_padding_mask_without_gradients():
    layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.5, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 3, 16), torch.tensor([[False, False, False], [False, False, True]])
    with torch.no_grad(), mc_dropout(encoder, torch_dropout=True):
        samples = [encoder(x, src_key_padding_mask=padding) for _ in range(2)]
    assert not torch.equal(*samples)


class Recorder(nn.Module):
    """Writes down the modes of a model in the middle of its forward pass."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.training)
        return x


def mixed_model():
    return nn.Sequential(
        nn.Linear(16, 16),
        nn.Dropout(0.5),
        Recorder(),
        nn.BatchNorm1d(16),
        VariationalDropout(0.5),
        nn.AlphaDropout(0.5),
    )


@torch_dropout_or_not
@pytest.mark.parametrize("in_training", [True, False])
def test_modes_are_the_same_before_within_and_after(torch_dropout, in_training):
    model = mixed_model().train(in_training)
    model[1].train(not in_training)
    before = modes(model)
    with mc_dropout(model, torch_dropout=torch_dropout):
        assert modes(model) == before
        for _ in range(2):
            model(torch.randn(4, 16))
            assert modes(model) == before
    assert modes(model) == before
    assert model[2].seen == [in_training, in_training]


def test_batch_norm_is_neither_updated_nor_used_in_training_mode():
    model, x = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)).eval(), torch.randn(4, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with mc_dropout(model, torch_dropout=True):
        torch.manual_seed(1)
        output = model(x)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    torch.manual_seed(1)
    torch.testing.assert_close(output, nn.functional.dropout(x, 0.5) / (1 + model[1].eps) ** 0.5)


def what_is_live(model):
    return is_stochastic(model[0], torch.ones(4, 64)), is_stochastic(model[1], torch.ones(4, 64))


@torch_dropout_or_not
@pytest.mark.parametrize(
    ("inner_part", "inner"),
    [("the same", True), ("the same", False), ("torch's", True), ("ours", True), ("ours", False)],
)
def test_contexts_with_and_without_torchs_dropout_nest(torch_dropout, inner_part, inner):
    model, outer = nn.Sequential(nn.Dropout(0.5), VariationalDropout(0.5)).eval(), torch_dropout
    part = {"the same": model, "torch's": model[:1], "ours": model[1:]}[inner_part]
    with mc_dropout(model, torch_dropout=outer):
        with mc_dropout(part, torch_dropout=inner):
            assert what_is_live(model) == (outer or (inner and inner_part != "ours"), True)
            assert modes(model) == [False] * 3
        assert what_is_live(model) == (outer, True)
        assert modes(model) == [False] * 3
    assert what_is_live(model) == (False, False)
    assert not hooks(model)


class Fails(nn.Dropout):
    """Raises when it is called where dropout is live."""

    def forward(self, x):
        if self.training:
            raise KeyError("in forward")
        return x


@pytest.mark.parametrize("contexts", [1, 2])
def test_modes_come_back_when_a_modules_forward_raises(contexts):
    model = nn.Sequential(nn.Dropout(0.5), Fails(), VariationalDropout(0.5)).eval()
    with mc_dropout(model, torch_dropout=True), mc_dropout(model, torch_dropout=contexts == 2):
        for _ in range(2):
            with pytest.raises(KeyError, match="in forward"):
                model(torch.ones(4, 8))
            assert not any(modes(model))
        assert what_is_live(model[::2]) == (True, True)
    assert what_is_live(model[::2]) == (False, False)
    assert not hooks(model)
    assert torch.equal(model(torch.ones(4, 8)), torch.ones(4, 8))


def test_everything_comes_back_when_an_exception_leaves_the_context():
    model = mixed_model().eval()
    with suppress(KeyError), mc_dropout(model, torch_dropout=True):
        model(torch.randn(4, 16))
        raise KeyError
    assert not hooks(model)
    assert not any(modes(model))
    assert not is_stochastic(model, torch.randn(4, 16))


def test_no_hook_is_left_and_a_users_own_is_kept():
    model, calls = mixed_model().eval(), []
    model[1].register_forward_hook(lambda module, args, output: calls.append(module.training))
    before = hooks(model)
    with mc_dropout(model, torch_dropout=True):
        model(torch.randn(4, 16))
    model(torch.randn(4, 16))
    assert hooks(model) == before
    assert len(calls) == 2


@torch_dropout_or_not
def test_the_mode_can_be_changed_within_the_context(torch_dropout):
    model = nn.Sequential(nn.Dropout(0.5), VariationalDropout(0.5)).train()
    with mc_dropout(model, torch_dropout=torch_dropout):
        model.eval()
        assert what_is_live(model) == (torch_dropout, True)
        model.train()
        assert what_is_live(model) == (True, True)
        model.eval()
    assert not any(modes(model))
    assert what_is_live(model) == (False, False)
    with mc_dropout(model, torch_dropout=torch_dropout):
        model.train()
    assert all(modes(model))
    assert what_is_live(model) == (True, True)


def test_a_module_used_twice_in_a_pass_and_registered_twice_is_live_each_time():
    shared = nn.Dropout(0.5)
    model, x = nn.Sequential(shared, nn.Linear(16, 16), shared).eval(), torch.randn(4, 16)
    with mc_dropout(model, torch_dropout=True):
        samples = model(x)
        assert 0 < (samples == 0).float().mean() < 1
        assert is_stochastic(model, x)
    assert not hooks(model)
    assert not any(modes(model))


class Regressor(LightningModule):
    """Samples its predictions in every validation step, while the trainer holds it in eval mode."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(4, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), VariationalDropout(0.5), nn.Linear(16, 1)
        )
        self.model[0].eval()  # frozen by its owner: a trainer has to give this back as well
        self.modes_in_training, self.modes_in_validation, self.stochastic = [], [], []

    def training_step(self, batch):
        self.modes_in_training.append(modes(self))
        self.stochastic.append(("training", is_stochastic(self.model[1], batch), is_stochastic(self.model[3], batch)))
        return self.model(batch).square().mean()

    def validation_step(self, batch):
        counted = self.model[2].num_batches_tracked.clone()
        plain = is_stochastic(self.model, batch)
        with mc_dropout(self, torch_dropout=True):
            self.modes_in_validation.append(modes(self))
            x = torch.ones(len(batch), 16)
            sampled = is_stochastic(self.model[1], x) and is_stochastic(self.model[3], x)
            assert is_stochastic(self.model, batch)
        assert not is_stochastic(self.model, batch)
        assert torch.equal(self.model[2].num_batches_tracked, counted)
        self.stochastic.append(("validation", plain, sampled))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.randn(16, 4), batch_size=8)

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lightning_trainers_bookkeeping_of_modes_is_undisturbed(tmp_path):
    module = Regressor()
    before = modes(module)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    assert modes(module) == before
    trainer.validate(module, verbose=False)
    assert modes(module) == before
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module)

    assert module.modes_in_training == [before] * (3 * 2)
    assert len(module.modes_in_validation) == 2 * 1 + (3 + 1) * 2
    assert not any(any(seen) for seen in module.modes_in_validation)
    assert set(module.stochastic) == {("training", True, True), ("validation", False, True)}
    assert not hooks(module)
    assert not is_stochastic(module.eval().model, torch.randn(8, 4))


@pytest.mark.parametrize("module", [nn.Dropout(0.0), nn.LSTM(3, 4), nn.MultiheadAttention(4, 2)])
def test_dropout_of_torch_with_p_0_is_nothing_to_sample(module):
    with pytest.raises(ValueError, match="nothing to sample"), mc_dropout(module, torch_dropout=True):
        pass


def test_nested_tensors_of_a_transformer_are_allowed_again_behind_the_context():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True), 1)
    before = encoder.use_nested_tensor
    with mc_dropout(encoder, torch_dropout=True):
        assert not encoder.use_nested_tensor
    assert before
    assert encoder.use_nested_tensor


def test_contexts_may_end_in_another_order_than_they_began():
    gru = VariationalGRU(3, 16, recurrent_dropout=0.5).eval()
    one, other = mc_dropout(gru), mc_dropout(gru)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert gru.dropout_is_live
    other.__exit__(None, None, None)
    assert not gru.dropout_is_live


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_made_within_the_context_is_not_in_it(copied):
    gru = VariationalGRU(3, 16, recurrent_dropout=0.5).eval()
    with mc_dropout(gru):
        assert not copied(gru).dropout_is_live
        assert gru.dropout_is_live


def test_dropout_of_torch_inside_compiled_code_is_refused_because_it_would_stay_off():
    compiled = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), backend="eager")
    with pytest.raises(ValueError, match="no effect on compiled code"), mc_dropout(compiled, torch_dropout=True):
        pass
