"""Every argument of Lightning's Trainer does what it does in plain Lightning and nothing else, or is refused by name.

The tables name all arguments: one that Lightning adds makes the first test fail.
"""

import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_modules import LanguageModel, SentimentRegressor
from training.checkpoints import checkpoints
from training.recorder import recorder_of
from training.trainer import Trainer

DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}
KINDS = ("language model", "regressor")
TIMINGS = ("seconds", "words_per_s")
BASE = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

NEUTRAL: list[dict[str, Any]] = [
    {"accelerator": "cpu"},
    {"strategy": "auto"},
    {"devices": "auto"},
    {"num_nodes": 1},
    {"precision": "32-true"},
    {"logger": True, "log_every_n_steps": 1},
    {"callbacks": None},
    {"fast_dev_run": False},
    {"max_epochs": 2},
    {"min_epochs": 1, "min_steps": 1},
    {"max_time": {"hours": 1}},
    {"limit_train_batches": 1.0, "limit_val_batches": 1.0, "limit_test_batches": 1, "limit_predict_batches": 1},
    {"overfit_batches": 0.0},
    {"val_check_interval": 1.0},
    {"num_sanity_val_steps": 2},
    {"num_sanity_val_steps": -1},
    {"enable_checkpointing": True},
    {"enable_progress_bar": True},
    {"enable_model_summary": True},
    {"accumulate_grad_batches": 1},
    {"gradient_clip_val": None, "gradient_clip_algorithm": None},
    {"deterministic": True},
    {"deterministic": "warn"},
    {"benchmark": True},
    {"inference_mode": False},
    {"use_distributed_sampler": False},
    {"profiler": "simple"},
    {"detect_anomaly": True},
    {"plugins": []},
    {"sync_batchnorm": True},
    {"reload_dataloaders_every_n_epochs": 1},
    {"enable_autolog_hparams": False},
    {"model_registry": None},
]
"""Arguments that leave parameters and curve alone, bit for bit."""

AS_PLAIN: list[dict[str, Any]] = [
    {"precision": "64-true"},
    {"precision": "bf16-mixed"},
    {"precision": "16-mixed"},  # which Lightning makes bf16-mixed on a CPU
    {"gradient_clip_val": 0.1},
    {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    {"max_epochs": 1},
    {"max_epochs": -1, "max_steps": 4},
    {"max_time": timedelta(0)},
    {"limit_train_batches": 2},
    {"limit_train_batches": 0.5},
    {"limit_val_batches": 0},
    {"limit_val_batches": 1},
    {"val_check_interval": 0.5},
    {"val_check_interval": 2},
    {"val_check_interval": 4, "check_val_every_n_epoch": None},
    {"check_val_every_n_epoch": 2, "max_epochs": 3},
    {"fast_dev_run": True},
    {"barebones": True},
]
"""Arguments that change training or its curve, as they do with Lightning's own Trainer."""


def case(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


class Fitted(NamedTuple):
    steps: int
    parameters: torch.Tensor
    curve: list[dict[str, float]]


Fit = Callable[..., Fitted]


@pytest.fixture
def fit(streams: Any, reviews: Any, tmp_path: Path) -> Fit:
    def run(
        kind: str, trainer_class: type[L.Trainer] = Trainer, ckpt_path: Path | None = None, **options: Any
    ) -> Fitted:
        L.seed_everything(1, verbose=False)
        model: Any
        if kind == "language model":
            model, data = LanguageModel(11, 6, epoch_start="validation", **DROPOUT), streams(train_eval_windows=1)
        else:
            model = SentimentRegressor(30, embedding_size=7, hidden_size=5, learning_rate=0.01, **DROPOUT)
            data = reviews(num_train=39, validation=7)
        silent = {} if "barebones" in options else BASE  # which refuses that more is switched off
        kept = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "default_root_dir": tmp_path}
        trainer = trainer_class(**kept | silent | options)
        recorder = recorder_of(trainer)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        parameters = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        curve = [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in recorder.curve]
        return Fitted(trainer.global_step, parameters, curve)

    return run


def test_every_argument_of_lightnings_trainer_is_in_a_table() -> None:
    named = {name for options in (*NEUTRAL, *AS_PLAIN) for name in options}
    assert named | {"self", "default_root_dir"} == set(inspect.signature(L.Trainer.__init__).parameters)


@pytest.mark.parametrize("options", NEUTRAL, ids=case)
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_that_is_not_about_training_changes_no_number(
    kind: str, options: dict[str, Any], fit: Fit, usual: dict[str, Fitted]
) -> None:
    if kind not in usual:
        usual[kind] = fit(kind)
    fitted = fit(kind, **options)
    assert fitted.steps == usual[kind].steps
    assert torch.equal(fitted.parameters, usual[kind].parameters)
    assert fitted.curve == usual[kind].curve


@pytest.fixture(scope="module")
def usual() -> dict[str, Fitted]:
    """A run of each kind without options, made when it is first needed."""
    return {}


@pytest.mark.parametrize("options", AS_PLAIN, ids=case)
@pytest.mark.parametrize("kind", KINDS)
def test_an_option_about_training_does_what_it_does_in_plain_lightning(
    kind: str, options: dict[str, Any], fit: Fit
) -> None:
    ours, plain = fit(kind, **options), fit(kind, L.Trainer, **options)
    assert ours.steps == plain.steps
    assert torch.equal(ours.parameters, plain.parameters)
    assert ours.curve == plain.curve


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"max_epochs": 1}, 1, (3, 5)),
        ({"max_epochs": -1, "max_steps": 4}, (2, 1), (4, 4)),
        ({"max_time": timedelta(0)}, 0, (0, 0)),
        ({"limit_train_batches": 2}, 2, (4, 4)),
        ({"limit_train_batches": 0.5}, 2, (2, 4)),
        ({"fast_dev_run": True}, 1, (1, 1)),
        ({"fast_dev_run": 2}, 1, (2, 2)),
    ],
    ids=lambda value: case(value) if isinstance(value, dict) else "",
)
def test_what_limits_training_leaves_as_many_epochs_and_steps_as_it_says(
    options: dict[str, Any], epochs: Any, steps: tuple[int, int], kind: str, fit: Fit
) -> None:
    fitted = fit(kind, **options)
    which = KINDS.index(kind)
    assert fitted.steps == steps[which]
    assert len(fitted.curve) == (epochs[which] if isinstance(epochs, tuple) else epochs)


