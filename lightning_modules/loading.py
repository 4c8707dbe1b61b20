"""Load a trained model from a checkpoint, a saved folder or the Hugging Face hub, without its configuration or data."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datamodules.reader import Reader
from datamodules.text_files import quoted
from lightning_modules.language_model import LanguageModel
from lightning_modules.sentiment_regressor import SentimentRegressor

Model = LanguageModel | SentimentRegressor
MODELS: dict[str, type[Model]] = {"LanguageModel": LanguageModel, "SentimentRegressor": SentimentRegressor}
CONFIG, WEIGHTS, READER = "config.json", "model.safetensors", "reader.json"  # of a saved folder
KEYS = {"model", "options", "noise", "run", "reader_sha256", "weights_sha256", "sha256"}  # of config.json
SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin", ".json")  # of files, not of models on the hub


def load(path: str | Path, *, revision: str | None = None, **options: Any) -> Model:
    """Load a trained model of this repository. Nothing in its files is executed.

    Args:
        path: a checkpoint, `RUNS/.../checkpoints/last.ckpt` or `best.ckpt`; a folder that `inference.export.save`
            wrote; or OWNER/NAME on the Hugging Face hub, unless there is a folder OWNER here. `~` is the home folder.
        revision: branch, tag or commit on the hub.
        options: of the model, in place of the saved ones, for example mc_samples.

    Returns:
        The model on the CPU, in eval mode, with the `reader` of its training texts (None if the files have none) and
        the `run` that trained it (None if they do not name it).

    Raises:
        FileNotFoundError: there is no such file; names the files that exist.
        ConnectionError: there is no such folder, and the hub does not deliver the model.
        ValueError: the files are damaged, not of a model of this repository, or of a run that diverged.
        UnpicklingError: the checkpoint holds something other than tensors and plain values.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir() or is_hub_name(path):
        path = fetch(path, revision)
        model = _from_folder(path, options)
    elif path.is_file():
        model = _from_checkpoint(path, options)
    else:
        folder = path.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{path.absolute()} is no file: there is no folder {folder}")
        there = quoted(sorted(other.name for other in folder.iterdir()))
        is_like_a_name = len(path.parts) == 2 and path.suffix not in SUFFIXES
        hub = f" (the Hugging Face hub is not asked for it, since there is a folder {path.parent})"
        raise FileNotFoundError(
            f"{path.absolute()} is no file or folder; in {folder} there is: {there}{hub if is_like_a_name else ''}"
        )
    check_finite(model, path)
    return model.eval()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and verify its checksums, which torch.load does not. Nothing in it is executed.

    Args:
        path: of the file.
        mmap: whether tensors are read only when they are needed.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or not a checkpoint.
        UnpicklingError: it is whole, but holds something other than tensors and plain values.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            size, there = sum(part.file_size for part in archive.infolist()), path.stat().st_size
            if size > there:  # torch.save compresses nothing
                raise ValueError(f"its parts claim {size / 1e6:,.0f} MB, but it has {there / 1e6:,.0f} MB")
            damaged = archive.testzip()
            content = None if damaged else torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        except UnpicklingError as error:
            name = re.search(r"GLOBAL (\S+)", str(error))
            raise UnpicklingError(
                f"the checkpoint {path} is refused: it holds {name[1] if name else 'something'} beside tensors and "
                "plain values, and to read that is to execute code. Nothing was executed. Checkpoints of this "
                "repository need none: take another, or ask who made it for safetensors."
            ) from error
        except Exception as error:  # there is no end to what readers of damaged files raise
            raise ValueError(f"the checkpoint {path} is damaged, or none: {error}") from error
    if damaged:
        raise ValueError(f"the checkpoint {path} is damaged: its part {damaged} has another content than was written")
    if not isinstance(content, dict):
        raise ValueError(f"the checkpoint {path} is none: it holds a {type(content).__name__}")
    return content


