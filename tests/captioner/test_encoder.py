from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captioner.config import Encoder as Options
from captioner.encoder import Encoder, Tower
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.images import decode

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}


def timm(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
        **changes,
    }


# name: (vision_cfg, patches, channels)
TOWERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit": (VIT, 16, 32),
    "vit with average pooling": ({**VIT, "pool_type": "avg"}, 16, 32),
    "modified resnet": (RESNET, 4, 256),
    "timm vit": (timm("test_vit", timm_pool="token", image_size=160), 100, 64),
    "timm vit without a class token": (
        timm("test_vit_relpos", timm_pool="", image_size=160),
        100,
        96,
    ),
    "timm efficientnet": (timm("test_efficientnet"), 4, 256),
    "timm resnet, classifier as projection": (timm("test_resnet", timm_proj=None), 4, 96),
    "timm mambaout, channels last": (timm("test_mambaout", timm_proj=None), 4, 64),
}


@pytest.fixture
def tower(tmp_path: Path) -> Callable[..., str]:
    """Writes a model directory in open_clip's format and names it."""

    def write(vision: dict[str, Any] = VIT, preprocess: Any = None, **model: Any) -> str:
        config: dict[str, Any] = {
            "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **model}
        }
        if preprocess:
            config["preprocess_cfg"] = preprocess
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        return f"local-dir:{tmp_path}"

    return write


def random_encoder(model: str, **options: Any) -> Encoder:
    # Not "auto": what is exact must be so on a CPU with bf16 units too.
    return Encoder(
        Options(**{"model": model, "pretrained": "none", "precision": "float32", **options})
    )


def noise(images: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)


def reference(model: str, seed: int = 0) -> tuple[Any, Any]:
    """open_clip's own model with the same seeded weights, and its own preprocessing."""
    torch.manual_seed(seed)
    own, _, preprocess = open_clip.create_model_and_transforms(model, load_weights=False)
    return own.eval(), preprocess


@torch.inference_mode()
def reference_embedding(model: str, pixels: NDArray[np.uint8]) -> Tensor:
    own, preprocess = reference(model)
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    embedding: Tensor = own.encode_image(batch)
    return embedding


@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_gives_open_clips_embedding_and_its_patches(
    name: str, tower: Callable[..., str]
) -> None:
    vision, patches, channels = TOWERS[name]
    model = tower(vision)
    encoder = random_encoder(model)
    pixels = noise(3, vision["image_size"])
    embedding, tokens = encoder.encode(pixels)
    assert tokens is not None
    assert (embedding.shape, embedding.dtype) == ((3, 24), torch.float16)
    assert (tokens.shape, tokens.dtype) == ((3, patches, channels), torch.float16)
    expected = reference_embedding(model, pixels)
    assert expected.std() > 1e-4
    tolerance = 2e-3 * float(expected.abs().max())
    torch.testing.assert_close(embedding.float(), expected, rtol=2e-3, atol=tolerance)
    sizes = encoder.identity.embedding_size, encoder.identity.patches, encoder.identity.channels
    assert sizes == (24, patches, channels)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_that_was_sent_needs_no_files_and_is_left_as_it_is(
    name: str, tower: Callable[..., str], tmp_path: Path
) -> None:
    vision, _, _ = TOWERS[name]
    options = Options(model=tower(vision), pretrained="none", precision="bfloat16")
    sent = pickle.dumps(Tower.load(options))
    here = Encoder(options)
    (tmp_path / "open_clip_config.json").unlink()
    arrived = pickle.loads(sent)  # noqa: S301 - as Ray does between its own processes
    there = Encoder(options, tower=arrived)
    assert there.identity == here.identity
    pixels = noise(2, vision["image_size"])
    for mine, theirs in zip(here.encode(pixels), there.encode(pixels)):
        torch.testing.assert_close(theirs, mine)
    assert all(value.dtype != torch.bfloat16 for value in arrived.visual.state_dict().values())


@pytest.mark.parametrize("name", TOWERS)
def test_an_empty_batch_is_encoded(name: str, tower: Callable[..., str]) -> None:
    vision, patches, channels = TOWERS[name]
    embedding, tokens = random_encoder(tower(vision)).encode(noise(0, vision["image_size"]))
    assert embedding.shape == (0, 24)
    assert tokens is not None
    assert tokens.shape == (0, patches, channels)


