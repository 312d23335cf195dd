"""A frozen open_clip image tower: pixels -> global embedding and patch tokens."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import parse_model_name
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from captioner import cpu, precision, storage, tower_copy
from captioner.config import Encoder as EncoderOptions
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing

# Images that pass through the tower together on a CPU, whatever the batch: what glibc gives back to
# the kernel after each layer, tensors of tens of megabytes, comes anew page by page, and is in no
# cache. (MobileNetV2 at 288 makes 60 images/s so, and 38 in batches of 64; EPYC, Zen 3.)
_ON_CPU = 8


@dataclass(frozen=True)
class Tower:
    """An image tower as it was loaded: float32, on the CPU. It can be sent to other processes,
    which then need not load it: a hundred actors would ask a hub, or a disk, a hundred times."""

    visual: nn.Module
    quick_gelu: bool
    weights_sha256: str

    @classmethod
    def load(cls, options: EncoderOptions) -> Tower:
        """
        Raises:
            InputError: there is no such model, or its weights cannot be had.
        """
        model, quick_gelu = create_model(options)
        visual = model.visual.eval().requires_grad_(False)
        return cls(visual, quick_gelu, weights_digest(visual))


class Encoder:
    """Runs a frozen tower on one device. ``identity`` says which tower it is."""

    def __init__(
        self,
        options: EncoderOptions,
        device: str | torch.device = "cpu",
        tower: Tower | None = None,
    ) -> None:
        """``tower``: that of the options, where it is loaded already. A copy of it is used."""
        cpu.prepare()
        loaded = tower or Tower.load(options)
        self._device = torch.device(device)
        self._dtype = precision.choose(options.precision, self._device)
        self._tower = copy.deepcopy(loaded.visual) if tower else loaded.visual
        self._forward = _forward_of(self._tower)
        preprocessing = preprocessing_of(self._tower)
        self._tower.to(device=self._device, dtype=self._dtype)
        if self._device.type == "cuda":  # the layout of tensor cores; CPUs gain nothing by it
            self._tower.to(memory_format=torch.channels_last)
        self._fixed_size = options.batch_size if options.compile else None
        small = self._device.type == "cpu" and not options.compile
        self._at_once = _ON_CPU if small else None
        if options.compile:
            self._forward = torch.compile(self._forward)
        scale = 255.0 * torch.tensor(preprocessing.std)
        shift = torch.tensor(preprocessing.mean) / torch.tensor(preprocessing.std)
        self._scale = (1.0 / scale).view(1, 3, 1, 1).to(self._device)
        self._shift = shift.view(1, 3, 1, 1).to(self._device)
        self._with_tokens = options.tokens
        blank = np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8)
        embedding, tokens = self.encode(blank)
        self._nothing = embedding[:0], None if tokens is None else tokens[:0]
        schema, _ = parse_model_name(options.model)
        own_weights = schema is not None and options.pretrained != "none"
        self.identity = EncoderIdentity(
            model=options.model,
            pretrained="its own" if own_weights else options.pretrained,
            quick_gelu=loaded.quick_gelu,
            weights_sha256=loaded.weights_sha256,
            preprocessing=preprocessing,
            embedding_size=embedding.shape[1],
            patches=0 if tokens is None else tokens.shape[1],
            channels=0 if tokens is None else tokens.shape[2],
            library=f"open_clip {open_clip.__version__}",
        )

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Tensor, Tensor | None]:
        """Encode ``pixels: (batch, height, width, 3) uint8``.

        Returns:
            ``embedding: (batch, embedding_size) float16``, as open_clip's ``encode_image`` gives
            it without normalisation, and ``tokens: (batch, patches, channels) float16`` (None
            where the configuration leaves them out), on the CPU.
        """
        if not len(pixels):  # many towers reshape to -1, which an empty batch leaves open
            return self._nothing
        at_once = self._at_once or len(pixels)
        parts = [
            self._encode(pixels[start : start + at_once])
            for start in range(0, len(pixels), at_once)
        ]
        half, *more = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts))
        return half, more[0] if more else None

    def _encode(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Tensor]:
        count = len(pixels)
        if self._fixed_size and count < self._fixed_size:  # another size would compile it again
            blank = np.zeros((self._fixed_size - count, *pixels.shape[1:]), np.uint8)
            pixels = np.concatenate([pixels, blank])
        # uint8 crosses to the device, a quarter of what floats would be; channels stay last.
        batch = self._to_device(torch.from_numpy(pixels)).permute(0, 3, 1, 2)
        normal = batch.float() * self._scale - self._shift
        embedding, tokens = self._forward(normal.to(self._dtype))
        results = [embedding[:count], tokens[:count]] if self._with_tokens else [embedding[:count]]
        return self._to_cpu([result.half() for result in results])

    def _to_device(self, pixels: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return pixels
        return pixels.pin_memory().to(self._device, non_blocking=True)

    def _to_cpu(self, results: list[Tensor]) -> list[Tensor]:
        if self._device.type != "cuda":
            return results
        copies = [
            torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results
        ]
        for pinned, result in zip(copies, results):
            pinned.copy_(result, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()  # once for all of them
        return copies


Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def _forward_of(tower: nn.Module) -> Forward:
    """How to get (embedding, tokens) from each of open_clip's kinds of image tower."""
    if isinstance(tower, VisionTransformer):
        tower.output_tokens = True  # forward then gives (pooled, patch tokens after ln_post)
        return lambda images: tower(images)
    if isinstance(tower, TimmModel):
        return lambda images: _timm_forward(tower, images)
    if isinstance(tower, ModifiedResNet):
        return lambda images: _resnet_forward(tower, images)
    raise InputError(f"encoder.model: open_clip's {type(tower).__name__} towers are not supported")


