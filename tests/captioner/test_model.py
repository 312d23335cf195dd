from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from captioner import configuration, decoders, model, model_files, storage
from captioner.config import Search
from captioner.consensus import agreement
from captioner.decoders import onednn
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.model import CaptionModel
from captioner.vocabulary import SPECIAL, Vocabulary

MakeIdentity = Callable[..., EncoderIdentity]
WORDS = ["a", "dog", "cat", "runs", "sleeps", "on", "grass", "two"]
SEARCH = Search(beam_size=3, max_words=8)
PARTS = ["config.yaml", "decoder.safetensors", "encoder.json", "vocabulary.json"]


@pytest.fixture(params=["additive", "none"])
def made(request: pytest.FixtureRequest, make_identity: MakeIdentity) -> CaptionModel:
    """A model with random weights, scaled up so that its captions differ."""
    values: dict[str, Any] = {
        "name": "n",
        "run": "/runs/n",
        "source": {"images": "/photos"},
        "decoder": {
            "attention": request.param,
            "embed_size": 8,
            "hidden_size": 10,
            "attention_size": 9,
        },
    }
    job = configuration.parse(values, "test")
    identity = make_identity()
    vocabulary = Vocabulary([*SPECIAL, *WORDS])
    torch.manual_seed(0)
    decoder = decoders.build(job.decoder, identity, len(vocabulary)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3.0)
    return CaptionModel(decoder, vocabulary, job, identity)


def save(made: CaptionModel, url: str) -> None:
    model.write_description(url, made.config, made.vocabulary, made.encoder)
    model.save_weights(storage.join(url, model_files.WEIGHTS), made.decoder)


