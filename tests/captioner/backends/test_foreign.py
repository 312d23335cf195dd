"""Somebody else's captioners caption as their own libraries do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from captioner import backends
from captioner.config import Encoder, Search
from captioner.errors import InputError
from captioner.selection import Caption
from tests.foreign import SIDE, save

KINDS = ("blip", "git", "vit-gpt2")
EXACT = Encoder(precision="float32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {kind: save(kind, root / kind) for kind in (*KINDS, "coca")}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    dice = np.random.default_rng(0)
    coarse = dice.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)


def search(beams: int, **changes: Any) -> Search:
    options = {"repetition_penalty": 1.0, "max_words": 8, "length_penalty": 1.0}
    return Search(beam_size=beams, **{**options, **changes})


def model_of(saved: dict[str, Path], kind: str) -> str:
    return f"coca:local-dir:{saved[kind]}" if kind == "coca" else f"hf:{saved[kind]}"


def captioned(backend: backends.Backend, pixels: Any, options: Search) -> list[Caption]:
    return backend.caption(pixels, options, [f"{number}.jpg" for number in range(len(pixels))])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_and_their_probability_are_those_of_transformers(
    saved: dict[str, Path], pixels: Any, kind: str, beams: int
) -> None:
    """Taken one image at a time, through its own processor; the images need no resizing."""
    backend = backends.load(f"hf:{saved[kind]}", EXACT, search(beams))
    captions = captioned(backend, pixels, search(beams))
    model = AutoModelForImageTextToText.from_pretrained(saved[kind]).eval()
    processor = AutoImageProcessor.from_pretrained(saved[kind])
    tokenizer = AutoTokenizer.from_pretrained(saved[kind])
    for image, caption in zip(pixels, captions):
        inputs = processor(images=Image.fromarray(image), return_tensors="pt")
        ids = model.generate(**inputs, num_beams=beams, max_new_tokens=8, do_sample=False)
        said = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert caption.text == " ".join(said.split())
        assert caption.log_probability < 0
    # With random weights, images change what is said less than how sure it is.
    assert len({round(caption.log_probability, 4) for caption in captions}) > 1


@pytest.mark.parametrize("kind", ["git", "coca"])
def test_their_process_is_made_ready_as_for_a_model_trained_here(
    saved: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    torch.set_num_threads(2)
    try:
        backends.load(model_of(saved, kind), EXACT, search(1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_probability_is_that_of_the_words_and_the_end(
    saved: dict[str, Path], pixels: Any, beams: int
) -> None:
    """As teacher forcing finds it."""
    directory = saved["vit-gpt2"]
    backend = backends.load(f"hf:{directory}", EXACT, search(beams))
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    normal = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    for image, caption in zip(normal, captioned(backend, pixels, search(beams))):
        with torch.inference_mode():
            (ids,) = model.generate(
                pixel_values=image[None], num_beams=beams, max_new_tokens=8, do_sample=False
            )
            ended = (ids == 2).nonzero().flatten().tolist()
            ids = ids[: ended[0] + 1] if ended else ids
            logits = model(pixel_values=image[None], decoder_input_ids=ids[None, :-1]).logits[0]
        each = logits.log_softmax(-1).gather(-1, ids[1:].unsqueeze(-1))
        assert caption.log_probability == pytest.approx(float(each.sum()), abs=1e-3)


@pytest.mark.parametrize("kind", [*KINDS, "coca"])
def test_a_batch_is_captioned_as_its_images_alone(
    saved: dict[str, Path], pixels: Any, kind: str
) -> None:
    name = model_of(saved, kind)
    backend = backends.load(name, EXACT, search(2))
    together = captioned(backend, pixels, search(2))
    alone = [captioned(backend, image[None], search(2))[0] for image in pixels]
    assert [each.text for each in together] == [each.text for each in alone]
    for one, other in zip(together, alone):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)
    assert captioned(backend, pixels[:0], search(2)) == []
    assert len(backend.identity.weights_sha256) == 64
    assert backend.identity.name.endswith(kind)


def test_coca_says_its_likeliest_words(saved: dict[str, Path], pixels: Any) -> None:
    """Greedy, against open_clip's own forward pass, word by word."""
    name = f"local-dir:{saved['coca']}"
    found = captioned(backends.load(f"coca:{name}", EXACT, search(1)), pixels, search(1))
    model = open_clip.create_model(name, require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(name)
    normal = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.25
    for image, caption in zip(normal, found):
        ids = [tokenizer.sot_token_id]
        with torch.inference_mode():
            while len(ids) < 10 and ids[-1] != tokenizer.eot_token_id:
                out = model(image[None], torch.tensor([ids]), output_labels=False)
                logits = out["logits"][0, -1]
                logits[tokenizer.sot_token_id] = -torch.inf
                if len(ids) == 9:
                    logits[: tokenizer.eot_token_id] = -torch.inf
                ids.append(int(logits.argmax()))
        words = [number for number in ids[1:] if number != tokenizer.eot_token_id]
        assert caption.text == tokenizer.decode(words).strip()


def test_images_are_prepared_as_the_captioner_wants_them(saved: dict[str, Path]) -> None:
    modes = {}
    for kind in KINDS:
        seen = backends.load(f"hf:{saved[kind]}", EXACT, search(1)).identity.preprocessing
        assert (seen.height, seen.width) == (SIDE, SIDE)
        modes[kind] = (seen.resize_mode, seen.interpolation)
    assert modes == {
        "blip": ("squash", "bicubic"),
        "git": ("shortest", "bicubic"),
        "vit-gpt2": ("squash", "bilinear"),
    }


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf:{root}/nothing", r"hf:.*nothing: neither a directory"),
        ("coca:no-such-model", "open_clip has no model `no-such-model`"),
        ("coca:ViT-B-32/none", "ViT-B-32 is no CoCa"),
        ("coca:coca_ViT-B-32/{root}/w.pt", r"neither a file .*\n.*coca:coca_ViT-B-32//PATH/TO"),
        ("coca:local-dir:{root}", "has no open_clip_config.json"),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backends.load(model.format(root=tmp_path), EXACT, search(1))


@pytest.mark.parametrize("kind", [*KINDS, "coca"])
def test_weights_that_were_not_copied_whole_are_refused_by_name(
    saved: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    copy = shutil.copytree(saved[kind], tmp_path / kind)
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{tmp_path}/{kind}"):
        backends.load(model_of({kind: copy}, kind), EXACT, search(1))


def test_a_preparation_that_is_not_known_is_refused(saved: dict[str, Path]) -> None:
    config = saved["git"] / "preprocessor_config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(before), "do_center_crop": False}))
        with pytest.raises(InputError, match=r"git: it resizes images to .*shortest_edge"):
            backends.load(f"hf:{saved['git']}", EXACT, search(1))
        config.write_text(json.dumps({**json.loads(before), "resample": 0}))
        with pytest.raises(InputError, match="filter 0"):
            backends.load(f"hf:{saved['git']}", EXACT, search(1))
    finally:
        config.write_text(before)


@pytest.mark.parametrize("kind", [*KINDS, "coca"])
def test_the_best_few_captions_begin_with_the_one_that_is_given(
    saved: dict[str, Path], pixels: Any, kind: str
) -> None:
    name = model_of(saved, kind)
    options = search(3, n_best=3)
    backend = backends.load(name, EXACT, options)
    plain = captioned(backend, pixels, search(3))
    for caption, alone in zip(captioned(backend, pixels, options), plain):
        assert caption.n_best[0] == (caption.text, caption.log_probability)
        assert (caption.text, caption.confidence) == (alone.text, alone.confidence)
        assert alone.n_best == ()
        assert 1 < len(caption.n_best) <= 3
        assert caption.confidence is not None
        assert 0 < caption.confidence < 1


@pytest.mark.parametrize(
    "changes", [{"consensus": 0.5}, {"method": "sample"}, {"groups": 3}, {"banned_words": ["dog"]}]
)
def test_options_are_refused_where_the_library_searches(
    saved: dict[str, Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(
        InputError, match=rf"search\.{next(iter(changes))}: hf:.* searches by itself"
    ):
        backends.load(f"hf:{saved['git']}", EXACT, search(3, **changes))


def test_coca_knows_consensus(saved: dict[str, Path], pixels: Any) -> None:
    agreed = search(4, consensus=0.0)
    backend = backends.load(f"coca:local-dir:{saved['coca']}", EXACT, agreed)
    texts = [caption.text for caption in captioned(backend, pixels, agreed)]
    assert len(texts) == len(pixels)


def test_coca_knows_no_words(saved: dict[str, Path], pixels: Any) -> None:
    options, name = search(2, required_words=["dog"]), f"coca:local-dir:{saved['coca']}"
    with pytest.raises(InputError, match="writes byte pairs"):
        backends.load(name, EXACT, options)


@pytest.mark.parametrize("kind", [*KINDS, "coca"])
def test_captions_longer_than_a_model_has_places_for_are_refused(
    saved: dict[str, Path], pixels: Any, kind: str
) -> None:
    """What is not refused works."""
    name = model_of(saved, kind)
    places = r"search\.max_words: .* has places for \d+ tokens"
    with pytest.raises(InputError, match=places) as told:
        backends.load(name, EXACT, search(1, max_words=5_000, min_words=5_000))
    most = int(re.findall(r"for (\d+) tokens", str(told.value))[0])
    longest = search(1, max_words=most, min_words=most)
    assert captioned(backends.load(name, EXACT, longest), pixels[:1], longest)


@pytest.mark.parametrize("kind", [*KINDS, "coca"])
def test_an_image_that_the_model_makes_no_numbers_of_has_no_caption(
    saved: dict[str, Path], pixels: Any, kind: str
) -> None:
    name = model_of(saved, kind)
    backend = backends.load(name, EXACT, search(3))
    model = backend._coca.visual if kind == "coca" else backend._model  # type: ignore[attr-defined]
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))

    def broken(_: Any, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
        each = len(outputs) // 3  # GIT looks at an image once for every beam
        return outputs.index_fill(0, torch.arange(each, 2 * each), torch.nan)

    with first.register_forward_hook(broken):
        found = captioned(backend, pixels[:3], search(3))
    assert [caption is None for caption in found] == [False, True, False]
    alone = captioned(backend, pixels[[0, 2]], search(3))
    assert [found[0].text, found[2].text] == [caption.text for caption in alone]
