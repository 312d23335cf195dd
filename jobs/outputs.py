"""What each stage leaves in a run directory, and whether it is done. Without Ray: to look at a run
must not take seconds."""

from __future__ import annotations

import shlex

import numpy as np
import pyarrow.dataset
from numpy.typing import NDArray

from captioner import parquet_dir, storage
from captioner.config import JobConfig

FORMATS = {
    "jsonl": "captions.jsonl",
    "csv": "captions.csv",
    "sidecar": "sidecar",
    "webdataset": "webdataset",
}
FORMS_WRITTEN = "_formats.json"  # of which captions each form is: a killed one is done again
PROGRESS = "progress.json"  # of the last job
# Where a directory was captioned with a given model: by which command, and the model.
COMMAND = "_command.json"
# A stage's last file marks it as done.
OUTPUTS = {
    "index": ["manifest", "manifest.next"],
    "extract": ["features", "features.checkpoints"],
    "train": ["model", "checkpoints", "tensorboard"],
    "caption": ["captions", "captions.checkpoints", *FORMATS.values()],
    "score": ["metrics.json", "scores"],
    "report": ["report.html"],
}


def is_done(config: JobConfig, stage: str) -> bool:
    output = config.at(OUTPUTS[stage][0])
    if stage == "score":
        scored, captioned = config.at("scores"), config.at("captions")
        return storage.exists(output) and not parquet_dir.differ(scored, captioned)
    if stage == "report":
        return storage.exists(output)
    if storage.read_summary(output) is None:
        return False
    if stage in ("extract", "caption"):  # done with the manifest as it is now
        return version(config, stage) == version(config, "index")
    return True


def version(config: JobConfig, stage: str) -> tuple[str | None, int] | None:
    """Which manifest, up to which serial, this stage has done."""
    summary = storage.read_summary(config.at(OUTPUTS[stage][0]))
    return (summary.get("manifest"), summary["serial"]) if summary else None


def forms_written(config: JobConfig) -> dict[str, list[object] | None]:
    """Of which captions each form is that was ever written; None of one that was begun."""
    url = config.at("captions", FORMS_WRITTEN)
    return dict(storage.read_json(url)) if storage.exists(url) else {}


def forms_missing(config: JobConfig) -> list[str]:
    """What is asked for, or was before and is still there, and is not written whole of the captions
    as they are now."""
    written, captions = forms_written(config), version(config, "caption")
    assert captions is not None
    missing = []
    for name in dict.fromkeys([*config.caption.formats, *written]):
        is_there = storage.exists(config.at(FORMATS[name]))
        is_wanted = is_there or name in config.caption.formats  # or it was deleted since
        if is_wanted and not (is_there and written.get(name) == [*captions]):  # as JSON gives it
            missing.append(name)
    return missing


def rows_written(checkpoints: str, after: int = -1) -> int:
    """Rows with serials greater than ``after`` whose file is whole, by Ray's checkpoints. After a
    crash the target itself may hold half a file as well, which Ray deletes as the next run
    starts."""
    written = _written(checkpoints)
    if written is None:
        return 0
    return int(written.count_rows(filter=parquet_dir.where(after=after)))


def serials_written(checkpoints: str, after: int = -1) -> NDArray[np.int64]:
    """The serials of these rows."""
    if (written := _written(checkpoints)) is None:
        return np.empty(0, np.int64)
    found = written.to_table(["serial"], filter=parquet_dir.where(after=after))["serial"]
    serials: NDArray[np.int64] = found.to_numpy()
    return serials


def checkpoint_files(checkpoints: str) -> list[str]:
    """Ray's: of files that are written, and of those that are being written."""
    return [file for file in storage.files(checkpoints, "") if file.endswith(".parquet")]


def _written(checkpoints: str) -> pyarrow.dataset.Dataset | None:
    whole = [f for f in checkpoint_files(checkpoints) if not f.endswith(".pending.parquet")]
    filesystem, _ = storage.arrow_filesystem(checkpoints)
    return (
        pyarrow.dataset.dataset(whole, filesystem=filesystem, format="parquet") if whole else None
    )


def command_of(config: JobConfig) -> str | None:
    """The command that has captioned this directory, wherever it was then, with a given model;
    None: it is a run."""
    words = shlex.split(_made_by(config).get("command", ""))
    if "--out" in words:
        words[words.index("--out") + 1] = config.at()
    return shlex.join(words) or None


def model_of(config: JobConfig) -> str | None:
    """The model that has captioned this directory; None: the run's own, or it is not known."""
    return _made_by(config).get("model")


def _made_by(config: JobConfig) -> dict[str, str]:
    url = config.at(COMMAND)
    return dict(storage.read_json(url)) if storage.exists(url) else {}
