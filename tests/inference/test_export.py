"""Models in folders and on the hub."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from datamodules.reader import Reader
from inference.export import describe, push, save
from lightning_modules import LanguageModel, SentimentRegressor, load
from lightning_modules.loading import weights_sha256
from tests import hub_server
from tests.tiny import tiny_run
from tests.training.test_faults import Trap
from variational_rnn import mc_dropout

READER = Reader(("<unk>", "<eos>", *map(str, range(9))), "words", window=5)
RATED = Reader(("<pad>", "<start>", "<unk>", "<unused>", *map(str, range(26))), "words", chunk_length=6)
DROPOUT = {"word_dropout": 0.2, "input_dropout": 0.3, "recurrent_dropout": 0.4, "output_dropout": 0.5}
NAME = "someone/model"
RUN = {"epoch": 2, "date": "2026-01-02T03:04:05", "commit": "0123456789", "dirty": True}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(11, 6, cell="gru", **DROPOUT)
    model.reader = READER
    return model.eval()


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    save(model, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Server]:
    with hub_server.running() as server:
        server.redirect(monkeypatch, tmp_path)
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without_hashes(folder: Path) -> Path:
    """As a folder was that was saved before there were hashes."""
    config = json.loads((folder / "config.json").read_text())
    kept = {name: config[name] for name in ("model", "options", "noise")}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_language_model_comes_back_bit_for_bit(model: LanguageModel, folder: Path) -> None:
    assert sorted(files(folder)) == ["README.md", "config.json", "model.safetensors", "reader.json"]
    loaded = load(folder)
    assert not loaded.training
    assert (dict(loaded.hparams), loaded.reader) == (dict(model.hparams), READER)
    words, masks = torch.randint(11, (7, 3)), model.sample_masks(3)
    assert torch.equal(loaded(words)[0], model(words)[0])
    assert torch.equal(loaded(words, masks=masks)[0], model(words, masks=masks)[0])
    assert not torch.equal(loaded(words, masks=masks)[0], model(words)[0])


@pytest.mark.parametrize("options", [{}, {"gate_activation": "hard_sigmoid", "dropout_scale": "test"}])
def test_a_regressor_comes_back_bit_for_bit_with_its_scale(
    options: dict[str, Any], regressor: Callable[..., SentimentRegressor], tmp_path: Path
) -> None:
    model = regressor(**DROPOUT, **options).eval()
    model.reader = RATED
    model.target_mean.fill_(3.7)
    model.target_std.fill_(0.3)
    model.noise = {"tau": 1.5, "tau_mc": 2.5}
    save(model, tmp_path / "saved")
    words = torch.randint(30, (6, 4))
    masks = model.sample_masks(4, 6)
    loaded = load(tmp_path / "saved")
    assert (loaded.reader, loaded.noise) == (RATED, model.noise)
    assert torch.equal(loaded(words), model(words))
    with mc_dropout(model), mc_dropout(loaded):
        assert torch.equal(loaded(words, masks), model(words, masks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_was_saved_in_half_precision_comes_back_in_its_own_with_the_rounded_values(
    dtype: torch.dtype, tied: bool, tmp_path: Path
) -> None:
    for number, model in enumerate((LanguageModel(5, 3, tie_weights=tied), SentimentRegressor(9))):
        folder = tmp_path / str(number)
        save(model.to(dtype), folder)
        found = load(folder).state_dict()
        plain = type(model)(**{k: v for k, v in model.hparams.items() if not k.startswith("_")}).state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(found[name], value.to(plain[name].dtype)), name
            assert found[name].dtype == plain[name].dtype


def test_what_is_chosen_at_test_time_is_given_when_a_model_is_loaded(folder: Path) -> None:
    assert load(folder, mc_samples=7).mc_samples == 7
    assert load(folder).mc_samples == 0


def test_a_saved_folder_is_plain_files_that_others_may_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["options"]["cell"]) == ("LanguageModel", "gru")
    assert json.loads((folder / "reader.json").read_text())["vocabulary"] == list(READER.vocabulary)
    assert load_file(folder / "model.safetensors").keys() == LanguageModel(11, 6, cell="gru").state_dict().keys()
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_a_model_without_a_reader_is_saved_without_one(tmp_path: Path) -> None:
    save(LanguageModel(11, 6), tmp_path / "saved")
    assert not (tmp_path / "saved/reader.json").exists()
    assert load(tmp_path / "saved").reader is None


def test_parameters_that_are_one_are_saved_once_and_stay_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = LanguageModel.__init__

    @wraps(build)
    def build_tied(self: LanguageModel, *options: Any, **more: Any) -> None:
        build(self, *options, **more)
        self.embedding.weight = self.softmax.weight

    monkeypatch.setattr(LanguageModel, "__init__", build_tied)
    model = LanguageModel(11, 6).eval()
    save(model, tmp_path / "saved")
    assert len(load_file(tmp_path / "saved/model.safetensors")) == len(model.state_dict()) - 1
    loaded = load(tmp_path / "saved")
    assert loaded.embedding.weight is loaded.softmax.weight
    words = torch.randint(11, (7, 3))
    assert torch.equal(loaded(words)[0], model(words)[0])


def test_a_folder_with_something_in_it_is_left_alone(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("do not touch")
    for place in ("mine", "mine/notes.txt"):
        with pytest.raises(FileExistsError, match=f"{place} is there, and is no empty folder: name another one"):
            save(model, tmp_path / place)
    assert files(tmp_path / "mine") == {"notes.txt": b"do not touch"}
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    assert load(tmp_path / "empty").reader == READER


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(13, "Permission denied")])
def test_a_folder_that_cannot_be_written_as_a_whole_is_not_there(
    error: OSError, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("inference.export.save_file", full)  # config.json is written by then
    with pytest.raises(OSError, match=rf"saved cannot be written .*{error.strerror}.*: make room, give the right"):
        save(model, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: change(f / "config.json", options={"vocab_size": 11, "hidden_size": 6, "magic": 1}),
            "know: 'magic'",
        ),
        (lambda f: change(f / "config.json", options={"vocab_size": 11, "hidden_size": 7}), "size mismatch for emb"),
        *(
            (
                lambda f, huge=huge: change(f / "config.json", options={"vocab_size": 11, "hidden_size": 6} | huge),
                "cannot be loaded as LanguageModel: its options ask for at least [0-9,]+ parameters, but it has 647",
            )
            for huge in ({"num_layers": 10**7}, {"hidden_size": 10**5}, {"vocab_size": 10**10})
        ),
        (lambda f: change(f / "config.json", options={"vocab_size": 11}), "loaded as LanguageModel.*hidden_size"),
        (lambda f: change(f / "config.json", options={"vocab_size": 11, "hidden_size": "six"}), "cannot be loaded as"),
        (lambda f: change(f / "config.json", model="Trainer"), "of the model Trainer; there are: LanguageModel"),
        *(
            (
                lambda f, tau=tau: change(f / "config.json", noise={"tau": 1.0, "tau_mc": tau}),
                "noise in config.json must be positive and finite",
            )
            for tau in (-1, 0, math.inf, math.nan)
        ),
        (lambda f: change(f / "config.json", options=[1]), "not of a model of this repository"),
        (lambda f: (f / "config.json").write_text('{"architectures": []}'), "not of a model of this .*'model'"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not of a model of this repository"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), r"config\.json is not of a model of this repository"),
        (lambda f: change(f / "reader.json", vocabulary=[*map(str, range(11)), "<eos>"]), "12 words, more than vocab"),
        (lambda f: change(f / "reader.json", **RATED.state()), "reader.json is of a model of the other kind"),
        (lambda f: change(f / "reader.json", letters=3), "cannot be loaded as LanguageModel.*letters"),
        (lambda f: (f / "reader.json").write_text("[]"), "cannot be loaded as LanguageModel"),
        (lambda f: (f / "model.safetensors").write_bytes(b"?" * 99), "cannot be loaded as LanguageModel"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded as LanguageModel"),
        (lambda f: save_file({"x": torch.ones(999)}, f / "model.safetensors"), "Missing key.*Unexpected key.*x"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json is not of .*maximum recursion depth"),
        (lambda f: (f / "reader.json").write_text("[" * 100_000), "cannot be loaded as .*maximum recursion depth"),
        (lambda f: (f / "config.json").write_bytes(b"\xff" * 999), r"^[^\\]*config\.json is not of .{,120}$"),
    ],
)
def test_a_folder_that_is_not_of_such_a_model_is_refused(
    damage: Callable[[Path], Any], message: str, folder: Path
) -> None:
    damage(without_hashes(folder))
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


OTHERS = ("<unk>", "<eos>", "other", *map(str, range(1, 9)))


@pytest.mark.parametrize(
    "exchange",
    [
        lambda f: change(f / "reader.json", vocabulary=OTHERS),
        lambda f: change(f / "reader.json", vocabulary=OTHERS[:5]),
        lambda f: change(f / "reader.json", tokens="spaces"),
        lambda f: (f / "reader.json").unlink(),
    ],
)
def test_a_reader_of_another_model_is_refused(exchange: Callable[[Path], Any], folder: Path) -> None:
    exchange(folder)
    with pytest.raises(
        ValueError, match=r"saved cannot be .* reader\.json is not the one that was saved with config\.j"
    ):
        load(folder)
    load(without_hashes(folder))


def test_a_reader_that_was_added_to_a_model_without_one_is_refused(tmp_path: Path) -> None:
    save(LanguageModel(11, 6), tmp_path / "saved")
    (tmp_path / "saved/reader.json").write_text(json.dumps(READER.state()))
    with pytest.raises(ValueError, match=r"reader\.json is not the one that was saved with config\.json"):
        load(tmp_path / "saved")


def with_a_bit_turned_over(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_bit_that_is_turned_over_anywhere_in_the_parameters_is_found(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for bit in range(8 * start, 8 * len(content), 97):
        file.write_bytes(with_a_bit_turned_over(content, bit))
        with pytest.raises(
            ValueError, match=r"model\.safetensors is not the one that was saved with config\.json, or dam"
        ):
            load(folder)
    file.write_bytes(content)
    assert load(folder).reader == READER


@pytest.mark.parametrize("name", ["config.json", "reader.json"])
def test_a_bit_that_is_turned_over_in_what_a_folder_says_is_found_or_changes_nothing(
    name: str, regressor: Callable[..., SentimentRegressor], tmp_path: Path
) -> None:
    model = regressor(**DROPOUT)
    model.reader, model.noise = RATED, {"tau": 123.5, "tau_mc": 2.5}
    save(model, tmp_path / "saved")
    file = tmp_path / "saved" / name
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        damaged = with_a_bit_turned_over(content, bit)
        file.write_bytes(damaged)
        try:
            says_the_same = json.loads(damaged) == json.loads(content)
        except ValueError:
            says_the_same = False
        if says_the_same:  # a blank that became a tab
            assert load(tmp_path / "saved").noise == model.noise
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{name}|cannot be loaded as|of the model"):
            load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": {"tau": 1.5}}, "config.json is damaged or was edited, since its SHA-256 is not the saved"),
        ({"options": {"vocab_size": 11, "hidden_size": 6, "cell": "gru"}}, "config.json is damaged or was edited"),
        ({"more": 1}, "config.json is damaged, or of a newer version: it has 'more'"),
    ],
)
def test_a_configuration_that_was_changed_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    change(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)
    if "more" not in changes:
        load(without_hashes(folder))


def test_a_configuration_may_be_written_otherwise(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert load(folder).hparams.cell == "gru"


def test_damage_on_the_way_from_the_hub_is_found(hub: hub_server.Server, folder: Path) -> None:
    content = files(folder)
    content["model.safetensors"] = with_a_bit_turned_over(content["model.safetensors"], 8 * 1000)
    hub.models[NAME] = content
    with pytest.raises(ValueError, match=r"model\.safetensors is not the one that was saved with config\.json"):
        load(NAME)


def test_a_model_in_double_precision_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = LanguageModel(11, 6).double().eval()
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype, name


def test_a_folder_names_the_run_that_trained_it_and_passes_that_on(model: LanguageModel, tmp_path: Path) -> None:
    model.run = RUN
    save(model, tmp_path / "saved")
    save(load(tmp_path / "saved"), tmp_path / "again")
    for name in ("saved", "again"):
        assert json.loads((tmp_path / name / "config.json").read_text())["run"] == RUN
        card = (tmp_path / name / "README.md").read_text()
        assert "Trained for 2 epochs in a run of 2026-01-02, commit 0123456 with uncommitted changes." in card


def test_a_reader_may_be_written_otherwise(folder: Path) -> None:
    state = json.loads((folder / "reader.json").read_text())
    (folder / "reader.json").write_text(json.dumps(dict(reversed(state.items()))))
    assert load(folder).reader == READER


def test_a_folder_of_parameters_that_are_not_finite_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    with torch.no_grad():
        model.softmax.bias[3] = math.nan
    save(model, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved are not finite \('softmax.bias'\): its run diverged"):
        load(tmp_path / "saved")


def test_a_name_that_is_neither_a_folder_nor_of_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none is no file or folder; in .* there is: nothing"):
        load(tmp_path / "none")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_model_is_pushed_to_the_hub_and_comes_back_bit_for_bit(
    hub: hub_server.Server, model: LanguageModel, folder: Path
) -> None:
    assert push(model, NAME).startswith(f"{hub.address}/{NAME}/commit/")
    assert hub.models == {NAME: files(folder)}
    words = torch.randint(11, (7, 3))
    loaded = load(NAME)
    assert loaded.reader == READER
    assert torch.equal(loaded(words)[0], model(words)[0])


def test_a_model_that_was_fetched_once_is_there_without_a_network(
    hub: hub_server.Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models[NAME] = files(folder)
    load(NAME)
    hub.models.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load(NAME).reader == READER


def test_nothing_but_safetensors_is_taken_from_the_hub(
    hub: hub_server.Server, model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    torch.save(model.state_dict() | {"x": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.models[NAME] = files(folder)
    for place in (NAME, folder):
        with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; .* no other format is read"):
            load(place)
    assert not list(tmp_path.glob("hub/**/*.bin")), "it is not even fetched"
    assert not (tmp_path / "sprung").exists()


def test_a_name_that_the_hub_does_not_know_is_refused(hub: hub_server.Server) -> None:
    message = r"no folder .*nobody/nothing, and the .* hub delivers no model nobody/nothing: it has none of this name"
    with pytest.raises(ConnectionError, match=message):
        load("nobody/nothing")


def test_the_hub_is_not_asked_for_a_path_that_was_mistyped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub is asked")

    monkeypatch.setattr("lightning_modules.loading.snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    for place, message in {
        "saved/modle": r"/saved/modle is no file or folder; in .* there is: 'README\.md'.* there is a folder saved\)$",
        "saved/last.ckpt": r"/saved/last\.ckpt is no file or folder; in .*/saved there is: .*'reader\.json'$",
        "absent/last.ckpt": r"/absent/last\.ckpt is no file: there is no folder .*/absent$",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            load(place)


def test_a_version_of_a_model_on_the_hub_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options)
        return str(folder)

    monkeypatch.setattr("lightning_modules.loading.snapshot_download", snapshot)
    load(NAME, revision="v1")
    assert asked["revision"] == "v1"


def test_a_hub_that_does_not_answer_is_said(hub: hub_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server_close()
    hub.shutdown()
    with pytest.raises(ConnectionError, match=f"the Hugging Face hub delivers no model {NAME}: "):
        load(NAME)


# --- model cards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Of a row whose published figures are known."""
    curve = [{"epoch": 1, "valid_ppl": 95.0}, {"epoch": 2, "valid_ppl": 82.5, "train_ppl": None}]
    content = {
        "experiment": "ptb",
        "group": "medium",
        "row": "variational_tied",
        "seed": 3,
        "epochs": 2,
        "planned_epochs": 39,
        "tested_epoch": 2,
        "parameters": 1234,
        "metrics": {
            "valid_ppl": 82.5,
            "valid_ppl_lua": 81.25,
            "test_ppl": 79.5,
            "test_ppl_mc": 78.75,
            "mc_samples": 100,
        },
        "curve": curve,
        "config": {"trainer": {"precision": "bf16-mixed"}, "data": {"class_path": "datamodules.PennTreebank"}},
        "provenance": {
            "commit": "0123456789",
            "dirty": True,
            "date": "2026-01-02T03:04:05",
            "wall_time_s": 3723.4,
            "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None, "devices": 1},
            "versions": {"torch": "2.13.0"},
            "corpus": {"name": "penn-treebank", "sha256": {"ptb.train.txt": "fcea91"}},
        },
    }
    (tmp_path / "seed3.json").write_text(json.dumps(content))
    return tmp_path / "seed3.json"