def features(images: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    dice = np.random.default_rng(0)
    embedding = dice.normal(size=(images, 6)).astype(np.float16)
    return embedding, dice.normal(size=(images, 4, 5)).astype(np.float16)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_saved_model_gives_the_same_captions_when_loaded(
    made: CaptionModel, tmp_path: Path, memory_root: str, place: str
) -> None:
    url = f"{tmp_path}/model" if place == "local" else f"{memory_root}/model"
    save(made, url)
    loaded = CaptionModel.load(url)
    expected = made.caption(*features(6), SEARCH)
    assert len({caption.text for caption in expected}) > 1
    assert loaded.caption(*features(6), SEARCH) == expected
    assert (loaded.config, loaded.encoder) == (made.config, made.encoder)
    assert loaded.vocabulary.words == made.vocabulary.words
    assert not loaded.decoder.training


def test_products_of_onednn_make_the_same_captions(
    made: CaptionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_NARROW", 2)
    found, asked = [], []
    for worthwhile in (False, True):

        def answer(device: torch.device, dtype: torch.dtype, worthwhile: bool = worthwhile) -> bool:
            asked.append((device.type, dtype))
            return worthwhile

        monkeypatch.setattr(onednn, "worthwhile", answer)
        found.append(made.caption(*features(6), SEARCH))
        assert ("_on_onednn" in vars(made)) is worthwhile
    assert asked == [("cpu", torch.float32)] * 2
    again = copy.deepcopy(made)  # by what Ray would send
    assert again.caption(*features(6), SEARCH) == found[1]
    assert [caption.text for caption in found[0]] == [caption.text for caption in found[1]]
    assert [caption.log_probability for caption in found[0]] == pytest.approx(
        [caption.log_probability for caption in found[1]], rel=1e-4
    )


@pytest.mark.parametrize("made", ["none"], indirect=True)
def test_torch_has_no_more_threads_than_openmp_may_have(made: CaptionModel, tmp_path: Path) -> None:
    """Told of more, it gets wrong numbers of oneDNN."""
    save(made, f"{tmp_path}/model")
    code = f"""
import torch
from captioner.model import CaptionModel
torch.set_num_threads(4)
CaptionModel.load({str(tmp_path / "model")!r})
print(torch.get_num_threads())
"""
    for limit, threads in (("1", "1"), ("", "4"), ("9", "4")):
        environment = {**os.environ, "OMP_THREAD_LIMIT": limit}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == threads


def test_captions_are_words_of_the_vocabulary_with_a_probability(made: CaptionModel) -> None:
    for caption in made.caption(*features(6), SEARCH):
        assert set(caption.text.split()) <= set(WORDS)
        assert -1000 < caption.log_probability < 0


def test_the_best_captions_come_with_their_probabilities(made: CaptionModel) -> None:
    options = SEARCH.model_copy(update={"n_best": 3})
    for caption, alone in zip(
        made.caption(*features(6), options), made.caption(*features(6), SEARCH)
    ):
        assert (caption.text, caption.log_probability) == caption.n_best[0]
        assert (alone.text, alone.n_best) == (caption.text, ())
        assert len({text for text, _ in caption.n_best}) == 3


def test_consensus_orders_the_best_captions_too(made: CaptionModel) -> None:
    options = Search(beam_size=6, max_words=8, consensus=0.0, n_best=6)
    for caption in made.caption(*features(6), options):
        texts = [text.split() for text, _ in caption.n_best]
        merit = agreement([texts], np.array([[log for _, log in caption.n_best]]), 0.0)[0]
        assert (np.diff(merit) <= 1e-9).all()
        assert caption.text == caption.n_best[0][0]


def test_confidence_is_the_mean_probability_of_words_and_end(made: CaptionModel) -> None:
    for caption in made.caption(*features(6), SEARCH):
        tokens = len(caption.text.split()) + 1
        assert caption.confidence == pytest.approx(np.exp(caption.log_probability / tokens))


def test_what_is_drawn_depends_on_the_image_and_the_seed_alone(made: CaptionModel) -> None:
    options = Search(method="sample", beam_size=1, max_words=8, seed=1)
    embedding, tokens = features(6)
    ids = [f"{number}.jpg" for number in range(6)]
    together = made.caption(embedding, tokens, options, ids)
    for number, image_id in enumerate(ids):
        one = slice(number, number + 1)
        (alone,) = made.caption(embedding[one], tokens[one], options, [image_id])
        assert alone.text == together[number].text
    other = made.caption(embedding, tokens, options.model_copy(update={"seed": 2}), ids)
    assert [caption.text for caption in other] != [caption.text for caption in together]


def test_words_are_required_and_banned_by_name(made: CaptionModel) -> None:
    options = SEARCH.model_copy(update={"required_words": ["Cat"], "banned_words": ["dog", "elk"]})
    for caption in made.caption(*features(6), options):
        assert "cat" in caption.text.split()
        assert "dog" not in caption.text.split()
    with pytest.raises(InputError, match="does not know 'elk'"):
        made.caption(*features(6), SEARCH.model_copy(update={"required_words": ["elk"]}))


def test_where_no_caption_has_a_probability_the_reason_is_named(made: CaptionModel) -> None:
    forbidden = Search(beam_size=2, max_words=8, min_words=2, banned_words=WORDS)
    for search in (forbidden, forbidden.model_copy(update={"method": "sample"})):
        with pytest.raises(InputError, match=r"search\.banned_words"):
            made.caption(*features(2), search)
    with torch.no_grad():
        made.decoder.words.weight.fill_(float("nan"))
    for search in (SEARCH, SEARCH.model_copy(update={"consensus": 0.5})):
        with pytest.raises(InputError, match="weights are not numbers"):
            made.caption(*features(2), search)


@pytest.mark.parametrize("options", [SEARCH, Search(method="sample", beam_size=2, max_words=8)])
def test_an_image_without_numbers_costs_the_others_nothing(
    made: CaptionModel, options: Search
) -> None:
    embedding, tokens = features(6)
    expected = [caption.text for caption in made.caption(embedding, tokens, options)]
    embedding[2, 0] = np.nan
    found = made.caption(embedding, tokens, options)
    assert found.pop(2) is None
    assert [caption.text for caption in found] == expected[:2] + expected[3:]
    assert made.caption(embedding[2:3], tokens[2:3], options) == [None]


def test_no_images_get_no_captions(made: CaptionModel) -> None:
    assert made.caption(*features(0), SEARCH) == []


@pytest.mark.parametrize("made", ["none"], indirect=True)
def test_without_attention_captions_need_no_tokens(made: CaptionModel) -> None:
    embedding, tokens = features(3)
    assert made.caption(embedding, None, SEARCH) == made.caption(embedding, tokens, SEARCH)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(made: CaptionModel, tmp_path: Path, part: str) -> None:
    save(made, str(tmp_path))
    (tmp_path / part).unlink()
    with pytest.raises(InputError) as refusal:
        CaptionModel.load(str(tmp_path))
    assert str(refusal.value) == f"{tmp_path}: not a model directory: {part} missing"


@pytest.mark.parametrize("part", [part for part in PARTS if part != model_files.CONFIG])
@pytest.mark.parametrize("left", [0, 40, 0.9])
def test_a_damaged_part_is_named(
    made: CaptionModel, tmp_path: Path, part: str, left: float
) -> None:
    """An interrupted copy is."""
    save(made, str(tmp_path))
    whole = (tmp_path / part).read_bytes()
    most = left if isinstance(left, int) else round(left * len(whole))
    (tmp_path / part).write_bytes(whole[:most])
    with pytest.raises(InputError, match=rf"{tmp_path}/{part}: "):
        CaptionModel.load(str(tmp_path))


def test_parts_of_two_models_are_not_put_together(made: CaptionModel, tmp_path: Path) -> None:
    save(made, str(tmp_path))
    other = Vocabulary([*SPECIAL, *WORDS, "more"])
    (tmp_path / model_files.VOCABULARY).write_text(other.to_json())
    with pytest.raises(InputError, match=r"decoder\.safetensors: damaged, or of another model"):
        CaptionModel.load(str(tmp_path))


def test_a_place_without_a_model_is_refused_with_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: not a model") as refusal:
        CaptionModel.load(f"{tmp_path}/nowhere")
    assert all(part in str(refusal.value) for part in PARTS)


def test_a_model_directory_holds_no_pickles(made: CaptionModel, tmp_path: Path) -> None:
    save(made, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == PARTS


def test_features_of_the_same_encoder_are_accepted(
    made: CaptionModel, make_identity: MakeIdentity
) -> None:
    made.check_encoder(make_identity(), "features")
    made.check_encoder(make_identity(model="local-dir:moved/elsewhere"), "features")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"weights_sha256": "f" * 64}, f"weights_sha256: {'0' * 64} against {'f' * 64}"),
        ({"quick_gelu": True}, "quick_gelu: False against True"),
        ({"patches": 0, "channels": 0}, "patches: 4 against 0"),
    ],
)
def test_features_of_another_encoder_are_refused_by_what_differs(
    made: CaptionModel, make_identity: MakeIdentity, change: dict[str, Any], difference: str
) -> None:
    with pytest.raises(InputError) as refusal:
        made.check_encoder(make_identity(model="other", **change), "/run/features")
    message = str(refusal.value)
    assert message.startswith("/run/features: these features are of another encoder (other, ")
    assert message.endswith(difference)