@pytest.mark.parametrize("name", TOWERS)
def test_an_image_is_encoded_alike_alone_and_in_a_batch(
    name: str, tower: Callable[..., str]
) -> None:
    vision = TOWERS[name][0]
    encoder, pixels = random_encoder(tower(vision)), noise(11, vision["image_size"])
    together, alone = encoder.encode(pixels), encoder.encode(pixels[9:10])
    for many, one in zip(together, alone):
        assert many is not None
        assert one is not None
        assert len(many) == 11
        tolerance = 2e-3 * float(many.abs().max())
        torch.testing.assert_close(many[9:10], one, rtol=2e-3, atol=tolerance)


def test_vit_tokens_are_the_patches_after_the_last_norm(tower: Callable[..., str]) -> None:
    model = tower()
    pixels = noise(2, 32)
    _, tokens = random_encoder(model).encode(pixels)
    own, preprocess = reference(model)
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    with torch.inference_mode():
        own.visual.output_tokens = True
        _, expected = own.visual(batch)
    assert tokens is not None
    torch.testing.assert_close(tokens.float(), expected, rtol=2e-3, atol=2e-3)


def test_convolutional_tokens_run_along_the_rows_of_the_image(tower: Callable[..., str]) -> None:
    model = tower(timm("test_efficientnet"))
    pixels = noise(1, 64)
    _, tokens = random_encoder(model).encode(pixels)
    own, preprocess = reference(model)
    with torch.inference_mode():
        image = preprocess(Image.fromarray(pixels[0])).unsqueeze(0)
        grid = own.visual.trunk.forward_features(image)[0]  # (channels, 2, 2)
    assert tokens is not None
    expected = torch.stack([grid[:, row, column] for row in (0, 1) for column in (0, 1)])
    tolerance = 2e-3 * float(expected.abs().max())
    torch.testing.assert_close(tokens[0].float(), expected, rtol=2e-3, atol=tolerance)