def test_a_card_has_the_figures_of_the_result_beside_the_published_ones_and_where_they_come_from(
    model: LanguageModel, result: Path, tmp_path: Path
) -> None:
    model.run = RUN
    save(model, tmp_path / "saved", result)
    card = ModelCard.load(tmp_path / "saved/README.md")
    assert card.data.license is None, "it is the owner's to choose"
    assert card.data.library_name == "variational-rnn"
    assert (card.data.datasets, card.data.metrics) == (["ptb-text-only/ptb_text_only"], ["perplexity"])
    assert {entry.metric_name: entry.metric_value for entry in card.data.eval_results} == {
        "test perplexity": 79.5,
        "test perplexity, MC": 78.75,
    }
    for line in (
        "# Penn Treebank, medium (2 × 650 units): Variational (tied)",
        "| validation perplexity | 82.50 | n/a |",
        "| validation perplexity, as the original code prints it | 81.25 | 81.8 ± 0.2 |",
        "| test perplexity | 79.50 | 79.7 ± 0.1 |",
        "| test perplexity, MC, K = 100 | 78.75 | 79.0 ± 0.1 |",
        "* Published: Gal & Ghahramani (2016), arXiv:1512.05287, Table 1. Lower is better.",
        "* Corpus penn-treebank, SHA-256: `ptb.train.txt` fcea91.",
    ):
        assert f"\n{line}\n" in card.content
    [origin] = [line for line in card.content.splitlines() if line.startswith("* Run ")]
    for fact in ("seed 3", "2 of 39 epochs", "commit 0123456 with uncommitted changes", "bf16-mixed", "Some CPU"):
        assert fact in origin


