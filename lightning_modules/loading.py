"""A trained model from a checkpoint alone, without its configuration or data."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.text_files import quoted
from lightning_modules.checkpoints import check_whole
from lightning_modules.language_model import LanguageModel
from lightning_modules.sentiment_regressor import SentimentRegressor

MODELS: dict[str, type[LanguageModel | SentimentRegressor]] = {
    "LanguageModel": LanguageModel,
    "SentimentRegressor": SentimentRegressor,
}


def load(path: str | Path) -> LanguageModel | SentimentRegressor:
    """Load a trained model from a checkpoint of this repository; nothing that is in the file is executed.

    Args:
        path: a checkpoint, `RUNS/.../checkpoints/last.ckpt` or `best.ckpt`.

    Returns:
        The model on the CPU, in eval mode, with the `reader` of the texts that it was trained on; None if the
        checkpoint is older than these.

    Raises:
        FileNotFoundError: there is no such file; names what is there.
        ValueError: the file is damaged, or is no checkpoint of this repository.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        there = sorted(other.name for other in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(f"{path.absolute()} is no file; in {folder.absolute()} there is: {quoted(there)}")
    check_whole(path)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters", "curve"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of this repository: it has no parameters, or no curve of its run")
    given = checkpoint["hyper_parameters"]
    name = checkpoint.get("model") or str(given.get("_class_path")).rpartition(".")[2]  # older ones have the latter
    if name not in MODELS:
        raise ValueError(f"{path} is of the model {name}; there are: {', '.join(MODELS)}")
    try:
        model = MODELS[name](**{option: value for option, value in given.items() if not option.startswith("_")})
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be loaded as {name}: {error}") from error
    return model.eval()