def test_a_decoded_photograph_is_encoded_as_open_clip_does_it(
    tower: Callable[..., str], tmp_path: Path
) -> None:
    settings = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "resize_mode": "longest",
        "fill_color": 99,
    }
    model = tower(preprocess=settings)
    encoder = random_encoder(model)
    picture = encoder.identity.preprocessing
    assert (picture.height, picture.width, picture.fill_color) == (32, 32, 99)
    assert (picture.mean, picture.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (picture.interpolation, picture.resize_mode) == ("bilinear", "longest")

    photograph = Image.fromarray(np.random.default_rng(1).integers(0, 256, (61, 90, 3), np.uint8))
    photograph.save(tmp_path / "photograph.png")
    decoded = decode((tmp_path / "photograph.png").read_bytes(), picture, 10**6)
    assert decoded.pixels is not None
    embedding, _ = encoder.encode(np.stack([decoded.pixels]))
    own, preprocess = reference(model)
    with torch.inference_mode():
        expected = own.encode_image(preprocess(photograph).unsqueeze(0))
    torch.testing.assert_close(embedding.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(
    tower: Callable[..., str],
) -> None:
    model = tower()
    first, again, other = (random_encoder(model, seed=seed) for seed in (5, 5, 6))
    assert first.identity == again.identity
    assert first.identity.weights_sha256 != other.identity.weights_sha256
    pixels = noise(1, 32)
    assert torch.equal(first.encode(pixels)[0], again.encode(pixels)[0])
    assert not torch.equal(first.encode(pixels)[0], other.encode(pixels)[0])


def test_the_global_random_state_is_left_alone(tower: Callable[..., str]) -> None:
    model = tower()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    random_encoder(model, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_weights_beside_the_configuration_are_loaded(
    tower: Callable[..., str], tmp_path: Path
) -> None:
    model = tower()
    own, _ = reference(model, seed=3)
    safetensors.torch.save_file(own.state_dict(), tmp_path / "open_clip_model.safetensors")
    loaded = Encoder(Options(model=model, pretrained="openai")).identity
    assert loaded.weights_sha256 == random_encoder(model, seed=3).identity.weights_sha256
    assert loaded.weights_sha256 != random_encoder(model, seed=0).identity.weights_sha256
    assert loaded.pretrained == "its own"
    assert loaded.has_real_weights
    assert "RANDOM" not in loaded.describe()


def test_weights_beside_the_configuration_are_left_where_none_are_asked_for(
    tower: Callable[..., str], tmp_path: Path
) -> None:
    model = tower()
    own, _ = reference(model, seed=3)
    before = random_encoder(model).identity
    safetensors.torch.save_file(own.state_dict(), tmp_path / "open_clip_model.safetensors")
    assert random_encoder(model).identity == before
    assert not before.has_real_weights
    assert "RANDOM WEIGHTS" in before.describe()


def test_a_directory_without_weights_is_refused(tower: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no weights could be loaded from {tmp_path}"):
        Encoder(Options(model=tower()))


def test_weights_of_another_shape_are_refused(tower: Callable[..., str], tmp_path: Path) -> None:
    other, _ = reference(tower({**VIT, "width": 16}))
    safetensors.torch.save_file(other.state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=f"no weights could be loaded from {tmp_path}"):
        Encoder(Options(model=tower()))


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} has no open_clip_config.json"):
        random_encoder(f"local-dir:{tmp_path}")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"encoder\.model: open_clip has no model `ViT-Z-99`"):
        Encoder(Options(model="ViT-Z-99"))


def test_an_unknown_weights_tag_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as refusal:
        Encoder(Options(model="ViT-B-32", pretrained="opneai"))
    message = str(refusal.value)
    assert "encoder.pretrained: `opneai`" in message
    assert "openai, laion400m_e31" in message
    assert "laion2b_s34b_b79k" in message


def test_tokens_are_left_out_where_they_are_not_wanted(tower: Callable[..., str]) -> None:
    model = tower()
    lean, full = random_encoder(model, tokens=False), random_encoder(model)
    embedding, tokens = lean.encode(noise(2, 32))
    assert tokens is None
    assert torch.equal(embedding, full.encode(noise(2, 32))[0])
    assert (lean.identity.patches, lean.identity.channels) == (0, 0)


@pytest.mark.parametrize(
    ("name", "size", "patches"), [("vit", 48, 36), ("timm resnet, classifier as projection", 96, 9)]
)
def test_a_larger_image_gives_more_tokens_of_the_same_tower(
    tower: Callable[..., str], name: str, size: int, patches: int
) -> None:
    model = tower(TOWERS[name][0])
    identity = random_encoder(model, image_size=size, resize_mode="squash").identity
    target = identity.preprocessing
    assert (target.height, target.width, target.resize_mode) == (size, size, "squash")
    assert identity.patches == patches
    assert random_encoder(model).identity.difference(identity) is not None


def test_a_squashed_image_keeps_what_a_crop_cuts_off(tower: Callable[..., str]) -> None:
    wide = Image.new("RGB", (96, 32), "green")
    wide.paste("red", (0, 0, 8, 32))
    file = io.BytesIO()
    wide.save(file, "PNG")
    seen = []
    for mode in ("shortest", "squash"):
        target = random_encoder(tower(), resize_mode=mode).identity.preprocessing
        pixels = decode(file.getvalue(), target, 10_000).pixels
        assert pixels is not None
        seen.append(int(pixels[:, 0, 0].max()) > 200)
    assert seen == [False, True]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_gives_nearly_the_same_features_from_the_same_weights(
    precision: str, tower: Callable[..., str]
) -> None:
    model, pixels = tower(), noise(2, 32)
    low, full = random_encoder(model, precision=precision), random_encoder(model)
    assert low.identity == full.identity
    found, expected = (encoder.encode(pixels)[0].float() for encoder in (low, full))
    assert not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected).min() > 0.99


@pytest.fixture
def create_model_fails(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """open_clip without a network; what it was asked for."""
    calls: list[dict[str, Any]] = []

    def create_model(model_name: str, **options: Any) -> None:
        calls.append({"model_name": model_name, **options})
        raise OSError("Network is unreachable")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    return calls


@pytest.mark.parametrize(
    ("model", "pretrained", "quick_gelu"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-L-14", "openai", True),
        ("ViT-B-32", "metaclip_400m", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32-quickgelu", "laion400m_e32", True),
        ("ViT-B-32", "laion2b_e16", False),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "datacomp_xl_s13b_b90k", False),
    ],
)
def test_the_activation_is_that_which_the_weights_were_trained_with(
    model: str, pretrained: str, quick_gelu: bool, create_model_fails: list[dict[str, Any]]
) -> None:
    with pytest.raises(InputError):
        Encoder(Options(model=model, pretrained=pretrained))
    (call,) = create_model_fails
    assert call["model_name"] == model
    assert call["pretrained"] == pretrained
    assert call["force_quick_gelu"] is quick_gelu
    assert call["load_weights"] is call["require_pretrained"] is True


@pytest.mark.parametrize(("model", "quick_gelu"), [("ViT-B-32", False), ("RN50-quickgelu", True)])
def test_the_activation_of_a_weights_file_is_that_of_the_models_name(
    model: str, quick_gelu: bool, create_model_fails: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError):
        Encoder(Options(model=model, pretrained=str(tmp_path / "weights.pt")))
    assert create_model_fails[0]["force_quick_gelu"] is quick_gelu
    assert create_model_fails[0]["pretrained"] == str(tmp_path / "weights.pt")


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_identity_knows_the_activation_of_a_directory(
    quick_gelu: bool, tower: Callable[..., str]
) -> None:
    assert random_encoder(tower(quick_gelu=quick_gelu)).identity.quick_gelu is quick_gelu


@pytest.mark.usefixtures("create_model_fails")
def test_without_a_network_the_message_says_what_from_where_and_how_else() -> None:
    with pytest.raises(InputError) as refusal:
        Encoder(Options(model="ViT-B-32", pretrained="openai"))
    message = str(refusal.value)
    assert "the openai weights of ViT-B-32 could not be loaded" in message
    assert "https://openaipublic.azureedge.net/clip/models/" in message
    assert "hf-hub:timm/vit_base_patch32_clip_224.openai:" in message
    assert "OSError: Network is unreachable" in message
    # A plain ViT-B-32 would run OpenAI's weights with the wrong activation.
    assert "encoder.model=ViT-B-32-quickgelu encoder.pretrained=/path/to/weights" in message


@pytest.mark.usefixtures("create_model_fails")
def test_without_a_network_the_plain_name_is_kept_where_it_fits() -> None:
    with pytest.raises(InputError, match=r"encoder\.model=ViT-B-32 encoder\.pretrained=/path"):
        Encoder(Options(model="ViT-B-32", pretrained="laion2b_e16"))


@pytest.mark.usefixtures("create_model_fails")
def test_without_a_network_a_hub_model_can_be_a_directory() -> None:
    with pytest.raises(InputError, match=r"laion/CLIP .*unreachable\n.*local-dir:PATH"):
        Encoder(Options(model="hf-hub:laion/CLIP"))


def test_an_identity_survives_json(make_identity: Callable[..., EncoderIdentity]) -> None:
    identity = make_identity()
    told = {**identity.to_dict(), "known to another version": 1}
    again = EncoderIdentity.from_dict(json.loads(json.dumps(told)))
    assert again == identity
    assert hash(again) == hash(identity)


def test_an_identity_does_not_differ_by_name_or_version(
    make_identity: Callable[..., EncoderIdentity],
) -> None:
    identity = make_identity()
    assert identity.difference(copy.deepcopy(identity)) is None
    assert identity.difference(make_identity(model="elsewhere", library="open_clip 4")) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("weights_sha256", "1" * 64), ("quick_gelu", True), ("patches", 0), ("channels", 9)],
)
def test_an_identity_differs_by_what_changes_the_features(
    key: str, value: Any, make_identity: Callable[..., EncoderIdentity]
) -> None:
    mine, other = make_identity(), make_identity(**{key: value})
    assert mine.difference(other) == f"{key}: {getattr(mine, key)} against {value}"