@pytest.mark.parametrize("kind", KINDS)
def test_barebones_trains_the_same_parameters_and_measures_nothing(kind: str, fit: Fit) -> None:
    bare = fit(kind, barebones=True)
    assert torch.equal(bare.parameters, fit(kind).parameters)
    assert bare.curve == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_without_validation_has_no_metric_of_validation_and_is_not_the_best(
    kind: str, fit: Fit, tmp_path: Path
) -> None:
    monitor = "valid_ppl" if kind == "language model" else "test_rmse"
    folder = tmp_path / "checkpoints"
    kept = checkpoints(folder, monitor)
    fitted = fit(kind, max_epochs=3, check_val_every_n_epoch=2, enable_checkpointing=True, callbacks=kept)
    assert [monitor in entry for entry in fitted.curve] == [False, True, False]
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2, "the last epoch is saved"
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 1
    none = tmp_path / "none"
    fit(kind, limit_val_batches=0, enable_checkpointing=True, callbacks=checkpoints(none, monitor))
    assert sorted(file.name for file in none.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_ones_own_may_monitor_a_metric_that_only_some_epochs_have(
    kind: str, fit: Fit, tmp_path: Path
) -> None:
    monitor = "valid_ppl" if kind == "language model" else "valid_rmse"
    own = ModelCheckpoint(tmp_path, filename="own", monitor=monitor, save_on_train_epoch_end=True)
    fit(kind, max_epochs=3, check_val_every_n_epoch=2, enable_checkpointing=True, callbacks=[own])
    assert torch.load(tmp_path / "own.ckpt", weights_only=True)["epoch"] == 1


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer_class", [Trainer, L.Trainer])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "bf16-true"},
            r"trainer\.precision=bf16-true would round ratings and metrics, too: choose 32-true",
        ),
        ({"precision": "16-true"}, r"trainer\.precision=16-true would round ratings and metrics, too: choose"),
        ({"callbacks": [ModelPruning("l1_unstructured", amount=0.1)]}, "callback ModelPruning is not supported"),
        ({"callbacks": [EarlyStopping("valid_pp")]}, "EarlyStopping monitors 'valid_pp', which is not measured; there"),
        (
            {"callbacks": [ModelCheckpoint(monitor="loss")], "enable_checkpointing": True},
            "ModelCheckpoint monitors 'loss', which is not measured; there are: gradient_norm, learning_rate, t",
        ),
    ],
    ids=["bf16-true", "16-true", "pruning", "early stopping", "checkpoint"],
)
def test_what_would_train_or_measure_wrongly_is_refused_by_name_before_training(
    options: dict[str, Any], message: str, kind: str, trainer_class: type[L.Trainer], fit: Fit, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(kind, trainer_class, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_of_validation_is_refused_where_nothing_is_validated(fit: Fit) -> None:
    with pytest.raises(ValueError, match="monitors 'valid_ppl', which is not measured; there are: gradient_norm, lear"):
        fit("language model", limit_val_batches=0, callbacks=[EarlyStopping("valid_ppl")])


class Logs(L.Callback):
    """Logs a metric of its own."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("mine", float(trainer.current_epoch))


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_validation_are_those_that_a_curve_has(kind: str, fit: Fit) -> None:
    with pytest.raises(ValueError, match="which is not measured; there are: ") as error:
        fit(kind, callbacks=[EarlyStopping("absent")])
    named = str(error.value).partition("there are: ")[2].split(", ")
    assert set(named) - {"words_per_s"} == fit(kind).curve[-1].keys() - {"epoch"}


def test_a_metric_of_ones_own_callback_can_be_monitored(fit: Fit) -> None:
    fitted = fit("language model", max_epochs=5, callbacks=[Logs(), EarlyStopping("mine", patience=1)])
    assert [entry["mine"] for entry in fitted.curve] == [0.0, 1.0]


def test_early_stopping_that_need_not_find_its_metric_is_left_alone(fit: Fit) -> None:
    assert len(fit("language model", callbacks=[EarlyStopping("absent", strict=False)]).curve) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_rate_is_monitored_with_a_logger_and_refused_without(kind: str, fit: Fit) -> None:
    assert len(fit(kind, logger=True, callbacks=[LearningRateMonitor()]).curve) == 2
    with pytest.raises(MisconfigurationException, match="LearningRateMonitor"):
        fit(kind, callbacks=[LearningRateMonitor()])
    with pytest.raises(MisconfigurationException, match="DeviceStatsMonitor"):
        fit(kind, callbacks=[DeviceStatsMonitor()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "callback",
    [
        lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
        EMAWeightAveraging,
        lambda: LearningRateFinder(num_training_steps=5),
        lambda: BatchSizeFinder(max_trials=1),
    ],
    ids=["SWA", "EMA", "learning rate", "batch size"],
)
def test_a_callback_that_changes_training_does_what_it_does_in_plain_lightning(
    callback: Callable[[], L.Callback], kind: str, fit: Fit
) -> None:
    ours, plain = (fit(kind, trainer_class, callbacks=[callback()]) for trainer_class in (Trainer, L.Trainer))
    assert torch.equal(ours.parameters, plain.parameters)
    assert ours.curve == plain.curve


def test_a_strategy_that_divides_the_parameters_is_refused() -> None:
    model: Any = LanguageModel(11, 6)
    model._trainer = SimpleNamespace(precision="32-true", strategy=FSDPStrategy())  # a trainer with it needs GPUs
    with pytest.raises(ValueError, match=r"trainer\.strategy must be auto or ddp, got FSDPStrategy"):
        model.setup("fit")


@pytest.mark.parametrize("kind", KINDS)
def test_lightnings_own_division_of_batches_among_processes_is_refused(kind: str, streams: Any, reviews: Any) -> None:
    """It would deal out once more what the data module has dealt out."""
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    model: Any = LanguageModel(11, 6) if kind == "language model" else SentimentRegressor(30)
    model._trainer = trainer
    trainer.datamodule = streams() if kind == "language model" else reviews()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"trainer\.use_distributed_sampler must be false"):
        model.setup("validate")


def test_another_writer_of_checkpoints_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.plugins must not have a CheckpointIO"):
        Trainer(accelerator="cpu", logger=False, plugins=[TorchCheckpointIO()])


# --- reproduce --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_dev_run": True}, r"trainer\.fast_dev_run must be False for reproduce, got True"),
        ({"max_epochs": -1}, r"reproduce needs a number of epochs: trainer\.max_epochs is -1"),
        ({"max_epochs": None}, r"reproduce needs a number of epochs: trainer\.max_epochs is None"),
        ({"max_steps": 5}, r"trainer\.max_steps must be -1 for reproduce, got 5"),
        ({"max_time": {"hours": 1}}, r"leave out trainer\.max_time and the callback Timer"),
        ({"callbacks": [Timer(timedelta(hours=1))]}, r"leave out trainer\.max_time and the callback Timer"),
        ({"overfit_batches": 2}, r"trainer\.overfit_batches must be 0\.0 for reproduce, got 2"),
        ({"val_check_interval": 0.5}, r"trainer\.val_check_interval must be 1\.0 for reproduce, got 0\.5"),
        ({"val_check_interval": 1}, r"trainer\.val_check_interval must be 1\.0 for reproduce, got 1:"),
        ({"check_val_every_n_epoch": 2}, r"trainer\.check_val_every_n_epoch must be 1 for reproduce, got 2"),
        ({"limit_val_batches": 0}, r"trainer\.limit_val_batches must be 1\.0 for reproduce, got 0"),
        ({"limit_test_batches": 1}, r"trainer\.limit_test_batches must be 1\.0 for reproduce, got 1"),
        ({"enable_checkpointing": False}, r"leave out trainer\.enable_checkpointing and barebones"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "callback StochasticWeightAveraging is not for reproduce"),
        ({"callbacks": [LearningRateFinder()]}, "the callback LearningRateFinder is not for reproduce"),
        ({"callbacks": [BatchSizeFinder()]}, "the callback BatchSizeFinder is not for reproduce"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_result_of_less_than_whole_epochs_or_of_more_than_its_configuration_says_is_refused(
    options: dict[str, Any], message: str, trainer: Callable[..., Trainer], streams: Any, tmp_path: Path
) -> None:
    kept = [] if "enable_checkpointing" in options else checkpoints(tmp_path / "run/checkpoints", "valid_ppl")
    options = {"max_epochs": 2, "fast_dev_run": False} | options
    callbacks = [*kept, *options.pop("callbacks", ())]
    with pytest.raises(ValueError, match=message):
        trainer(*callbacks, **options).reproduce(LanguageModel(11, 6), streams(), tmp_path / "a/b/c/seed0.json")
    assert list(tmp_path.iterdir()) == []


# --- resumed in plain Lightning ---------------------------------------------------------------------------------------


class PowerCut(L.Callback):
    """Ends a run after a batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = (epoch, batch)

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if (trainer.current_epoch, batch_index) == self.place:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_run_in_plain_lightning_is_resumed_from_mid_epoch_bit_for_bit(
    precision: str, kind: str, fit: Fit, tmp_path: Path
) -> None:
    def run(*callbacks: L.Callback, **options: Any) -> Fitted:
        saved = ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_train_steps=1)
        options = {"precision": precision, "enable_checkpointing": True, "callbacks": [saved, *callbacks]} | options
        return fit(kind, L.Trainer, **options)

    whole = run()
    last = tmp_path / "saved/last.ckpt"
    last.unlink()
    with pytest.raises(RuntimeError, match="power cut"):
        run(PowerCut(1, 1))
    resumed = run(ckpt_path=last)
    assert resumed.steps == whole.steps
    assert torch.equal(resumed.parameters, whole.parameters)
    assert resumed.curve == whole.curve


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saved", ["by step", "by validation"])
def test_a_checkpoint_between_the_last_batch_and_the_end_of_an_epoch_is_not_resumed(
    saved: str, kind: str, fit: Fit, tmp_path: Path
) -> None:
    monitor = "valid_ppl" if kind == "language model" else "valid_rmse"
    own = {
        "by step": ModelCheckpoint(tmp_path, filename="own", every_n_train_steps=3 if kind == KINDS[0] else 5),
        "by validation": ModelCheckpoint(tmp_path, filename="own", monitor=monitor, save_on_train_epoch_end=False),
    }
    options = {"max_epochs": 1, "enable_checkpointing": True}
    fit(kind, L.Trainer, callbacks=[own[saved]], **options)
    with pytest.raises(ValueError, match="saved after the last batch of epoch 1 and before its end"):
        fit(kind, L.Trainer, ckpt_path=tmp_path / "own.ckpt")