def test_a_card_describes_the_network_and_types_its_figures_by_the_task(
    model: LanguageModel, result: Path, tmp_path: Path
) -> None:
    model.run = RUN
    save(model, tmp_path / "saved", result)
    card = ModelCard.load(tmp_path / "saved/README.md")
    assert "GRU, 2 × 6 units, 11 word types." in card.content
    assert "language-modeling" in card.data.tags
    assert {(entry.task_type, entry.metric_type) for entry in card.data.eval_results} == {
        ("language-modeling", "perplexity")
    }


def test_a_card_of_the_best_epoch_has_the_figures_of_a_run_that_went_on(
    model: LanguageModel, result: Path, tmp_path: Path
) -> None:
    run = json.loads(result.read_text())
    curve = [*run["curve"], {"epoch": 3, "valid_ppl": 84.0}]
    result.write_text(json.dumps(run | {"epochs": 3, "curve": curve}))
    model.run = RUN
    save(model, tmp_path / "saved", result)
    card = (tmp_path / "saved/README.md").read_text()
    assert "(epochs: 3 of 39 epochs)" in card
    assert "tested after epoch 2 of 39" in card
    model.run = RUN | {"epoch": 3}
    with pytest.raises(ValueError, match="is not of this model: its run of 2026-01-02T03:04:05 was tested aft"):
        save(model, tmp_path / "last", result)


