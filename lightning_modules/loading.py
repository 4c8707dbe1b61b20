"""A trained model from a checkpoint, a saved folder or the hub alone, without its configuration or data."""

from __future__ import annotations

import os
from pathlib import Path

from datamodules.text_files import quoted
from inference.sharing import SUFFIXES, check_finite, check_sizes, fetch, is_hub_name, saved_config
from lightning_modules.language_model import LanguageModel
from lightning_modules.sentiment_regressor import SentimentRegressor
from training.checkpoints import read_checkpoint

MODELS: dict[str, type[LanguageModel | SentimentRegressor]] = {
    "LanguageModel": LanguageModel,
    "SentimentRegressor": SentimentRegressor,
}


def load(path: str | Path) -> LanguageModel | SentimentRegressor:
    """Load a trained model of this repository; nothing that is in its files is executed.

    Args:
        path: a checkpoint, `RUNS/.../checkpoints/last.ckpt` or `best.ckpt`; a folder that `save_pretrained` wrote; or
            OWNER/NAME on the Hugging Face hub, if there is no folder OWNER here. `~` is the home folder.

    Returns:
        The model on the CPU, in eval mode, with the `reader` of the texts that it was trained on; None if the
        checkpoint is older than these.

    Raises:
        FileNotFoundError: there is no such file; names what is there.
        ConnectionError: there is none, and the hub does not deliver it.
        ValueError: the file is damaged, is no checkpoint of this repository, or is of a run that diverged.
        UnpicklingError: the checkpoint holds something other than tensors and plain values.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir() or is_hub_name(path):
        folder = fetch(path)
        return _model(saved_config(folder)["model"], folder).from_pretrained(folder)
    if not path.is_file():
        folder = path.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"{path.absolute()} is no file: there is no folder {folder}")
        there = quoted(sorted(other.name for other in folder.iterdir()))
        is_like_a_name = len(path.parts) == 2 and path.suffix not in SUFFIXES
        hub = f" (the Hugging Face hub is not asked for it, since there is a folder {path.parent})"
        raise FileNotFoundError(
            f"{path.absolute()} is no file or folder; in {folder} there is: {there}{hub if is_like_a_name else ''}"
        )
    checkpoint = read_checkpoint(path)
    given = checkpoint.get("hyper_parameters")
    if not isinstance(given, dict) or not {"state_dict", "curve", "provenance"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of this repository: it has no parameters, or no curve of its run")
    name = str(checkpoint.get("model") or given.get("_class_path")).rpartition(".")[2]  # older ones have the latter
    model_class = _model(name, path)
    try:
        check_sizes(given, [value.shape for value in checkpoint["state_dict"].values()])
        model = model_class(**{option: value for option, value in given.items() if not option.startswith("_")})
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as {name}: {error}") from error
    check_finite(model, path)
    return model.eval()


def _model(name: str, path: Path) -> type[LanguageModel | SentimentRegressor]:
    if name not in MODELS:
        raise ValueError(f"{path} is of the model {name}; there are: {', '.join(MODELS)}")
    return MODELS[name]
