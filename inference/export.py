"""Save a trained model as safetensors, with a model card: `save`, `push` and `main.py export CHECKPOINT FOLDER`.

A saved folder has the class, its options, its measured noise and the run that trained it in `config.json`, the weights
in `model.safetensors`, the vocabulary and the tokenization in `reader.json`, and a model card in `README.md`.
`config.json` also holds the SHA-256 of the weights, of the reader and of itself, which `lightning_modules.load`
verifies.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, get_token
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from experiments.results import load_result
from inference.model_card import model_card
from inference.options import OptionParser, path
from lightning_modules.loading import (
    CONFIG,
    READER,
    WEIGHTS,
    Model,
    json_sha256,
    load,
    weights_sha256,
)


def save(model: Model, folder: str | Path, result: str | Path | None = None) -> None:
    """Save a model in a folder. The folder is written as a whole or not at all.

    Args:
        model: to save.
        folder: a new folder, or an empty one.
        result: the result file of the model's run, whose figures the model card then shows.

    Raises:
        FileExistsError: the folder has something in it.
        OSError: it cannot be written.
        ValueError: the result file cannot be used, or is of other weights.
    """
    folder = Path(os.path.expanduser(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there, and is no empty folder: name another one, or delete it")
    card = describe(model, result)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            _write(model, card, part)
            part.replace(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{folder} cannot be written ({error}): make room, give the right to write there, or name another"
        ) from error


def push(model: Model, name: str, result: str | Path | None = None) -> str:
    """Upload a model to the Hugging Face hub. A new repository is private.

    Args:
        model: to upload.
        name: OWNER/NAME on the hub.
        result: the result file of the model's run, whose figures the model card then shows.

    Returns:
        The address of the commit.

    Raises:
        ConnectionError: the hub does not take it.
        ValueError: the result file cannot be used, or is of other weights.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(model, folder, result)
        return _upload(folder, name)


def describe(model: Model, result: str | Path | None = None) -> ModelCard:
    """Make the model card, with the figures of a result file if one is given.

    Raises:
        ValueError: the file cannot be used, or its run tested other weights than the model's.
    """
    run = None if result is None else load_result(Path(result))
    if run:
        ours = model.run or {}
        tested = {"date": run.provenance["date"], "epoch": run.tested_epoch}
        weights = weights_sha256(model)
        if tested != {name: ours.get(name) for name in tested} or weights != run.provenance.get(
            "weights_sha256", weights
        ):
            raise ValueError(
                f"{result} is not of this model: its run of {tested['date']} was tested after epoch {tested['epoch']}, "
                f"the model is of epoch {ours.get('epoch', 'unknown')} of a run of {ours.get('date', 'unknown date')}, "
                "or has other weights. Give the result of the run that wrote the checkpoint, and the checkpoint it "
                "tested."
            )
    return model_card(type(model).__name__, dict(model.hparams), model.reader, run, model.run)


def _write(model: Model, card: ModelCard, folder: Path) -> None:
    options = {name: value for name, value in model.hparams.items() if not name.startswith("_")}  # Lightning's
    reader = model.reader and model.reader.state()
    config: dict[str, Any] = {"model": type(model).__name__, "options": options, "noise": getattr(model, "noise", {})}
    config |= {"run": model.run, "weights_sha256": weights_sha256(model)}
    config["reader_sha256"] = reader and json_sha256(reader)
    config["sha256"] = json_sha256(config)
    for name, content in {CONFIG: config, READER: reader}.items():
        if content:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
    card.save(folder / "README.md")
    weights: dict[str, Tensor] = {}
    names: dict[int, str] = {}  # tied weights are saved once, under the first of their names
    metadata = {"format": "pt"}
    for name, value in sorted(model.state_dict().items()):
        first = names.setdefault(value.data_ptr(), name)
        if first == name:
            weights[name] = value.contiguous()
        else:
            metadata[name] = first
    save_file(weights, folder / WEIGHTS, metadata)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets no one else read it


def _upload(folder: Path, name: str) -> str:
    try:
        api = HfApi()
        repository = api.create_repo(name, private=True, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Push model"))
    except Exception as error:  # whatever is between here and the server
        raise ConnectionError(f"the Hugging Face hub does not take it as {name}: {error}") from error


def main(arguments: list[str]) -> None:
    """Run `main.py export`: save a checkpoint's model, and push it.

    Raises:
        ValueError: the checkpoint is damaged, or the result is not of it.
        UnpicklingError: the checkpoint holds more than tensors and plain values.
        OSError: the folder cannot be written, or the hub does not take it.
    """
    parser = OptionParser(
        allow_abbrev=False,
        prog="main.py export",
        description="Save a trained model as safetensors, with its options, vocabulary and a model card.",
    )
    parser.add_argument("checkpoint", help="RUNS/.../checkpoints/last.ckpt or best.ckpt")
    parser.add_argument("folder", type=path, help="new folder to write")
    parser.add_argument("--result", type=path, help="result file of the run, whose figures the model card shows")
    parser.add_argument("--push", metavar="OWNER/NAME", help="on the Hugging Face hub; private if it is new")
    options = parser.parse_args(arguments)
    if options.push and not get_token():
        raise ConnectionError("nobody is logged in to the Hugging Face hub: `.venv/bin/hf auth login`, or set HF_TOKEN")
    if options.result and not options.result.is_file():
        what = "is a folder: name the file of a run in it" if options.result.is_dir() else "does not exist"
        raise FileNotFoundError(f"--result {options.result} {what}")
    save(load(options.checkpoint), options.folder, options.result)
    print(f"wrote {options.folder}: lightning_modules.load({str(options.folder)!r}) is the model")
    if options.push:
        try:
            print(_upload(options.folder, options.push))
        except ConnectionError as error:
            raise ConnectionError(f"{options.folder} is written, but {error}") from error
