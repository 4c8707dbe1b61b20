"""A run from start to result file: `Trainer.reproduce`, checkpoints and resumption."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from datamodules import PlainText
from experiments.files import write_atomically
from lightning_modules import LanguageModel, SentimentRegressor
from lightning_modules.loading import read_checkpoint
from training import provenance as module
from training.checkpoints import checkpoints
from training.recorder import Recorder, duration, recorder_of

FITTING: Any = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
FITTING.datamodule = PlainText("a.txt", vocab_size=9)
"""A trainer that is about to train."""

TIMINGS = {"seconds", "words_per_s"}
DROPOUT = {"word_dropout": 0.3, "input_dropout": 0.4, "recurrent_dropout": 0.35, "output_dropout": 0.45}


class Interrupt(L.Callback):
    """Kills the run in the middle of an epoch, after a batch that was not saved, as a power cut would."""

    def __init__(self, epoch: int, batch: int = 1) -> None:
        self.epoch = epoch
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        if trainer.current_epoch == self.epoch - 1 and batch_index == self.batch:
            raise RuntimeError("power cut")


class Trained(L.Callback):
    """Keeps which batches were trained on, and the final parameters."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.parameters = torch.empty(0)

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_index: int) -> None:
        self.batches.append((trainer.current_epoch, batch_index))

    def on_train_end(self, trainer: Any, model: Any) -> None:
        self.parameters = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "results" / "ptb" / "tiny" / "some_row" / "seed3.json"


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, result: Path, streams: Any, trainer: Any) -> Run:
    """Reproduce a small language model as main.py does, in a process of its own: seed, model, trainer."""

    def reproduce(
        epochs: int | None = None,
        *callbacks: L.Callback,
        max_epochs: int = 3,
        folder: str = "run",
        seed: int = 3,
        model: Any = None,
        data: Any = None,
        tested_weights: str = "last",
        to: Path = result,
        trainer_options: dict[str, Any] | None = None,
        data_options: dict[str, Any] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        L.seed_everything(seed, verbose=False)
        if model is None:
            options = {"learning_rate_decay": 1.5, "constant_epochs": 1, "mc_samples": 3} | DROPOUT | changes
            model = LanguageModel(11, options.pop("hidden_size", 6), **options)
        a_trainer = trainer(
            *checkpoints(tmp_path / folder / "checkpoints", model.monitor),
            *callbacks,
            max_epochs=max_epochs,
            tested_weights=tested_weights,
            default_root_dir=tmp_path / folder,
            **{"gradient_clip_val": 1.0} | (trainer_options or {}),
        )
        a_trainer.run_config = {"model": {"init_args": {"hidden_size": 6}}}
        if data_options:
            a_trainer.run_config["data"] = {"init_args": data_options}
        a_trainer.reproduce(model, data or streams(), to, epochs)
        return json.loads(to.read_text())

    return reproduce


def without_timings(report: dict[str, Any]) -> dict[str, Any]:
    def clean(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in TIMINGS}

    curve = [clean(entry) for entry in report["curve"]]
    return report | {"curve": curve, "metrics": clean(report["metrics"]), "provenance": None}


# --- the result file --------------------------------------------------------------------------------------------------


def test_every_test_of_the_data_is_in_the_result(run: Run, streams: Any) -> None:
    metrics = run(1, data=streams(sliding_test=True), mc_samples=2)["metrics"]
    assert {"test_ppl", "test_ppl_mc", "test_ppl_sliding"} <= metrics.keys()


def test_result_says_what_was_run_and_what_came_out(run: Run) -> None:
    report = run()
    assert list(report) == [
        "experiment",
        "group",
        "row",
        "seed",
        "epochs",
        "planned_epochs",
        "tested_epoch",
        "parameters",
        "metrics",
        "curve",
        "config",
        "provenance",
    ]
    assert [report[key] for key in ("experiment", "group", "row", "seed")] == ["ptb", "tiny", "some_row", 3]
    assert [report[key] for key in ("epochs", "planned_epochs", "tested_epoch")] == [3, 3, 3]
    assert report["parameters"] == 2 * 11 * 6 + 11 + 2 * (8 * 36 + 8 * 6)
    assert report["config"] == {"model": {"init_args": {"hidden_size": 6}}}


def test_curve_has_an_entry_for_every_epoch_and_the_metrics_are_those_of_the_last_one(run: Run) -> None:
    report = run()
    assert [entry["epoch"] for entry in report["curve"]] == [1, 2, 3]
    for entry in report["curve"]:
        assert {
            "train_ppl", "valid_ppl", "valid_ppl_lua", "gradient_norm", "learning_rate", "words_per_s", "seconds"
        } <= entry.keys()  # fmt: skip
        assert entry["words_per_s"] > 0
        assert entry["seconds"] > 0
    metrics = report["metrics"]
    assert metrics.items() >= {k: v for k, v in report["curve"][-1].items() if k != "epoch"}.items()
    assert metrics.keys() - report["curve"][-1].keys() == {
        "test_ppl", "test_ppl_mc_1", "test_ppl_mc_2", "test_ppl_mc", "mc_samples"
    }  # fmt: skip
    assert "epoch" not in metrics


def test_provenance_names_commit_hardware_versions_and_time(run: Run) -> None:
    report = run()
    provenance = report["provenance"]
    named = {"commit", "dirty", "date", "hardware", "versions", "weights_sha256", "wall_time_s", "resumed"}
    assert provenance.keys() == named
    assert len(provenance["commit"]) == 40
    assert isinstance(provenance["dirty"], bool)
    assert provenance["hardware"]["cpu"]
    assert provenance["hardware"]["cores"] >= 1
    assert torch.__version__.startswith(provenance["versions"]["torch"].split("+")[0])
    assert provenance["versions"]["lightning"] == L.__version__
    assert provenance["wall_time_s"] > sum(entry["seconds"] for entry in report["curve"])
    assert provenance["resumed"] == []


OF_A_CURVE = {
    "train_loss",
    "train_mse",
    "train_rmse",
    "test_rmse",
    "test_rmse_review",
    "gradient_norm",
    "learning_rate",
}
OF_A_TEST = {"test_rmse_mc", "test_rmse_review_mc", "train_rmse_all", "constant_rmse", "mc_samples"}
PREDICTIVE = {"tau", "test_log_likelihood", "test_coverage_50", "test_coverage_90"}
OF_VALIDATION = {"valid_rmse_mc", *PREDICTIVE, *(f"{name}_mc" for name in PREDICTIVE)}


@pytest.mark.parametrize("validation", [0, 7])
def test_result_of_a_sentiment_run_has_the_metrics_of_all_its_loaders(validation: int, run: Run, reviews: Any) -> None:
    model = SentimentRegressor(30, hidden_size=5, embedding_size=7, mc_samples=2, **DROPOUT)
    report = run(2, model=model, data=reviews(validation=validation))
    of_validation = OF_VALIDATION if validation else set()
    of_curve = OF_A_CURVE | ({"valid_rmse"} if validation else set())
    assert [entry.keys() - TIMINGS - {"epoch"} for entry in report["curve"]] == [of_curve] * 2
    assert report["metrics"].keys() - TIMINGS == of_curve | OF_A_TEST | of_validation
    for name in of_curve & {"test_rmse", "test_rmse_review", "valid_rmse"}:
        assert report["metrics"][name] == pytest.approx(report["curve"][-1][name], rel=1e-6)
    assert report["epochs"] == 2


class Diverge(L.Callback):
    """Makes the weights undefined in the second epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            with torch.no_grad():
                pl_module.softmax.bias[0] = math.nan


@pytest.mark.parametrize(("tested_weights", "epoch"), [("last", 3), ("best", 1)])
def test_a_diverged_run_shows_it_in_strictly_valid_json(
    tested_weights: str, epoch: int, run: Run, result: Path
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    run(None, Diverge(), tested_weights=tested_weights)
    report = json.loads(result.read_text(), parse_constant=refuse)
    assert [entry["valid_ppl"] is None for entry in report["curve"]] == [False, True, True]
    assert [entry["train_ppl"] is None for entry in report["curve"]] == [False, True, True]
    assert report["tested_epoch"] == epoch
    assert (report["metrics"]["test_ppl"] is None) == (tested_weights == "last")
    assert (report["metrics"]["test_ppl_mc"] is None) == (tested_weights == "last")


def test_no_part_of_a_file_is_left_beside_the_result(run: Run, result: Path) -> None:
    run(1)
    assert list(result.parent.iterdir()) == [result]


def test_a_failed_write_leaves_the_former_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "result.json"
    write_atomically(file, "former")
    assert file.read_text() == "former"

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(content[:2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, "new")
    assert file.read_text() == "former"


def test_a_run_that_fails_leaves_no_result(run: Run, result: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        run(3, Interrupt(epoch=2))
    assert not result.exists()


def test_a_run_outside_a_git_repository_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=128, stdout=""))
    provenance = module.provenance(torch.device("cpu"), 1)
    assert provenance["commit"] is None
    assert provenance["dirty"] is None


# --- shortened and resumed runs ---------------------------------------------------------------------------------------


def test_a_shortened_run_says_so(run: Run) -> None:
    report = run(1)
    assert (report["epochs"], report["planned_epochs"], report["tested_epoch"]) == (1, 3, 1)


def test_more_epochs_than_planned_are_not_run(run: Run) -> None:
    report = run(9)
    assert (report["epochs"], report["planned_epochs"]) == (3, 3)


@pytest.mark.parametrize("epochs", [0, -2])
def test_a_run_of_no_epochs_is_refused(epochs: int, run: Run) -> None:
    with pytest.raises(ValueError, match=f"epochs must be at least 1, got {epochs}"):
        run(epochs)


def test_the_schedule_of_a_shortened_run_is_that_of_the_whole(run: Run) -> None:
    assert without_timings(run(2, folder="short"))["curve"] == without_timings(run(3, folder="long"))["curve"][:2]


def test_same_seed_gives_the_same_run_and_another_seed_another(run: Run) -> None:
    first, second = run(2, folder="first"), run(2, folder="second")
    assert without_timings(first) == without_timings(second)
    assert run(2, folder="third", seed=4)["curve"][0]["valid_ppl"] != first["curve"][0]["valid_ppl"]


def test_a_prolonged_run_equals_one_in_one_go(run: Run) -> None:
    at_once = run(3, folder="at_once")
    run(1, folder="in_parts")
    in_parts = run(3, folder="in_parts")
    assert without_timings(in_parts) == without_timings(at_once)


@pytest.mark.parametrize("epoch_start", ["zeros", "validation"])
def test_a_run_killed_within_an_epoch_and_resumed_equals_one_in_one_go(run: Run, epoch_start: str) -> None:
    at_once = run(folder="at_once", epoch_start=epoch_start)
    for epoch in (2, 3):
        with pytest.raises(RuntimeError, match="power cut"):
            run(None, Interrupt(epoch), folder="in_parts", epoch_start=epoch_start)
    in_parts = run(folder="in_parts", epoch_start=epoch_start)
    assert without_timings(in_parts) == without_timings(at_once)
    assert len(in_parts["provenance"]["resumed"]) == 2


EVERY_BATCH = {"checkpoint_minutes": 0}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "trainer_options"),
    [
        ({"epoch_start": "validation", "word_masks": "token"}, {}),
        ({"cell": "gru", "time_masks": "fresh", "carry_state": False}, {}),
        ({"weight_decay": 1e-2, "gate_masks": "untied"}, {"precision": "64-true"}),
        ({}, {"limit_train_batches": 4}),
    ],
    ids=["from validation", "no state", "64-true", "limited"],
)
def test_a_run_saved_within_an_epoch_goes_on_from_there_and_ends_as_one_in_one_go(
    options: dict[str, Any], trainer_options: dict[str, Any], batch: int, run: Run, streams: Any
) -> None:
    def language_model(folder: str, *callbacks: L.Callback) -> dict[str, Any]:
        data = streams(sizes=(183, 61, 23), train_eval_windows=2)
        return run(None, *callbacks, folder=folder, data=data, trainer_options=EVERY_BATCH | trainer_options, **options)

    whole, part = Trained(), Trained()
    at_once = language_model("at_once", whole)
    for epoch in (1, 3):
        with pytest.raises(RuntimeError, match="power cut"):
            language_model("in_parts", part, Interrupt(epoch, batch))
    in_parts = language_model("in_parts", part)
    assert without_timings(in_parts) == without_timings(at_once)
    assert torch.equal(part.parameters, whole.parameters)
    assert len(part.batches) == len(whole.batches) + 2
    assert all(entry["seconds"] > 0 for entry in in_parts["curve"])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_sentiment_run_saved_within_an_epoch_goes_on_from_there_and_ends_as_one_in_one_go(
    accumulated: int, run: Run, reviews: Any
) -> None:
    def sentiment(folder: str, *callbacks: L.Callback) -> dict[str, Any]:
        L.seed_everything(5, verbose=False)
        model = SentimentRegressor(30, hidden_size=5, embedding_size=7, l2=1e-3, learning_rate=0.01, **DROPOUT)
        options = EVERY_BATCH | {"accumulate_grad_batches": accumulated}
        return run(None, *callbacks, folder=folder, model=model, data=reviews(num_train=39), trainer_options=options)

    whole, part = Trained(), Trained()
    at_once = sentiment("at_once", whole)
    for epoch, batch in ((1, 2 * accumulated), (2, 3 * accumulated)):
        with pytest.raises(RuntimeError, match="power cut"):
            sentiment("in_parts", part, Interrupt(epoch, batch))
    assert without_timings(sentiment("in_parts", part)) == without_timings(at_once)
    assert torch.equal(part.parameters, whole.parameters)
    assert len(part.batches) == len(whole.batches) + 2


AS_IN_2015 = {"gate_activation": "hard_sigmoid", "dropout_scale": "test", "word_mask_sharing": "batch"}


@pytest.mark.parametrize("options", [{}, {"mask_pads": True}, AS_IN_2015], ids=["modern", "pads skipped", "2015"])
@pytest.mark.parametrize("mc_every", [0, 2])
def test_a_killed_sentiment_run_sees_the_same_shuffled_batches_and_masks_when_resumed(
    mc_every: int, options: dict[str, Any], run: Run, reviews: Any
) -> None:
    def sentiment(folder: str, *callbacks: L.Callback) -> dict[str, Any]:
        L.seed_everything(5, verbose=False)
        model = SentimentRegressor(
            30, hidden_size=5, embedding_size=7, mc_samples=2, mc_every=mc_every, learning_rate=0.01,
            **DROPOUT | options,
        )  # fmt: skip
        return run(None, *callbacks, folder=folder, model=model, data=reviews(validation=7, pads=4))

    at_once = sentiment("at_once")
    for epoch in (2, 3):
        with pytest.raises(RuntimeError, match="power cut"):
            sentiment("in_parts", Interrupt(epoch))
    assert without_timings(sentiment("in_parts")) == without_timings(at_once)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"penalty": "as_executed"}, "penalty: all in the checkpoint, as_executed here"),
        ({"weight_decay": 0.1}, r"weight_decay: 0\.0 in the checkpoint, 0\.1 here"),
        ({"dropout_scale": "test"}, "dropout_scale: training in the checkpoint, test here"),
        ({"gate_activation": "hard_sigmoid"}, "gate_activation: sigmoid in the checkpoint, hard_sigmoid here"),
        ({"word_mask_sharing": "batch"}, "word_mask_sharing: sequence in the checkpoint, batch here"),
        ({"mask_pads": True}, "mask_pads: False in the checkpoint, True here"),
    ],
)
def test_a_sentiment_run_is_not_resumed_as_another(changed: dict[str, Any], named: str, run: Run, reviews: Any) -> None:
    def sentiment(**changes: Any) -> dict[str, Any]:
        model = SentimentRegressor(30, hidden_size=5, embedding_size=7, **changes)
        return run(1, model=model, data=reviews())

    sentiment()
    with pytest.raises(ValueError, match=named):
        sentiment(**changed)


def test_a_checkpoint_older_than_an_option_is_resumed_only_with_its_default(
    run: Run, reviews: Any, tmp_path: Path
) -> None:
    def sentiment(epochs: int, **changes: Any) -> dict[str, Any]:
        model = SentimentRegressor(30, hidden_size=5, embedding_size=7, **changes)
        return run(epochs, model=model, data=reviews())

    sentiment(1)
    [file] = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["hyper_parameters"]["word_mask_sharing"]
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match="word_mask_sharing: sequence in the checkpoint, batch here"):
        sentiment(2, word_mask_sharing="batch")
    assert sentiment(2)["epochs"] == 2


def test_networks_during_training_and_in_the_test_may_be_chosen_anew_in_a_resumed_run(run: Run, reviews: Any) -> None:
    for epochs, samples in ((1, {}), (2, {"mc_every": 1, "mc_epoch_samples": 3, "mc_samples": 4})):
        model = SentimentRegressor(30, hidden_size=5, embedding_size=7, **DROPOUT, **samples)
        report = run(epochs, model=model, data=reviews())
    assert ["test_rmse_mc" in entry for entry in report["curve"]] == [False, True]
    assert report["metrics"]["mc_samples"] == 4


def test_a_run_is_not_resumed_with_another_share_of_reviews_for_validation(run: Run, reviews: Any) -> None:
    def sentiment(share: float) -> None:
        model = SentimentRegressor(30, hidden_size=5, embedding_size=7)
        run(1, model=model, data=reviews(validation=7), data_options={"validation_share": share})

    sentiment(0.1)
    with pytest.raises(ValueError, match=r"validation_share: 0\.1 in the checkpoint, 0\.2 here"):
        sentiment(0.2)


def test_resumption_is_in_the_provenance_and_the_time_is_that_of_all_parts(run: Run) -> None:
    first = run(1)
    second = run(3)
    assert first["provenance"]["resumed"] == []
    [resumed] = second["provenance"]["resumed"]
    assert resumed.keys() == {"commit", "dirty", "date", "hardware", "versions"}
    assert second["provenance"]["date"] == first["provenance"]["date"]
    assert second["provenance"]["date"] <= resumed["date"]
    assert second["curve"][0] == first["curve"][0]
    assert second["provenance"]["wall_time_s"] > sum(entry["seconds"] for entry in second["curve"])


def test_a_finished_run_is_tested_again_without_training(run: Run, result: Path) -> None:
    first = run()
    result.unlink()
    second = run()
    assert second["curve"] == first["curve"]
    assert second["metrics"]["test_ppl"] == first["metrics"]["test_ppl"]


# --- which weights are tested -----------------------------------------------------------------------------------------


class Spoil(L.Callback):
    """Ruins the weights after an epoch's training, so that validation is best before it."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch - 1 and trainer.global_step % 3 == 0:
            with torch.no_grad():
                pl_module.softmax.bias[0] += 50.0


class Aim(L.Callback):
    """Lets the network predict nothing but the mean rating of test, validation and training set, epoch by epoch."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        split = ("test", "validation", "train")[trainer.current_epoch]
        ratings = torch.tensor(self.data.chunks[split]["rating"])
        with torch.no_grad():
            pl_module.output.weight.zero_()
            pl_module.output.bias.fill_((ratings.mean() - pl_module.target_mean) / pl_module.target_std)


def test_by_default_the_last_epochs_weights_are_tested(run: Run) -> None:
    report = run(None, Spoil(epoch=2))
    assert report["tested_epoch"] == 3
    assert report["metrics"]["valid_ppl"] == report["curve"][2]["valid_ppl"]


def test_best_tests_the_epoch_with_the_best_validation_and_keeps_the_whole_curve(run: Run) -> None:
    two = run(1, folder="until_best")
    report = run(None, Spoil(epoch=2), folder="all", tested_weights="best")
    values = [entry["valid_ppl"] for entry in report["curve"]]
    assert len(values) == 3
    assert min(values) == values[0]
    assert report["tested_epoch"] == 1
    assert report["metrics"]["test_ppl"] == two["metrics"]["test_ppl"]
    assert report["metrics"]["valid_ppl"] == values[0]
    assert (report["epochs"], report["planned_epochs"]) == (3, 3)
    assert report["provenance"]["resumed"] == []


@pytest.mark.parametrize(("monitor", "best"), [("test_rmse", 1), ("valid_rmse", 2)])
def test_the_best_epoch_of_a_sentiment_run_is_that_of_the_error_it_monitors(
    monitor: str, best: int, run: Run, reviews: Any
) -> None:
    data = reviews(validation=7)
    model = SentimentRegressor(30, hidden_size=5, embedding_size=7, monitor=monitor)  # type: ignore[arg-type]
    report = run(None, Aim(data), model=model, data=data, tested_weights="best")
    errors = [entry[monitor] for entry in report["curve"]]
    assert len(errors) == 3
    assert min(errors) == errors[best - 1]
    assert report["tested_epoch"] == best
    assert report["metrics"][monitor] == pytest.approx(errors[best - 1], rel=1e-6)


def test_an_epoch_cannot_be_chosen_on_reviews_that_are_not_held_out(run: Run, reviews: Any) -> None:
    model = SentimentRegressor(30, hidden_size=5, embedding_size=7, monitor="valid_rmse")
    with pytest.raises(ValueError, match="needs held-out reviews: set validation_share"):
        run(None, model=model, data=reviews())


def test_best_is_the_best_of_all_parts_of_a_resumed_run(run: Run) -> None:
    at_once = run(None, Spoil(epoch=2), folder="at_once", tested_weights="best")
    run(2, Spoil(epoch=2), folder="in_parts", tested_weights="best")
    in_parts = run(None, folder="in_parts", tested_weights="best")
    assert in_parts["tested_epoch"] == at_once["tested_epoch"] == 1
    assert without_timings(in_parts) == without_timings(at_once)
    assert len(in_parts["provenance"]["resumed"]) == 1


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoint_of_another_size_is_refused_by_the_names_and_shapes_that_differ(run: Run) -> None:
    run(1)
    with pytest.raises(ValueError, match="another model than this LanguageModel") as error:
        run(3, hidden_size=7)
    assert "embedding.weight: [11, 6] in the checkpoint, [11, 7] here" in str(error.value)
    assert "; ..." in str(error.value)


def test_checkpoint_of_another_depth_is_refused_by_the_parameter_that_is_missing(run: Run) -> None:
    run(1)
    with pytest.raises(ValueError, match=r"rnn\.bias_hh_l1: \[24\] in the checkpoint, absent here"):
        run(3, num_layers=1)


def test_checkpoint_of_another_experiment_is_refused(run: Run, reviews: Any) -> None:
    run(1)
    with pytest.raises(ValueError, match="another model than this SentimentRegressor"):
        run(3, model=SentimentRegressor(30, hidden_size=5, embedding_size=7), data=reviews())


def test_a_checkpoint_loads_into_the_same_model_and_has_the_curve(
    run: Run, tmp_path: Path, streams: Any, trainer: Any
) -> None:
    report = run()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    loaded = LanguageModel.load_from_checkpoint(last)
    assert read_checkpoint(last)["curve"] == report["curve"]
    assert loaded.rnn.recurrent_dropout == DROPOUT["recurrent_dropout"]
    [metrics] = trainer().test(loaded, datamodule=streams(), verbose=False)
    assert metrics == {"test_ppl": report["metrics"]["test_ppl"]}


def test_last_checkpoint_is_there_although_validation_got_worse(run: Run, tmp_path: Path) -> None:
    run(None, Spoil(epoch=2))
    folder = tmp_path / "run" / "checkpoints"
    assert {file.name for file in folder.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert torch.load(folder / "best.ckpt")["epoch"] == 0
    assert torch.load(folder / "last.ckpt")["epoch"] == 2
    assert torch.load(folder / "previous.ckpt")["epoch"] == 1


# --- what an epoch leaves ---------------------------------------------------------------------------------------------


def test_every_epoch_prints_one_line_with_its_number_and_perplexities(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "  epoch " in line]
    assert [line.split("  ")[:2] for line in lines] == [
        ["ptb/tiny/some_row seed 3", "epoch 1/2"],
        ["ptb/tiny/some_row seed 3", "epoch 2/2"],
    ]
    assert all("valid_ppl " in line and "words_per_s " in line for line in lines)
    assert lines[0].endswith("about 0 s left")
    assert not lines[-1].endswith("left")


def test_what_training_will_take_is_said_once_and_early(
    run: Run, streams: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=60.0)
    monkeypatch.setattr("training.recorder.time.perf_counter", lambda: next(clock))
    run(2, data=streams(window=5, sizes=(2000, 61, 23)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "evaluation not counted" in line]
    assert len(lines) == 1
    assert lines[0].startswith("ptb/tiny/some_row seed 3  training takes about ")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(20.4, "20 s"), (3540.0, "59 min"), (3600.0, "1 h 0 min"), (93_000.0, "25 h 50 min")]
)
def test_durations_are_in_hours_and_minutes(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_gradient_norm_is_that_before_clipping(streams: Any, trainer: Any, recorder: Any, language_model: Any) -> None:
    model = language_model()
    run = trainer(recorder, max_epochs=1, gradient_clip_val=1e-3)
    run.fit(model, datamodule=streams())
    norm = math.sqrt(sum(g.square().sum().item() for g in recorder.gradients[-1].values()))
    assert norm > 0.1
    assert recorder_of(run).curve[0]["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_random_numbers_are_of_the_seed_and_the_key_alone(language_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0)]
    drawn = {}
    for seed in ("7", "8"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        for key in keys:
            model = language_model()
            drawn[seed, key] = torch.rand(4, generator=model.generator(*key)).tolist()
            torch.manual_seed(len(drawn))
            assert torch.rand(4, generator=model.generator(*key)).tolist() == drawn[seed, key]
    assert len(set(map(tuple, drawn.values()))) == 10


def test_training_does_not_go_on_from_a_run_with_other_hyper_parameters(language_model: Any) -> None:
    before, model = language_model(input_dropout=0.5), language_model(input_dropout=0.25)
    checkpoint = {"hyper_parameters": dict(before.hparams), "curve": [], "provenance": []}
    with pytest.raises(ValueError, match=r"input_dropout: 0\.5 in the checkpoint, 0\.25 here"):
        Recorder().on_load_checkpoint(FITTING, model, checkpoint)


def test_a_checkpoint_from_elsewhere_is_refused(language_model: Any) -> None:
    with pytest.raises(ValueError, match="not written by this repository"):
        language_model().on_load_checkpoint({"state_dict": {}})
    with pytest.raises(ValueError, match="not written by this repository"):
        Recorder().on_load_checkpoint(FITTING, language_model(), {"hyper_parameters": {}})


def test_training_does_not_go_on_from_a_run_on_other_data_or_parts_of_it(language_model: Any) -> None:
    model, before, recorder = language_model(), Recorder(), Recorder()
    before.options = {"batch_size": 20, "limit_train_batches": 100}
    checkpoint = {"hyper_parameters": dict(model.hparams)}
    before.on_save_checkpoint(FITTING, model, checkpoint)
    recorder.options = {"batch_size": 20, "limit_train_batches": None}
    with pytest.raises(ValueError, match="limit_train_batches: 100 in the checkpoint, not given here"):
        recorder.on_load_checkpoint(FITTING, model, checkpoint)
    recorder.options = before.options
    recorder.on_load_checkpoint(FITTING, model, checkpoint)


def test_an_option_newer_than_the_checkpoint_had_its_default(language_model: Any) -> None:
    model, before, recorder = language_model(), Recorder(), Recorder()
    before.options = {"batch_size": 20}
    checkpoint = {"hyper_parameters": dict(model.hparams)}
    before.on_save_checkpoint(FITTING, model, checkpoint)
    recorder.options = {"batch_size": 20, "window": 5, "overfit_batches": 0.0}  # the data's default is 35
    with pytest.raises(ValueError, match=r"options \(window: 35 in the checkpoint, 5 here\): training cannot"):
        recorder.on_load_checkpoint(FITTING, model, checkpoint)
    recorder.options["window"] = 35
    recorder.on_load_checkpoint(FITTING, model, checkpoint)
