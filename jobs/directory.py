"""A directory of images and a trained model -> captions, without a configuration file."""

from __future__ import annotations

import shlex
from typing import Any

from captioner import backends, configuration, model_files, redaction, scores, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from jobs import logs, outputs, pipeline, preparation

_OWN_TOWER = {"pretrained": "its own", "tokens": False}  # of somebody else's captioner


def caption(
    images: str,
    model: str,
    out: str,
    captions: str | None,
    overrides: tuple[str, ...],
    retry_errors: bool = False,
) -> str:
    """Index ``images`` into the run directory ``out`` and caption every one of them.

    How to encode and search stands in the model directory; ``overrides`` may change it. The
    same call again goes on where it was interrupted, and captions what is new.
    """
    from jobs import caption as job
    from jobs import index, score, score_actors

    config = job_config(images, model, out, captions, overrides)
    if score_actors.of_clip(config.score.also):
        raise InputError(
            "score.also: clip_score needs the features of a run, and a captioned directory has none"
        )
    score.require(config)
    with pipeline.at_work(config):
        free = preparation.may_change(listed=True, retried=retry_errors)
        preparation.prepare(config, fused=True, remade=("score", "report"), free=free)
        where = model if backends.is_foreign(model) else storage.resolve(model)
        made = {"command": _command(config, where, overrides), "model": where}
        cleaned = {name: redaction.clean(value) for name, value in made.items()}
        given = job.load(config, model)  # and not after hours of listing
        storage.write_json(config.at(outputs.COMMAND), cleaned)
        with logs.about(step="index"):
            lines = [index.describe(index.index(config))]
        if retry_errors:
            lines.append(pipeline.renew_errors(config, "caption"))
        with logs.about(step="caption"):
            lines.append(job.describe(job.caption_images(config, given)))
        if score.is_current(config):
            lines.append(score.describe(storage.read_json(config.at("metrics.json"))))
        elif captions or scores.countable(config.at("captions")):
            with logs.about(step="score"):
                lines.append(score.describe(score.score(config)))
        elif config.score.group_by is not None:
            lines.append("score: nothing has references to score it by (--captions)")
    lines.append(f"captions: {config.at('captions')}")
    lines.append(f"to look at them: {shlex.join(['captioner', 'report', config.at()])}")
    return pipeline.with_warning(config, "\n".join(lines))


def _command(config: JobConfig, model: str, overrides: tuple[str, ...]) -> str:
    """What goes on with this directory, from wherever it is called: a configuration alone does not
    tell the model."""
    words = ["captioner", "caption", config.source.images, "--model", model, "--out", config.at()]
    words += ["--captions", config.source.captions] if config.source.captions else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def job_config(
    images: str, model: str, out: str, captions: str | None, overrides: tuple[str, ...]
) -> JobConfig:
    """The model's own configuration, turned to another source and run directory; of somebody
    else's captioner, its name and the defaults."""
    config = configuration.parse(*job_values(images, model, out, captions, overrides))
    if backends.is_foreign(model):
        for key, own in {"model": model, **_OWN_TOWER}.items():
            if getattr(config.encoder, key) != own:
                raise InputError(f"encoder.{key}: {model} has a tower of its own")
    return config


def job_values(
    images: str, model: str, out: str, captions: str | None, overrides: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    """The plain values of ``job_config``, and where they come from.

    Raises:
        NotAModel: there is none at that place.
        InputError: an override is not of its form, or says what an argument does.
    """
    values: dict[str, Any]
    if backends.is_foreign(model):
        url = model
        values = {
            "encoder": {"model": model, **_OWN_TOWER},
            "decoder": {"attention": "none"},
            "search": {"repetition_penalty": 1.0},
        }
    else:
        values, url = model_files.read_config(model)
    values |= {
        "name": f"captions of {redaction.clean(images)}",
        "run": out,
        "source": {"images": images, "captions": captions},
        "split": {"train": 0.0, "val": 0.0, "test": 1.0},
        "score": {},
        "cluster": {},
    }
    said = {"run": "--out", "source.images": "IMAGES", "source.captions": "--captions"}
    configuration.refuse(overrides, said)
    configuration.apply(values, overrides)
    return values, url
