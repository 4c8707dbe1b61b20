"""Models in folders and on the Hugging Face hub: safetensors, JSON and a model card; nothing else is read."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from datamodules.reader import Reader
from datamodules.text_files import quoted
from experiments.results import load_result
from inference.model_card import model_card

CONFIG, WEIGHTS, READER = "config.json", "model.safetensors", "reader.json"
KEYS = {"model", "options", "noise", "run", "reader_sha256", "weights_sha256", "sha256"}  # of config.json
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of safetensors
SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin", ".json")  # of files, not of models on the hub


class Shareable(ModelHubMixin):
    """Base of models that are saved in a folder, shared on the Hugging Face hub, and loaded from either.

    A folder has the class, its options, measured noise and the run that trained it in `config.json`, the parameters in
    `model.safetensors`, the vocabulary and how texts are split in `reader.json`, and a model card in `README.md`.
    `config.json` also holds the SHA-256 of the parameters, of the reader and of itself, with which loading compares
    what it has read. `push_to_hub("OWNER/NAME")` is the mixin's.
    Not its PyTorchModelHubMixin, which takes a pickle where there are no safetensors, and leaves out what it does not
    know of a configuration.
    """

    rates_texts: bool
    reader: Reader | None
    noise: dict[str, float]
    curve: Sequence[dict[str, float]] = ()
    hparams: Any
    run: dict[str, Any] | None = None
    """The run that trained the parameters: its number of epochs, start and commit; None if it is unknown."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model into a folder, which is there as a whole or not at all.

        Args:
            save_directory: a new folder, or an empty one.
            options: of the mixin: `model_card_kwargs={"result": FILE}` adds a result file's figures to the model card.

        Raises:
            FileExistsError: there is something in the folder.
            OSError: it cannot be written.
            ValueError: the result file cannot be used, or is not of these parameters.
        """
        folder = Path(os.path.expanduser(save_directory))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there, and is no empty folder: name another one, or delete it")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as part:
                address = super().save_pretrained(Path(part) / folder.name, **options)
                (Path(part) / folder.name).replace(folder)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{folder} cannot be written ({error}): make room, give the right to write there, or name another"
            ) from error
        return address

    def _save_pretrained(self, save_directory: Path) -> None:
        options = {name: value for name, value in self.hparams.items() if not name.startswith("_")}  # Lightning's
        config = {"model": type(self).__name__, "options": options, "noise": getattr(self, "noise", {})}
        config |= {"run": self.run, "weights_sha256": weights_sha256(self)}  # type: ignore[arg-type]
        config["reader_sha256"] = self.reader and json_sha256(self.reader.state())
        contents: dict[str, Any] = {CONFIG: config}
        if self.reader:
            contents[READER] = self.reader.state()
        config["sha256"] = json_sha256(config)
        for name, content in contents.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (save_directory / name).write_text(text + "\n", encoding="utf-8")
        save_model(self, str(save_directory / WEIGHTS))  # type: ignore[arg-type]
        shutil.copymode(save_directory / CONFIG, save_directory / WEIGHTS)  # safetensors lets no one else read it

    def generate_model_card(self, result: str | Path | None = None) -> ModelCard:
        """Describe the model, with the figures of the result file of its run, if that is given.

        Raises:
            ValueError: the file cannot be used, or its run ended with other parameters than these.
        """
        run = None if result is None else load_result(Path(result))
        if run:
            curve = [{name: value for name, value in entry.items() if math.isfinite(value)} for entry in self.curve]
            if curve != run.curve[: run.tested_epoch]:
                raise ValueError(
                    f"{result} is not of this model: what was tested there, after epoch {run.tested_epoch}, has "
                    "another curve. Give the result of the run that wrote the checkpoint, and the checkpoint it tested."
                )
        return model_card(type(self).__name__, dict(self.hparams), self.reader, run, self.run)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model that `save_pretrained` or `push_to_hub` wrote; nothing that is in the files is executed.

        Args:
            pretrained_model_name_or_path: the folder, or OWNER/NAME on the hub.
            force_download: whether to fetch again what is in the cache.
            token: of the hub.
            cache_dir: where what was fetched is kept.
            local_files_only: whether to take what is in the cache, and ask nobody.
            revision: branch, tag or commit on the hub.
            options: in place of the saved ones, for example mc_samples.

        Returns:
            The model on the CPU, in eval mode.

        Raises:
            OSError: there is no such folder and the hub does not deliver it, or a file is missing.
            ValueError: the files are of another model, damaged, or of a run that diverged.
        """
        where = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
        where |= {"local_files_only": local_files_only, "revision": revision}
        folder = fetch(pretrained_model_name_or_path, **where)
        config = saved_config(folder)
        name, saved = config["model"], config["options"]
        if name != cls.__name__:
            raise ValueError(f"{folder} has a {name}, not a {cls.__name__}: lightning_modules.load takes either")
        if unknown := sorted(saved.keys() - inspect.signature(cls.__init__).parameters.keys()):
            raise ValueError(f"{folder / CONFIG} has options that {name} does not know: {quoted(unknown)}")
        try:
            with safe_open(folder / WEIGHTS, framework="pt") as parameters:
                slices = {key: parameters.get_slice(key) for key in parameters.keys()}  # noqa: SIM118
                check_sizes(saved, [part.get_shape() for part in slices.values()])
            dtypes = {key: DTYPES[part.get_dtype()] for key, part in slices.items()}
            model: Any = cls(**saved | options)
            if set(dtypes.values()) == {torch.float64}:
                model.double()
            model.noise = {key: float(value) for key, value in config["noise"].items()}
            if not all(0 < tau < math.inf for tau in model.noise.values()):
                raise ValueError(f"the noise in {CONFIG} must be positive and finite, got {model.noise}")
            if (folder / READER).is_file():
                model.reader = Reader(**json.loads((folder / READER).read_text(encoding="utf-8")))
                if (model.reader.chunk_length is None) == model.rates_texts:
                    raise ValueError(f"{READER} is of a model of the other kind")
                if len(model.reader.vocabulary) > model.hparams.vocab_size:
                    raise ValueError(f"{READER} has {len(model.reader.vocabulary)} words, more than vocab_size")
            own = {key: value.dtype for key, value in _tensors(model).items()}
            _cast(model, dtypes)  # hashed as it was saved, maybe in half precision
            load_model(model, folder / WEIGHTS)
            model.run = config.get("run")
            of_reader = model.reader and json_sha256(model.reader.state())
            of_weights = weights_sha256(model)
            _cast(model, own)
            for file, key, found in ((READER, "reader_sha256", of_reader), (WEIGHTS, "weights_sha256", of_weights)):
                if config.get(key, found) != found:  # older folders lack it
                    raise ValueError(f"{file} is not the one that was saved with {CONFIG}, or damaged: take that one")
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())  # torch's has lines
            raise ValueError(f"{folder} cannot be loaded as {name}: {reason}") from error
        check_finite(model, folder)
        return model.eval()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names: tied ones have several."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers()))


