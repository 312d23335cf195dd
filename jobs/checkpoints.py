"""What a training goes on from: Ray Train's checkpoints, seen to before Ray reads them."""

from __future__ import annotations

from collections.abc import Iterable

from ray.train import Checkpoint

from captioner import model_files, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.training.progress import FILES, Progress, is_whole

_LIST = "checkpoint_manager_snapshot.json"  # Ray's, of those that it knows


def are_there(config: JobConfig) -> bool:
    return bool(storage.files(_place(config), "checkpoint_"))


def see_to(config: JobConfig) -> Checkpoint | None:
    """Delete checkpoints that were only being written, or deleted.

    Returns:
        The one to go on from where Ray would find none: its list of them is written in place, and
        is not whole if the disk was full, or all was killed, at that moment.

    Raises:
        InputError: there was one, and is none that is whole. Ray would say so after a minute, and
            of options that are its own.
    """
    place = _place(config)
    paths = storage.files(place, "checkpoint_")
    names = sorted({path.rstrip("/").rpartition("/")[2] for path in paths} - {_LIST})
    known = _known(place)
    if known and all(_has_all(place, name) for name in known):
        _delete(place, set(names) - set(known))
        return None
    for name in reversed(names):  # which are their times
        filesystem, path = storage.arrow_filesystem(storage.join(place, name))
        found = Checkpoint(path, filesystem)
        if _has_all(place, name) and _can_be_read(found):
            _delete(place, set(names) - {name})
            storage.remove_file(storage.join(place, _LIST))
            return found
    if storage.exists(storage.join(place, _LIST)):
        raise InputError(
            f"{place}: no checkpoint there is whole, and without one the training does not go on. "
            "Delete this directory: the same command begins anew, or with the second stage where "
            "the first is done"
        )
    _delete(place, names)
    return None


def first_stage(config: JobConfig) -> Progress | None:
    """Where a second stage begins whose first one is done, and has no checkpoints any more: its
    best weights are in the model directory. None: there are checkpoints, or it is not done."""
    if are_there(config):
        return None
    history = model_files.read_history(config.at("model"))
    progress = Progress([epoch for epoch in history if epoch["stage"] == "cross_entropy"])
    is_over = len(progress.history) < len(history)
    weights = model_files.FIRST_STAGE if is_over else model_files.WEIGHTS
    if not storage.exists(config.at("model", weights)):
        return None
    return progress if progress.stage(config.train) == "self_critical" else None


def _place(config: JobConfig) -> str:
    return config.at("checkpoints", "train")


def _known(place: str) -> list[str]:
    """Those on Ray's list; none where there is no list, or it is not whole."""
    try:
        results = storage.read_json(storage.join(place, _LIST))["checkpoint_results"]
        return [str(result["checkpoint_dir_name"]) for result in results]
    except (FileNotFoundError, InputError, TypeError, KeyError):
        return []


def _has_all(place: str, name: str) -> bool:
    return all(storage.exists(storage.join(place, name, file)) for file in FILES)


def _can_be_read(checkpoint: Checkpoint) -> bool:
    with checkpoint.as_directory() as directory:
        return is_whole(directory)


def _delete(place: str, names: Iterable[str]) -> None:
    for name in names:
        storage.remove(storage.join(place, name))