def test_a_regressors_card_has_each_of_its_errors_by_its_name(
    regressor: Callable[..., SentimentRegressor], result: Path, tmp_path: Path
) -> None:
    names = {
        "valid_rmse": "validation RMSE",
        "test_rmse": "test RMSE",
        "test_rmse_review": "test RMSE, by review",
        "test_rmse_mc": "test RMSE, MC, K = 50",
        "test_rmse_review_mc": "test RMSE, by review, MC, K = 50",
        "constant_rmse": "test RMSE of the mean training rating as prediction",
    }
    metrics = {name: 0.11 + i / 100 for i, name in enumerate(names)}
    run = json.loads(result.read_text()) | {"experiment": "sentiment", "group": "fair", "row": "variational_lstm"}
    curve = [{"epoch": 1, "test_rmse": 0.3}, {"epoch": 2, "test_rmse": 0.12}]
    result.write_text(json.dumps(run | {"metrics": metrics | {"mc_samples": 50}, "curve": curve}))
    model = regressor()
    model.run = RUN
    save(model, tmp_path / "saved", result)
    card = ModelCard.load(tmp_path / "saved/README.md")
    for metric, name in names.items():
        assert f"\n| {name} | {metrics[metric]:.4f} | n/a |\n" in card.content
    tested = {entry.metric_name: (entry.metric_type, entry.metric_value) for entry in card.data.eval_results}
    assert tested == {
        "test RMSE": ("rmse", 0.12),
        "test RMSE, by review": ("rmse", 0.13),
        "test RMSE, MC": ("rmse", 0.14),
        "test RMSE, by review, MC": ("rmse", 0.15),
    }


