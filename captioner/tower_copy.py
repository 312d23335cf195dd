"""The image tower that a model directory brings along, where it was a directory of the user's own.

The name of a built-in or a hub's tower finds it again on any machine; a path does not.
(Weights in a file of one's own for a built-in, ``encoder.pretrained``, stay where they are.)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from captioner import model_files, storage
from captioner.config import Encoder
from captioner.errors import InputError

FOLDER = "encoder"  # of a model directory
CONFIG = "open_clip_config.json"  # of a tower's
_ABOUT = (".json", ".txt", ".model")


def write(model: str, options: Encoder) -> str | None:
    """Copy the directory of a ``local-dir:`` tower into a model directory, once.

    Returns:
        Why it could not be, for people.
    """
    path = options.model.removeprefix("local-dir:")
    if path == options.model or "://" in path:
        return None
    folder = Path(path)
    target = _place(model, options.model)
    if storage.exists(storage.join(target, CONFIG)):
        return None
    if not (folder / CONFIG).is_file():
        return f"{path} is not on this machine: the model has its path alone, and no copy of it"
    storage.remove(target)  # what a crash has left of one
    # Its configuration last: a copy that a crash has cut short is no tower.
    for file in sorted(_needed(folder, options), key=lambda file: file.name == CONFIG):
        with file.open("rb") as source, storage.writer(storage.join(target, file.name)) as copy:
            shutil.copyfileobj(source, copy)
    return None


def require_original(model: str, options: Encoder) -> None:
    """See that a model directory, which is about to be deleted, does not hold the only copy.

    Raises:
        InputError: it does.
    """
    path = options.model.removeprefix("local-dir:")
    copy = _place(model, options.model)
    if path == options.model or storage.exists(storage.join(path, CONFIG)):
        return
    if storage.exists(storage.join(copy, CONFIG)):
        raise InputError(
            f"encoder.model: {path} is not on this machine, and {copy}, the only copy of it, would "
            f"be deleted with the model. Nothing was: copy it to {path} first"
        )


def options_of(model: str, options: Encoder) -> Encoder:
    """The options of a model's encoder, turned to the copy in the model directory. Those that name
    another tower than the model was trained with stay as they are.

    Raises:
        NotAModel: there is none.
    """
    own = str(model_files.read_config(model)[0]["encoder"]["model"])
    copy = _place(model, own)
    if options.model != own or not storage.exists(storage.join(copy, CONFIG)):
        return options
    return options.model_copy(update={"model": f"local-dir:{copy}"})


def _needed(folder: Path, options: Encoder) -> list[Path]:
    """Its configuration and the one file of weights that open_clip reads; beside them small JSON
    and text files, such as a tokenizer's. Whatever else is there is nobody's to hand on."""
    files = [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    needed = [file for file in files if file.suffix in _ABOUT and file.is_file()]
    if options.pretrained == "none":
        return needed
    # No public name says which it takes. Imported when needed: it takes seconds.
    from open_clip.factory import _find_checkpoint_in_dir

    weights = _find_checkpoint_in_dir(folder)
    return [*needed, Path(weights)] if weights else needed


def _place(model: str, tower: str) -> str:
    """Where in a model directory the copy of a tower is, or would be."""
    return storage.join(model, FOLDER, Path(tower.removeprefix("local-dir:")).name)