def _from_checkpoint(path: Path, options: dict[str, Any]) -> Model:
    checkpoint = read_checkpoint(path)
    given = checkpoint.get("hyper_parameters")
    if not isinstance(given, dict) or not {"state_dict", "curve", "provenance"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of this repository: it has no parameters, or no curve of its run")
    name = str(checkpoint.get("model") or given.get("_class_path")).rpartition(".")[2]  # older ones have the latter
    given = {option: value for option, value in given.items() if not option.startswith("_")}  # Lightning's
    model_class = _model_class(name, path)
    try:
        model = _build(model_class, given | options, checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as {name}: {error}") from error
    model.run = run_of(checkpoint)
    return model


def run_of(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The run that trained a checkpoint: its epochs, start and commit; None where that is unknown."""
    if not checkpoint.get("provenance"):
        return None
    begun = checkpoint["provenance"][0]
    return {"epoch": len(checkpoint["curve"]), **{name: begun.get(name) for name in ("date", "commit", "dirty")}}


def _model_class(name: str, path: Path) -> type[Model]:
    if name not in MODELS:
        raise ValueError(f"{path} is of the model {name}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def _build(model_class: type[Model], options: dict[str, Any], weights: Mapping[str, Tensor]) -> Model:
    known = inspect.signature(model_class).parameters.keys()
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"it has options that {model_class.__name__} does not know: {quoted(unknown)}")
    check_sizes(options, weights)
    return model_class(**options)


def check_sizes(options: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse options of a model that is far larger than its saved weights, before the model is built.

    Raises:
        ValueError: the embedding or the recurrent layers alone would have more numbers than all saved weights.
    """
    there = sum(value.numel() for value in weights.values())
    hidden, layers = options.get("hidden_size", 0), options.get("num_layers", 1)
    width = options.get("embedding_size", hidden)
    needed = max(options.get("vocab_size", 0) * width, layers * hidden * hidden, width * hidden)
    if needed > there:
        raise ValueError(f"its options ask for at least {needed:,} parameters, but it has {there:,}")


def check_finite(model: nn.Module, source: Path) -> None:
    """Refuse a model with infinite or NaN parameters.

    Args:
        model: just loaded.
        source: of its parameters, for the message.

    Raises:
        ValueError: a parameter is infinite or NaN.
    """
    if wrong := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(
            f"the parameters of {source} are not finite ({quoted(wrong)}): its run diverged. Take the checkpoint of an "
            "earlier epoch, or train with a smaller learning rate."
        )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers of a model, in hexadecimal; the same on every device.

    Results, predictions and saved folders identify their weights by it.
    """
    return _tensors_sha256(model.state_dict())


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


# --- saved folders and the hub ----------------------------------------------------------------------------------------


def is_hub_name(name: str | Path) -> bool:
    """Whether a name may be OWNER/NAME on the Hugging Face hub, and not a path.

    It is taken for a mistyped path if a folder OWNER exists here, or if it ends like the file of a model.
    """
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name))
    return bool(is_name) and Path(name).suffix not in SUFFIXES and not Path(name).parent.exists()


def fetch(folder: Path, revision: str | None = None) -> Path:
    """Return the folder of a saved model: `folder` itself, or a copy of OWNER/NAME from the Hugging Face hub.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ConnectionError: the hub does not deliver it.
    """
    name = folder
    if is_hub_name(name):
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, READER], revision=revision))
        except Exception as error:  # whatever is between here and the server
            reason = " ".join(str(error).split())
            if isinstance(error, RepositoryNotFoundError):
                reason = "it has none of this name, or a private one (`.venv/bin/hf auth login`, or set HF_TOKEN)"
            raise ConnectionError(
                f"There is no folder {folder.absolute()}, and the Hugging Face hub delivers no model {name}: {reason}"
            ) from error
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    for file in (CONFIG, WEIGHTS):
        if file not in there:
            raise FileNotFoundError(
                f"{name} has no {file}; there is: {quoted(there) or 'nothing'}. A saved model has {CONFIG} and "
                f"{WEIGHTS}; no other format is read, since it could execute code."
            )
    return folder


def _from_folder(folder: Path, options: dict[str, Any]) -> Model:
    config = saved_config(folder)
    name = config["model"]
    model_class = _model_class(name, folder)
    try:
        weights = load_file(folder / WEIGHTS)
        model: Any = _build(model_class, config["options"] | options, weights)
        if {value.dtype for value in weights.values()} == {torch.float64}:
            model.double()
        own = model.state_dict()
        for key in own.keys() - weights.keys():  # tied weights are saved once
            for twin in own.keys() & weights.keys():
                if own[twin].data_ptr() == own[key].data_ptr():
                    weights[key] = weights[twin]
        model.load_state_dict(weights)
        model.noise = {key: float(value) for key, value in config["noise"].items()}
        if not all(0 < tau < math.inf for tau in model.noise.values()):
            raise ValueError(f"the noise in {CONFIG} must be positive and finite, got {model.noise}")
        if (folder / READER).is_file():
            model.reader = Reader(**json.loads((folder / READER).read_text(encoding="utf-8")))
            if (model.reader.chunk_length is None) == model.rates_texts:
                raise ValueError(f"{READER} is of a model of the other kind")
            if len(model.reader.vocabulary) > model.hparams.vocab_size:
                raise ValueError(f"{READER} has {len(model.reader.vocabulary)} words, more than vocab_size")
        of_reader = model.reader and json_sha256(model.reader.state())
        of_weights = _tensors_sha256(weights)  # in the precision in which they were saved
        for file, key, found in ((READER, "reader_sha256", of_reader), (WEIGHTS, "weights_sha256", of_weights)):
            if config.get(key, found) != found:  # older folders lack it
                raise ValueError(f"{file} is not the one that was saved with {CONFIG}, or damaged: take that one")
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())  # torch's has lines
        raise ValueError(f"{folder} cannot be loaded as {name}: {reason}") from error
    model.run = config.get("run")
    return model


def saved_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a saved model: the name of its class (`model`), its `options`, `noise` and `run`.

    Raises:
        ValueError: the configuration is damaged, or not that of a model of this repository.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        is_known = [type(config[name]) for name in ("model", "options", "noise")] == [str, dict, dict]
        is_whole = "sha256" not in config or config["sha256"] == json_sha256(
            {name: value for name, value in config.items() if name != "sha256"}
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder / CONFIG} is not of a model of this repository ({reason})") from error
    if not is_known:
        raise ValueError(f"{folder / CONFIG} is not of a model of this repository: it has other kinds of values")
    if unknown := sorted(config.keys() - KEYS):
        raise ValueError(f"{folder / CONFIG} is damaged, or of a newer version: it has {quoted(unknown)}")
    if not is_whole:
        raise ValueError(
            f"{folder / CONFIG} is damaged or was edited, since its SHA-256 is not the saved one: save the model "
            "again, and pass other options to load"
        )
    return config


def json_sha256(content: dict[str, Any]) -> str:
    """SHA-256 of the content of a JSON file, whatever its formatting, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