def _cast(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    tensors = _tensors(model)
    for name in dtypes.keys() & tensors.keys():
        tensors[name].data = tensors[name].data.to(dtypes[name])


def json_sha256(content: dict[str, Any]) -> str:
    """SHA-256 of the content of a JSON file, whatever its formatting, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers of a model, in hexadecimal; the same on every device.

    Results, predictions and saved folders identify their weights by it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_sizes(options: dict[str, Any], shapes: Iterable[Sequence[int]]) -> None:
    """Refuse options of a model that is far larger than what was saved of it, before it is built.

    Args:
        options: of the model.
        shapes: of the parameters that were saved.

    Raises:
        ValueError: the embedding or the recurrent layers alone would have more numbers than all that were saved.
    """
    there = sum(math.prod(shape) for shape in shapes)
    hidden, layers = options.get("hidden_size", 0), options.get("num_layers", 1)
    width = options.get("embedding_size", hidden)
    needed = max(options.get("vocab_size", 0) * width, layers * hidden * hidden, width * hidden)
    if needed > there:
        raise ValueError(f"its options ask for at least {needed:,} parameters, but it has {there:,}")


def check_finite(model: nn.Module, source: Path) -> None:
    """Refuse a model whose predictions would be no numbers.

    Args:
        model: just loaded.
        source: of its parameters, for the message.

    Raises:
        ValueError: a parameter is infinite, or none at all.
    """
    if wrong := [name for name, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(
            f"the parameters of {source} are not finite ({quoted(wrong)}): its run diverged. Take the checkpoint of an "
            "earlier epoch, or train with a smaller learning rate."
        )


def is_hub_name(name: str | Path) -> bool:
    """Whether this may be a model on the Hugging Face hub, OWNER/NAME, and is no path.

    It is taken for one that was mistyped if there is a folder OWNER here, or if it ends as files of models do.
    """
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name))
    return bool(is_name) and Path(name).suffix not in SUFFIXES and not Path(name).parent.exists()


def fetch(name: str | Path, **where: Any) -> Path:
    """The folder of a saved model: the one of this name, or a copy of what the Hugging Face hub has by it.

    Args:
        name: of the folder, or OWNER/NAME on the hub.
        where: options of `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ConnectionError: the hub does not deliver it.
    """
    folder = Path(os.path.expanduser(name))
    if is_hub_name(name):
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, READER], **where))
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
                f"{Path(name)} has no {file}; there is: {quoted(there) or 'nothing'}. A saved model has {CONFIG} and "
                f"{WEIGHTS}; no other format is read, since it could execute code."
            )
    return folder


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration of a saved model: name of its class (`model`), `options`, and `noise`.

    Raises:
        ValueError: the configuration is not that of a model of this repository.
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
            "again, and pass other options to from_pretrained"
        )
    return config