def _timm_forward(tower: TimmModel, images: Tensor) -> tuple[Tensor, Tensor]:
    features = tower.trunk.forward_features(images)
    embedding = tower.head(tower.trunk.forward_head(features))
    if features.ndim == 3:  # (batch, class and register tokens + patches, channels)
        return embedding, features[:, getattr(tower.trunk, "num_prefix_tokens", 0) :]
    if getattr(tower.trunk, "output_fmt", "NCHW") == "NHWC":
        return embedding, features.flatten(1, 2)
    return embedding, features.flatten(2).transpose(1, 2)


def _resnet_forward(tower: ModifiedResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    features = tower.stem(images)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        features = layer(features)
    return tower.attnpool(features), features.flatten(2).transpose(1, 2)


def create_model(options: EncoderOptions) -> tuple[Any, bool]:
    """The open_clip model, and whether its activation is QuickGELU."""
    schema, name = parse_model_name(options.model)
    random = options.pretrained == "none"
    quick_gelu = False
    if schema is None:
        if name not in open_clip.list_models():
            raise InputError(
                f"encoder.model: open_clip has no model `{name}`; see open_clip.list_models(), "
                "or use local-dir:PATH or hf-hub:NAME"
            )
        # OpenAI's weights were trained with QuickGELU, which open_clip's plain names lack.
        tag = {} if random else get_pretrained_cfg(name, options.pretrained)
        configured = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
        quick_gelu = bool(configured or tag.get("quick_gelu", False))
        if not random and not tag and not os.path.isfile(options.pretrained):
            tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
            raise InputError(
                f"encoder.pretrained: `{options.pretrained}` is neither a file nor weights that "
                f"open_clip knows for {name} (known: {tags})"
            )
    elif schema == "local-dir" and not storage.exists(storage.join(name, tower_copy.CONFIG)):
        raise InputError(f"encoder.model: {name} has no {tower_copy.CONFIG}")
    elif schema == "local-dir" and "://" in name:  # on an object store
        with storage.local_copy(name) as here:
            try:
                return create_model(options.model_copy(update={"model": f"local-dir:{here}"}))
            except InputError as error:
                raise InputError(str(error).replace(here, name)) from error
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(options.seed)
            model = open_clip.create_model(
                options.model,
                pretrained=options.pretrained if schema is None and not random else None,
                load_weights=not random,
                require_pretrained=not random,
                force_quick_gelu=quick_gelu,
                force_image_size=options.image_size,
                force_preprocess_cfg=(
                    {"resize_mode": options.resize_mode} if options.resize_mode else None
                ),
            )
    except Exception as error:
        if random:
            raise
        raise InputError(_no_weights(options, schema, name, error)) from error
    # local-dir: and hf-hub: models bring their activation in their own configuration.
    return model, any(isinstance(module, QuickGELU) for module in model.visual.modules())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns on the root logger of random weights; the identity says so already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def _no_weights(options: EncoderOptions, schema: str | None, name: str, error: Exception) -> str:
    """Which weights could not be had, from where, and how to give a local file."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if schema == "local-dir":
        return f"encoder.model: no weights could be loaded from {name}: {reason}"
    if schema == "hf-hub":
        return (
            f"encoder.model: {name} could not be fetched from the Hugging Face hub: {reason}\n"
            "Copy that repository to a directory and set encoder.model=local-dir:PATH"
        )
    source = get_pretrained_cfg(name, options.pretrained)
    places = [source["url"]] if source.get("url") else []
    places += [f"hf-hub:{source['hf_hub'].rstrip('/')}"] if source.get("hf_hub") else []
    # A weights file carries no activation, so the name has to.
    local = f"{name}-quickgelu" if source.get("quick_gelu") and "quickgelu" not in name else name
    return (
        f"encoder.pretrained: the {options.pretrained} weights of {name} could not be loaded "
        f"from {' or '.join(places) or options.pretrained}: {reason}\n"
        f"With a local file: encoder.model={local} encoder.pretrained=/path/to/weights. "
        "For a trial without weights: encoder.pretrained=none (random, captions mean nothing)."
    )


def preprocessing_of(tower: Any) -> Preprocessing:
    """How open_clip says that this image tower wants its images."""
    settings = tower.preprocess_cfg
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(
        height=height,
        width=width,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        resize_mode=settings["resize_mode"],
        fill_color=settings["fill_color"],
    )


def weights_digest(tower: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model, before any cast."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().cpu().numpy().reshape(-1)).cast("B"))
    return digest.hexdigest()