def test_an_identity_differs_by_preprocessing(
    make_identity: Callable[..., EncoderIdentity],
) -> None:
    mine = make_identity()
    picture = copy.copy(mine.preprocessing)
    object.__setattr__(picture, "resize_mode", "squash")
    assert str(mine.difference(make_identity(preprocessing=picture))).startswith("preprocessing: ")


def test_the_precision_of_a_cpu_is_that_of_its_units(tower: Callable[..., str]) -> None:
    chosen = random_encoder(tower(), precision="auto")
    has_units = torch.cpu._is_avx512_bf16_supported()
    as_said = random_encoder(tower(), precision="bfloat16" if has_units else "float32")
    picture = noise(3, 32)
    assert torch.equal(chosen.encode(picture)[0], as_said.encode(picture)[0])


def test_a_compiled_tower_gives_the_same_for_batches_of_any_size(
    tower: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced, but not turned into C++: that is torch's own, and takes most of a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tower({**VIT, "layers": 1})
    plain, compiled = (
        random_encoder(model, compile=compile, batch_size=4) for compile in (False, True)
    )
    for count in (4, 3, 1):
        expected, tokens = plain.encode(noise(count, 32))
        found, found_tokens = compiled.encode(noise(count, 32))
        assert found.shape == expected.shape
        assert torch.allclose(found.float(), expected.float(), atol=1e-2)
        assert tokens is not None
        assert found_tokens is not None
        assert torch.allclose(found_tokens.float(), tokens.float(), atol=1e-2)