@pytest.mark.parametrize("made", ["additive"], indirect=True)
def test_attention_is_told_for_every_word_and_the_end(made: CaptionModel) -> None:
    captions = ["a dog runs", "two cat", ""]
    looks = made.attention(*features(3), captions)
    assert [words for words, _ in looks] == [
        ["a", "dog", "runs", "<EOS>"],
        ["two", "cat", "<EOS>"],
        ["<EOS>"],
    ]
    for words, weights in looks:
        assert weights.shape == (len(words), 4)
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("made", ["additive"], indirect=True)
def test_attention_is_what_the_decoder_looked_at_before_each_word(made: CaptionModel) -> None:
    embedding, tokens = features(1)
    ((words, weights),) = made.attention(embedding, tokens, ["two cat sleeps"])
    assert len(words) == 4
    with torch.inference_mode():
        memory = made.decoder.memory(torch.tensor(embedding).float(), torch.tensor(tokens).float())
        state = made.decoder.start(memory, rows=1)
        for row, word in enumerate(["<SOS>", "two", "cat", "sleeps"]):
            number = torch.tensor([[made.vocabulary.words.index(word)]])
            _, state, look = made.decoder.step(number, state, memory)
            np.testing.assert_allclose(weights[row], look[0, 0].numpy(), rtol=1e-4)


@pytest.mark.parametrize("made", ["additive"], indirect=True)
def test_attention_is_that_of_the_image_the_caption_belongs_to(made: CaptionModel) -> None:
    embedding, tokens = features(3)
    looks = made.attention(embedding, tokens, ["a dog"] * 3)
    alone = made.attention(embedding[2:], tokens[2:], ["a dog"])
    np.testing.assert_allclose(looks[2][1], alone[0][1], rtol=1e-5)
    assert not np.allclose(looks[0][1], looks[2][1], rtol=1e-3)
