"""Pretrained weights, brought into the cache of this machine before a job needs them.

Everything is loaded by the code that the jobs load it with, so what a job will look for is what
lies in the cache afterwards: the Hugging Face hub's, ``$HF_HOME`` or ``~/.cache/huggingface``. All
pretrained weights that open_clip knows come from that hub. Its client takes a file lock for each
file and moves it into place when it is whole: commands that start at the same time on one machine
download once.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
from huggingface_hub import CacheNotFound, constants, hf_hub_download, scan_cache_dir
from open_clip.factory import parse_model_name
from open_clip.pretrained import get_pretrained_cfg

from captioner import backends, storage
from captioner.config import Encoder as EncoderOptions
from captioner.config import JobConfig, Search
from captioner.encoder import Encoder, create_model, preprocessing_of
from captioner.errors import InputError
from captioner.tower_copy import CONFIG

_WEIGHTS = "open_clip_model.safetensors"  # of local-dir:


@dataclass(frozen=True)
class File:
    """A file that a job will read, and its SHA-256."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Weights:
    """What was loaded, and the files it was loaded from; none: random weights."""

    what: str
    files: list[File]

    def describe(self) -> str:
        """The files as lines for people."""
        lines = [
            f"  {file.path}  {file.size / 1e6:,.1f} MB  sha256 {file.sha256}" for file in self.files
        ]
        return "\n".join([self.what, *(lines or ["  nothing to fetch"])])


def of_config(config: JobConfig) -> list[Weights]:
    """Load the encoder of a configuration, and the language model that its decoder begins with.

    Raises:
        InputError: one of them cannot be had.
    """
    options = config.encoder
    identity = Encoder(options).identity
    found = [Weights(f"encoder {identity.describe()}", _encoder_files(options))]
    name = config.decoder.pretrained
    if name is not None:
        from captioner.decoders import gpt2

        gpt2.pretrained(name)
        found.append(Weights(f"language model {name}", _transformers_files(name)))
    return found


def of_captioner(model: str) -> Weights:
    """Load somebody else's captioner, ``hf:NAME`` or ``coca:NAME``.

    Raises:
        InputError: it cannot be had, or is neither.
    """
    if not backends.is_foreign(model):
        raise InputError(
            f"--model: expected hf:NAME or coca:NAME, got {model}. Of a model directory, give its "
            "run directory as CONFIG: what it needs is its encoder"
        )
    identity = backends.load(model, EncoderOptions(), Search()).identity
    kind, _, name = model.partition(":")
    if kind == "hf":
        files = _transformers_files(name)
    else:
        theirs = identity.model.removeprefix("coca:")
        files = _encoder_files(EncoderOptions(model=theirs, pretrained=identity.pretrained))
    return Weights(f"captioner {model}", files)


def save_encoder(options: EncoderOptions, directory: str) -> Weights:
    """Write an encoder as a directory that ``encoder.model=local-dir:DIRECTORY`` loads: with that,
    no cache and no hub is needed.

    Raises:
        InputError: it has no weights to save, the directory is not empty, or what was saved would
            not be the same encoder.
    """
    if options.pretrained == "none":
        raise InputError(
            "encoder.pretrained: none means random weights drawn from encoder.seed: there is "
            "nothing to save"
        )
    target = Path(directory).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--out: {target} is not a new or empty directory")
    model, quick_gelu = create_model(options)
    target.mkdir(parents=True, exist_ok=True)
    values = {
        "model_cfg": _architecture(options, quick_gelu),
        "preprocess_cfg": _preprocessing(model),
    }
    (target / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    # Clones: safetensors refuses tensors that share memory.
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(tensors, target / _WEIGHTS)
    (target / _WEIGHTS).chmod(0o644)  # safetensors makes it its owner's alone; volumes are shared
    if "hf_tokenizer_name" in values["model_cfg"].get("text_cfg", {}):
        open_clip.get_tokenizer(options.model).save_pretrained(target)
    saved = options.model_copy(
        update={"model": f"local-dir:{target}", "image_size": None, "resize_mode": None}
    )
    if difference := Encoder(options).identity.difference(Encoder(saved).identity):
        shutil.rmtree(target)
        raise InputError(f"--out: the saved encoder would not be {options.model}: {difference}")
    return Weights(f"saved encoder.model=local-dir:{target}", _files(target))


def _architecture(options: EncoderOptions, quick_gelu: bool) -> dict[str, Any]:
    """open_clip's ``model_cfg`` of an encoder as it is, with what its options have changed."""
    schema, name = parse_model_name(options.model)
    if schema is None:
        found = copy.deepcopy(open_clip.get_model_config(name))
        assert found is not None  # create_model has found it
        if quick_gelu:
            found["quick_gelu"] = True
    else:
        local = schema == "local-dir"
        place = storage.join(name, CONFIG) if local else hf_hub_download(name, CONFIG)
        found = json.loads(storage.read_text(place))["model_cfg"]
    if options.image_size is not None:
        found["vision_cfg"]["image_size"] = options.image_size
    return dict(found)


def _preprocessing(model: Any) -> dict[str, Any]:
    settings = preprocessing_of(model.visual)
    names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    return {name: getattr(settings, name) for name in names}


def _encoder_files(options: EncoderOptions) -> list[File]:
    """Those that open_clip has just read."""
    schema, name = parse_model_name(options.model)
    if options.pretrained == "none":
        return []
    if schema == "local-dir":
        return _stored(name) if "://" in name else _files(Path(name))
    if schema == "hf-hub":
        return _cached(name)
    tag = get_pretrained_cfg(name, options.pretrained)
    return _cached(tag["hf_hub"].rstrip("/")) if tag else _files(Path(options.pretrained))


def _transformers_files(name: str) -> list[File]:
    """Those of a directory in transformers' format, or of a repository of the hub."""
    return _files(Path(name)) if os.path.isdir(name) else _cached(name)


def _cached(repository: str) -> list[File]:
    """What the cache has of a repository of the hub."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        repositories = frozenset()
    paths = {
        file.file_path
        for found in repositories
        if found.repo_id == repository
        for revision in found.revisions
        for file in revision.files
    }
    if not paths:
        raise RuntimeError(f"{repository} was loaded, but is not in {constants.HF_HUB_CACHE}")
    return [_file(path) for path in sorted(paths)]


def _stored(url: str) -> list[File]:
    """Those of a directory on an object store."""
    fs, _ = storage.filesystem(url)
    found = []
    for path in storage.files(url, ""):
        with fs.open(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(File(fs.unstrip_protocol(path), fs.size(path), digest))
    return found


def _files(place: Path) -> list[File]:
    """A file, or those of a directory and its subdirectories."""
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return [_file(path) for path in paths]


def _file(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(str(path), path.stat().st_size, digest)
