"""A whole run: every stage in order, those that are done skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

from captioner import features, manifest, staleness, storage, storage_errors
from captioner.config import JobConfig
from captioner.errors import InputError, StorageUnavailable
from captioner.identity import RANDOM_WEIGHTS
from captioner.staleness import STAGES
from jobs import lock, logs, stopping
from jobs.outputs import OUTPUTS, command_of, forms_missing, is_done, model_of
from jobs.preparation import complete, discard, listed_as_before, may_change, prepare


def run(config: JobConfig, redo: str | None = None, update: bool = False) -> None:
    """Run every stage that is not done yet; ``redo`` names the first to do again.

    ``update`` lists the source again, whatever was done before, and brings features, captions,
    scores and report up to date with it. The model stays as it is.
    """
    with at_work(config):
        if (made := command_of(config)) is not None:
            raise InputError(
                f"{config.at()}: this is a captioned directory, and no run with a model of its "
                f"own. What goes on with it is: {made}"
            )
        again = staleness.stages_from(redo) if redo else ()
        left = [stage for stage in STAGES if stage in again or not is_done(config, stage)]
        _require(config, left, again)
        with listed_as_before(config):
            prepare(config, redo, free=may_change(listed=update))
            _do(config, "index", anyway=update)
        for stage in STAGES[1:]:
            _do(config, stage)


def _do(config: JobConfig, stage: str, anyway: bool = False) -> None:
    """Run a stage of a whole run, unless it is done."""
    if is_done(config, stage) and not anyway:
        if stage == "caption" and forms_missing(config):
            _run_stage(config, stage)  # the captions stay, and what was made of them
        else:
            logs.say(f"{stage}: done before, skipped")
        return
    # What was made of the captions, or of the scores, before is out of date.
    if later := {"caption": ("score", "report"), "score": ("report",)}.get(stage):
        discard(config, *later)
    if stage in ("extract", "train"):
        # And not after hours of training.
        manifest.require_images(config.at("manifest"), config.caption.splits)
        if not is_done(config, "train"):
            manifest.require_captions(config.at("manifest"))
    _run_stage(config, stage)


def _require(config: JobConfig, stages: Collection[str], again: Collection[str]) -> None:
    """See that ``stages`` can be done with such options: before what is to be done ``again`` is
    deleted, and not after hours of the stages before.

    Raises:
        InputError: one cannot.
    """
    if "score" in stages and (config.score.also or config.score.group_by):
        from jobs import score

        score.require(config)
    if "index" in again:
        from jobs import index

        index.require(config)
    if "train" in stages and (config.decoder.pretrained or config.train.mixed_with):
        from jobs import mixture, train

        train.require(config)
        mixture.require(config)
    if "extract" in again:
        from captioner.encoder import Encoder
        from jobs import train

        train.check(config, Encoder(config.encoder).identity)
    elif "train" in again and "extract" not in stages:
        from jobs import train

        train.check(config, features.read_identity(config.at("features")))
    if "caption" in again and is_done(config, "train") and "train" not in again:
        from captioner.model import CaptionModel

        CaptionModel.load(config.at("model")).check_search(config.search)
    if {"extract", "train", "caption"} & {*again}:
        from jobs import pools, session

        session.begin(config)
        pools.encoders(config)
        if "train" in again:
            pools.trainers(config)


def run_stage(
    config: JobConfig, stage: str, update: bool = False, retry_errors: bool = False
) -> None:
    """Run one stage; ``update`` lists the source again before it.

    Raises:
        InputError: the stage before it has not been run.
    """
    with at_work(config):
        # Scores and pages are made anew whenever they are asked for; other ones may be asked for.
        redo, listed = stage if stage == "score" else None, update or stage == "index"
        if redo:
            _require(config, [redo], [redo])
        with listed_as_before(config):
            prepare(
                config,
                redo=redo,
                remade=(stage,) if stage == "report" else (),
                free=may_change(listed, retried=retry_errors),
            )
            if listed:
                _run_stage(config, "index")
        if retry_errors:
            logs.say(renew_errors(config, stage))
        if stage != "index":
            _run_stage(config, stage)


@contextlib.contextmanager
def at_work(config: JobConfig) -> Iterator[None]:
    """Hold the run directory, without what a command that was killed has left to delete, and say of
    a storage that is full or away what can be done.

    Raises:
        InputError: another command is at work there.
        StorageUnavailable: it is full, or does not answer.
        Stopped: SIGTERM came.
    """
    try:
        with (
            logs.about(run=config.at()),
            stopping.on_sigterm(config.at()),
            lock.hold(config.at()),
        ):
            complete(config)
            yield
    except InputError:
        raise
    except Exception as error:
        if storage_errors.is_full(error) or storage_errors.is_away(error):
            raise StorageUnavailable(
                f"{config.at()}: {storage_errors.reason(error)}. What is done stays done; the same "
                "command goes on later"
            ) from error
        if storage_errors.is_refused(error):
            raise InputError(
                f"{error}. A job lists and reads {config.source.images}, and writes to "
                f"{config.at()}. {storage_errors.CREDENTIALS}"
            ) from error
        raise


def renew_errors(config: JobConfig, stage: str) -> str:
    """Have the images tried again that ``stage`` has failed with."""
    target = config.at(OUTPUTS[stage][0])
    if not is_done(config, "index") or not storage.exists(target):
        raise InputError(f"{config.at()}: {stage} has not been done here yet: nothing to retry")
    failed = features.failed(target)
    count = manifest.renew(config.at("manifest"), failed)
    return f"{stage}: {count:,} failed rows are tried again"


def _run_stage(config: JobConfig, stage: str) -> None:
    # What has been captioned without features of its own is scored and shown all the same.
    needed = ("caption",) if stage in ("score", "report") else STAGES[: STAGES.index(stage)]
    for before in needed:
        if not is_done(config, before):
            raise InputError(f"{config.at()}: {stage} needs {before}, which is not done here yet")
        if before in ("extract", "caption"):
            features.require_whole(config.at(OUTPUTS[before][0]))
    with logs.about(step=stage):
        logs.say(with_warning(config, _stage_function(stage)(config)))


def with_warning(config: JobConfig, result: str) -> str:
    """The result, with a warning where nothing that follows from it can mean anything."""
    random = config.encoder.pretrained == "none"
    return f"{result}\n{RANDOM_WEIGHTS}" if random else result


def _stage_function(stage: str) -> Callable[[JobConfig], str]:
    # Imported when needed: `captioner --help` must not wait for torch and Ray.
    return {
        "index": _index,
        "extract": _extract,
        "train": _train,
        "caption": _caption,
        "score": _score,
        "report": _report,
    }[stage]


def _index(config: JobConfig) -> str:
    from jobs import index

    return index.describe(index.index(config))


def _extract(config: JobConfig) -> str:
    from jobs import extract, stream

    return stream.describe("extract", extract.extract(config))


def _train(config: JobConfig) -> str:
    from jobs import train

    if is_done(config, "train"):
        return "train: done before; to begin anew: `captioner run --redo train`"
    return train.describe(train.train(config))


def _caption(config: JobConfig) -> str:
    from jobs import caption

    return caption.describe(caption.caption_features(config, config.at("model")))


def _score(config: JobConfig) -> str:
    from jobs import score

    return score.describe(score.score(config))


def _report(config: JobConfig) -> str:
    from captioner import report

    return f"report: {report.write(config, model_of(config))}"
