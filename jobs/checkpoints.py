"""What a training goes on from: Ray Train's checkpoints, seen to before Ray reads them."""

from __future__ import annotations

from captioner import model_files, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.training.progress import FILES, Progress

_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's list of them


def are_there(config: JobConfig) -> bool:
    return bool(storage.files(_place(config), "checkpoint_"))


def tidy(config: JobConfig) -> None:
    """Delete what Ray does not know of: checkpoints that were being written, or deleted.

    Raises:
        InputError: one that it knows of is not whole. Ray would say so after a minute, and of
            options that are its own.
    """
    place = _place(config)
    known = _known(place)
    for name in known:
        for file in FILES:
            if not storage.exists(storage.join(place, name, file)):
                raise _damaged(place, f"{name}/{file} is gone")
    for path in storage.files(place, "checkpoint_"):
        name = path.rstrip("/").rpartition("/")[2]
        if name not in (*known, _SNAPSHOT):
            storage.remove(storage.join(place, name))


def _known(place: str) -> list[str]:
    url = storage.join(place, _SNAPSHOT)
    if not storage.exists(url):
        return []
    try:
        results = storage.read_json(url)["checkpoint_results"]
        return [str(result["checkpoint_dir_name"]) for result in results]
    except (InputError, TypeError, KeyError):
        raise _damaged(place, f"{_SNAPSHOT} is damaged") from None


def _damaged(place: str, why: str) -> InputError:
    return InputError(
        f"{place}: {why}, and without it the training does not go on. Delete this directory: the "
        "same command begins anew, or with the second stage where the first is done"
    )


def first_stage(config: JobConfig) -> Progress | None:
    """Where a second stage begins whose first one is done, and has no checkpoints any more: its
    best weights are in the model directory. None: there are checkpoints, or it is not done."""
    if are_there(config):
        return None
    history = model_files.read_history(config.at("model"))
    progress = Progress([epoch for epoch in history if epoch["stage"] == "cross_entropy"])
    return progress if progress.stage(config.train) == "self_critical" else None


def _place(config: JobConfig) -> str:
    return config.at("checkpoints", "train")
