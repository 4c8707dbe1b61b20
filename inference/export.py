"""`main.py export CHECKPOINT FOLDER`: a trained model as safetensors, with a model card."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_token

from inference.options import OptionParser, path
from lightning_modules.loading import load


def export(checkpoint: str, folder: Path, result: Path | None = None, name: str | None = None) -> None:
    """Save a checkpoint as a folder, and push that to the Hugging Face hub.

    Args:
        checkpoint: of a run.
        folder: a new folder.
        result: the run's result file, for the model card.
        name: OWNER/NAME on the hub; None for nowhere. A new one is private.

    Raises:
        ValueError: the checkpoint is damaged, or the result is not of it.
        UnpicklingError: the checkpoint holds more than tensors and plain values.
        OSError: the folder cannot be written, or the hub does not take it.
    """
    if name and not get_token():
        raise ConnectionError("nobody is logged in to the Hugging Face hub: `.venv/bin/hf auth login`, or set HF_TOKEN")
    if result and not result.is_file():
        what = "is a folder: name the file of a run in it" if result.is_dir() else "does not exist"
        raise FileNotFoundError(f"--result {result} {what}")
    model = load(checkpoint)
    card = {"result": result}
    model.save_pretrained(folder, model_card_kwargs=card)
    print(f"wrote {folder}: lightning_modules.load({str(folder)!r}) is the model")
    if name:
        try:
            print(model.push_to_hub(name, private=True, model_card_kwargs=card))
        except Exception as error:  # whatever is between here and the server
            raise ConnectionError(
                f"{folder} is written, but the Hugging Face hub does not take it as {name}: {error}"
            ) from error


def main(arguments: list[str]) -> None:
    """Save a model, and push it; raises what `export` does."""
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
    export(options.checkpoint, options.folder, options.result, options.push)