@pytest.mark.parametrize("changes", [{"epoch": 1}, {"date": "2026-01-02T03:04:06"}])
def test_a_card_does_not_show_the_figures_of_another_run_or_epoch(
    changes: dict[str, Any], model: LanguageModel, result: Path, tmp_path: Path
) -> None:
    model.run = RUN | changes
    with pytest.raises(ValueError, match=r"seed3\.json is not of this model: its run of .* was tested after epoch 2"):
        save(model, tmp_path / "saved", result)
    assert not (tmp_path / "saved").exists()


def test_a_card_does_not_show_the_figures_of_other_weights(model: LanguageModel, result: Path, tmp_path: Path) -> None:
    model.run = RUN
    content = json.loads(result.read_text())
    content["provenance"]["weights_sha256"] = weights_sha256(model)
    result.write_text(json.dumps(content))
    describe(model, result)
    with torch.no_grad():
        model.softmax.bias[3] += 1
    with pytest.raises(ValueError, match=r"seed3\.json is not of this model: .*or has other weights"):
        describe(model, result)


def test_a_card_without_a_result_claims_nothing(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results is None
    assert "No result file was given" in card.content


@pytest.mark.parametrize(("reader", "words"), [(None, 11), (Reader(("<unk>", "<eos>", "a"), "words", window=5), 3)])
def test_a_card_counts_the_words_that_the_model_knows(reader: Reader | None, words: int, model: LanguageModel) -> None:
    model.reader = reader
    assert f" {words} word types." in describe(model).content


@pytest.mark.parametrize("reader", [None, READER])
def test_the_lines_of_use_on_a_card_run(reader: Reader | None, model: LanguageModel, tmp_path: Path) -> None:
    model.reader = reader
    save(model, tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text()
    [lines] = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    names: dict[str, Any] = {"words": torch.ones(3, 1, dtype=torch.long)}
    exec(lines.replace("OWNER/NAME", str(tmp_path / "saved")), names)
    assert names["logits"].shape == (3, 1, 11)


def test_the_lines_of_use_on_a_regressors_card_run(
    regressor: Callable[..., SentimentRegressor], tmp_path: Path
) -> None:
    model = regressor()
    model.reader = RATED
    save(model, tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text()
    [lines] = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    names: dict[str, Any] = {}
    exec(lines.replace("OWNER/NAME", str(tmp_path / "saved")), names)
    assert names["ratings"].shape == (1,)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(call: Callable[..., Any], tiny_treebank: Path, tmp_path: Path) -> tuple[str, str]:
    """Checkpoint and result file of a run."""
    result = tmp_path / "results/ptb/small/variational_tied/seed0.json"
    outcome = call("reproduce", *tiny_run(tmp_path, "--epochs", "2", "--result", str(result)))
    assert outcome.status == 0, outcome.err
    return str(tmp_path / "run/checkpoints/last.ckpt"), str(result)


def failed(outcome: Any) -> str:
    """The message that the command ended with."""
    assert outcome.status == 2
    message, advice = outcome.err.splitlines()
    assert advice == "(TRACEBACK=1 shows where it was raised)"
    return message


def test_a_run_is_exported_pushed_and_loaded(
    run: tuple[str, str], hub: hub_server.Server, tmp_path: Path, call: Callable[..., Any]
) -> None:
    checkpoint, result = run
    outcome = call("export", checkpoint, "exported", "--result", result, "--push", NAME)
    assert outcome.status == 0, outcome.err
    assert f"{hub.address}/{NAME}/commit/" in outcome.out
    assert [repository["visibility"] for repository in hub.created] == ["private"]
    assert hub.models == {NAME: files(tmp_path / "exported")}
    metrics = json.loads(Path(result).read_text())["metrics"]
    assert f"| test perplexity | {metrics['test_ppl']:.2f} |" in (tmp_path / "exported/README.md").read_text()
    words = torch.randint(12, (7, 3))
    expected = load(checkpoint)
    for place in (tmp_path / "exported", NAME):
        assert load(place).reader == expected.reader
        assert torch.equal(load(place)(words)[0], expected(words)[0])


def test_what_is_wrong_with_an_export_is_said_in_one_message(
    run: tuple[str, str],
    hub: hub_server.Server,
    tmp_path: Path,
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, result = run
    assert "nothing.ckpt is no file" in failed(call("export", "nothing.ckpt", "new"))
    (tmp_path / "cut.ckpt").write_bytes(Path(checkpoint).read_bytes()[:-999])
    assert "cut.ckpt is damaged" in failed(call("export", "cut.ckpt", "new"))
    torch.save({"state_dict": Trap(tmp_path / "sprung")}, "trap.ckpt")
    assert "trap.ckpt is refused: it holds" in failed(call("export", "trap.ckpt", "new"))
    assert not (tmp_path / "sprung").exists()
    assert "run is there, and is no empty folder" in failed(call("export", checkpoint, "run"))
    assert "--result none.json does not exist" in failed(call("export", checkpoint, "new", "--result", "none.json"))
    message = failed(call("export", checkpoint, "new", "--result", "results"))
    assert "--result results is a folder: name the file of a run in it" in message
    assert "error: main.py export: unrecognized arguments: --resutl x (`main.py export --help`" in failed(
        call("export", checkpoint, "new", "--resutl", "x")
    )
    assert "error: main.py export: the following arguments are required: " in failed(call("export"))
    best = json.loads(Path(result).read_text())
    (tmp_path / "other.json").write_text(json.dumps(best | {"tested_epoch": 1}))
    assert "other.json is not of this model" in failed(call("export", checkpoint, "new", "--result", "other.json"))
    monkeypatch.delenv("HF_TOKEN")
    assert "nobody is logged in to the Hugging Face hub" in failed(call("export", checkpoint, "new", "--push", NAME))
    assert not (tmp_path / "new").exists()

    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    message = failed(call("export", checkpoint, "named", "--push", "three/part/name"))
    assert "named is written, but the Hugging Face hub does not take it as three/part/name" in message
    hub.server_close()
    hub.shutdown()
    message = failed(call("export", checkpoint, "alone", "--push", NAME))
    assert f"alone is written, but the Hugging Face hub does not take it as {NAME}: " in message
    assert load(tmp_path / "alone").reader


@pytest.mark.slow
def test_the_command_and_the_hub_in_processes_of_their_own(
    run: tuple[str, str], hub: hub_server.Server, tmp_path: Path
) -> None:
    def outcome(*command: str, **changes: str) -> Any:
        home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | home | {"OMP_NUM_THREADS": "1"} | changes
        return subprocess.run(
            [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180
        )

    command = ("main.py", "export", run[0])
    exported = outcome(*command, str(tmp_path / "exported"), "--push", NAME)
    assert exported.returncode == 0, exported.stderr
    fetched = outcome("-c", f"from lightning_modules import load; print(load({NAME!r}).softmax.bias.tolist())")
    assert fetched.stdout == f"{load(run[0]).softmax.bias.tolist()}\n", fetched.stderr
    offline = outcome(*command, str(tmp_path / "offline"), "--push", NAME, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "is written, but the Hugging Face hub does not take it" in offline.stderr
