"""A run directory made ready for a configuration, or kept from one that it does not belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from captioner import configuration, manifest, sources, staleness, storage, tower_copy
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.staleness import STAGES
from jobs import logs
from jobs.outputs import OUTPUTS

_DISCARDED = "_discarded.json"  # which stages are being deleted


def may_change(listed: bool, retried: bool = False) -> Collection[str]:
    """The keys that a command may change which lists the source, or tries failed images, again."""
    return {*(staleness.LISTING if listed else ()), *(staleness.LIMITS if retried else ())}


def prepare(
    config: JobConfig,
    redo: str | None = None,
    fused: bool = False,
    remade: Sequence[str] = (),
    free: Collection[str] = (),
) -> None:
    """Make the run directory this configuration's, or see that it already is; complete what a
    crash has left of a manifest before anything reads it.

    Args:
        redo: the first of the stages to delete, and do again.
        fused: images are captioned without features and training of their own, so that captions
            are what another encoder or decoder makes stale.
        remade: stages that take the place of what is there at their end, whatever it was made with.
        free: keys that may differ.

    Raises:
        InputError: results in it were made with another configuration, or are somebody else's; or
            to do stages again would delete the only copy of the image tower.
    """
    storage.remove_partial(config.at())
    url = config.at("config.yaml")
    if storage.exists(url):
        before = configuration.load(url)
        again = staleness.stages_from(redo) if redo else ()
        differences = {
            key: values
            for key, values in staleness.differences(before, config).items()
            if key not in free
            and staleness.stage_of(key) not in (*again, *remade)
            and _has_begun(config, key, fused)
        }
        if differences and not fused and _only_a_second_stage(before, differences):
            logs.say("train: goes on with the self-critical stage")
            discard(config, "caption", "score", "report")
            storage.remove(config.at("model", storage.SUMMARY))  # the rest of train goes on
        elif differences:
            lines = [
                f"  {key}: {old!r} there, {new!r} here" for key, (old, new) in differences.items()
            ]
            first = min(map(staleness.stage_of, differences), key=STAGES.index)
            way_out = (
                "Give --out a new directory"
                if fused
                else "Set run= to a new directory, or do these stages again with "
                f"`captioner run --redo {first}`"
            )
            raise InputError(
                f"{config.at()}: this run directory belongs to another configuration:\n"
                + "\n".join([*lines, way_out])
            )
        if "train" in again:
            tower_copy.require_original(config.at("model"), config.encoder)
        if again:
            discard(config, *again)
    else:
        _require_free(config, fused)
    manifest.recover(config.at("manifest"))
    storage.write_text(url, configuration.dump(config))


@contextlib.contextmanager
def listed_as_before(config: JobConfig) -> Iterator[None]:
    """A run that cannot be listed with another configuration keeps the one it has, so that the next
    command does not fail by it."""
    url = config.at("config.yaml")
    before = storage.read_text(url) if storage.exists(url) else None
    try:
        yield
    except InputError:
        if before is not None:
            storage.write_text(url, before)
        raise


def _require_free(config: JobConfig, fused: bool) -> None:
    """
    Raises:
        InputError: something is where a stage would write, and perhaps delete first, and no stage
            has made it; or the images are.
    """
    sources.without(config.source, config.run)
    written = [
        name
        for stage in STAGES
        if not (fused and stage in ("extract", "train"))
        for name in OUTPUTS[stage]
    ]
    there = {path.rstrip("/").rpartition("/")[2] for path in storage.files(config.at(), "")}
    if taken := [config.at(name) for name in written if name in there]:
        raise InputError(
            f"{', '.join(taken)}: there already, and not of a run: {config.at()} has no "
            "config.yaml. Set run=, or give --out, a new directory"
        )


def _only_a_second_stage(before: JobConfig, differences: Mapping[str, object]) -> bool:
    """Whether all that is new is self-critical training after a training without it."""
    section = "train.self_critical."
    return not before.train.self_critical.epochs and all(
        key.startswith(section) for key in differences
    )


def discard(config: JobConfig, *stages: str) -> None:
    """Delete what these stages have made, whatever is made of another's first. What of it a crash
    has left, ``complete`` deletes."""
    journal = config.at(_DISCARDED)
    storage.write_json(journal, stages)
    for stage in sorted(stages, key=STAGES.index, reverse=True):
        outputs = [config.at(name) for name in OUTPUTS[stage]]
        storage.remove(storage.join(outputs[0], storage.SUMMARY))  # which says that it is done
        for output in outputs:
            storage.remove(output)
    storage.remove_file(journal)


def complete(config: JobConfig) -> None:
    """Delete the rest of what a command that was killed was deleting: half of it says nothing."""
    journal = config.at(_DISCARDED)
    if storage.exists(journal):
        discard(config, *storage.read_json(journal))


def _has_begun(config: JobConfig, key: str, fused: bool) -> bool:
    """Whether the first stage that reads ``key`` has left anything in the run directory."""
    stage = staleness.stage_of(key)
    if fused and stage in ("extract", "train"):
        stage = "caption"
    return storage.exists(config.at(OUTPUTS[stage][0]))
