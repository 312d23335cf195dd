from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from captioner import features, training
from captioner.config import Train
from captioner.decoders.lstm import LSTMDecoder
from captioner.training import Batch, Progress, Totals, batch_loss, collate
from captioner.vocabulary import EOS, PAD, SOS, SPECIAL, UNK, Vocabulary

EMBEDDING, PATCHES, CHANNELS = 6, 4, 5
VOCABULARY = Vocabulary([*SPECIAL, "a", "dog", "cat", "runs", "sleeps", "two"])
A, DOG, CAT, RUNS, SLEEPS, TWO = range(4, 10)
CAPTIONS = [
    ["A dog runs.", "Two dog runs.", "A dog."],
    ["A cat sleeps."],
    ["Two cat runs a dog.", "A zebra runs."],
]
CPU = torch.device("cpu")


def feature_rows(captions: Sequence[Sequence[str]], tokens: bool = True) -> pa.Table:
    dice = np.random.default_rng(0)
    every = np.ones(len(captions), dtype=bool)
    rows = len(captions)
    embedding = dice.normal(size=(rows, EMBEDDING)).astype(np.float16)
    columns = {
        "captions": pa.array(captions, pa.list_(pa.string())),
        "embedding": features.column(embedding, every, pa.list_(pa.float16(), EMBEDDING)),
    }
    if tokens:
        values = dice.normal(size=(rows, PATCHES, CHANNELS)).astype(np.float16)
        shape = pa.fixed_shape_tensor(pa.float16(), (PATCHES, CHANNELS))
        columns["tokens"] = features.column(values, every, shape)
    return pa.table(columns)


def make_batch(captions: Sequence[Sequence[str]] = CAPTIONS, **options: Any) -> Batch:
    return collate(feature_rows(captions), VOCABULARY, Train(**options), CPU)


def make_decoder() -> LSTMDecoder:
    torch.manual_seed(0)
    return LSTMDecoder(
        vocabulary_size=len(VOCABULARY),
        embedding_size=EMBEDDING,
        channels=CHANNELS,
        embed_size=8,
        hidden_size=7,
        attention_size=9,
    )


def test_captions_of_an_image_stay_together_and_are_padded() -> None:
    batch = make_batch()
    assert batch.words.tolist() == [
        [
            [SOS, A, DOG, RUNS, EOS, PAD, PAD],
            [SOS, TWO, DOG, RUNS, EOS, PAD, PAD],
            [SOS, A, DOG, EOS, PAD, PAD, PAD],
        ],
        [[SOS, A, CAT, SLEEPS, EOS, PAD, PAD], [PAD] * 7, [PAD] * 7],
        [
            [SOS, TWO, CAT, RUNS, A, DOG, EOS],
            [SOS, A, UNK, RUNS, EOS, PAD, PAD],
            [PAD] * 7,
        ],
    ]
    assert batch.captions == 6


def test_features_become_float32_tensors_in_the_order_of_the_rows() -> None:
    rows = feature_rows(CAPTIONS)
    batch = collate(rows, VOCABULARY, Train(), CPU)
    assert batch.tokens is not None
    assert batch.embedding.dtype == batch.tokens.dtype == torch.float32
    np.testing.assert_array_equal(batch.embedding.numpy(), features.to_numpy(rows["embedding"]))
    np.testing.assert_array_equal(batch.tokens.numpy(), features.to_numpy(rows["tokens"]))


def test_features_without_tokens_make_a_batch_without_them() -> None:
    rows = feature_rows(CAPTIONS, tokens=False)
    assert collate(rows, VOCABULARY, Train(), CPU).tokens is None


def test_rows_of_several_chunks_make_one_batch() -> None:
    rows = feature_rows(CAPTIONS)
    parts = pa.concat_tables([rows[:1], rows[1:]])
    whole, chunked = (collate(table, VOCABULARY, Train(), CPU) for table in (rows, parts))
    assert torch.equal(whole.embedding, chunked.embedding)
    assert whole.tokens is not None
    assert chunked.tokens is not None
    assert torch.equal(whole.tokens, chunked.tokens)
    assert torch.equal(whole.words, chunked.words)


def test_first_takes_one_caption_an_image() -> None:
    batch = make_batch(captions_per_image="first")
    assert batch.words[:, :, :5].tolist() == [
        [[SOS, A, DOG, RUNS, EOS]],
        [[SOS, A, CAT, SLEEPS, EOS]],
        [[SOS, TWO, CAT, RUNS, A]],
    ]
    assert batch.captions == 3


@pytest.mark.parametrize(
    ("max_words", "expected"),
    [
        (1, [SOS, TWO, EOS]),
        (4, [SOS, TWO, CAT, RUNS, A, EOS]),
        (5, [SOS, TWO, CAT, RUNS, A, DOG, EOS]),
        (6, [SOS, TWO, CAT, RUNS, A, DOG, EOS]),
    ],
)
def test_captions_are_cut_to_the_longest_length_and_still_end(
    max_words: int, expected: list[int]
) -> None:
    batch = make_batch([["Two cat runs a dog."]], max_words=max_words)
    assert batch.words.tolist() == [[expected]]


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_every_word_after_the_first() -> None:
    decoder, batch = make_decoder(), make_batch()
    loss, words = batch_loss(decoder, batch)
    expected = 0.0
    counted = 0
    for image, caption in ((i, c) for i in range(3) for c in range(3)):
        ids = [number for number in batch.words[image, caption].tolist() if number != PAD]
        if not ids:
            continue
        one = slice(image, image + 1)
        assert batch.tokens is not None
        logits, _ = decoder(batch.embedding[one], batch.tokens[one], torch.tensor([[ids[:-1]]]))
        log_probabilities = logits[0, 0].log_softmax(-1)
        expected -= sum(float(row[word]) for row, word in zip(log_probabilities, ids[1:]))
        counted += len(ids) - 1
    assert words == counted == 25
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_padding_changes_neither_loss_nor_gradients() -> None:
    batch = make_batch()
    more = torch.full((3, 5, 12), PAD)
    more[:, :3, :7] = batch.words
    results = []
    for words in (batch.words, more):
        decoder = make_decoder()
        loss, count = batch_loss(decoder, Batch(batch.embedding, batch.tokens, words))
        loss.backward()
        gradients = [parameter.grad for parameter in decoder.parameters()]
        results.append((loss.detach(), count, gradients))
    assert results[0][1] == results[1][1]
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-6)


def test_an_epoch_lowers_the_loss_and_adds_up_its_batches() -> None:
    decoder = make_decoder()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    batches = [make_batch(), make_batch(CAPTIONS[:1])]
    epochs = [training.train_epoch(decoder, optimizer, batches, None) for _ in range(5)]
    assert (epochs[0].words, epochs[0].captions, epochs[0].images) == (25 + 11, 6 + 3, 3 + 1)
    assert epochs[-1].loss < 0.9 * epochs[0].loss


def test_the_step_follows_the_mean_loss_of_a_batchs_words() -> None:
    decoder, reference = make_decoder(), make_decoder()
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.1)
    training.train_epoch(decoder, optimizer, [make_batch()], None)
    loss, words = batch_loss(reference, make_batch())
    (loss / words).backward()
    for new, old in zip(decoder.parameters(), reference.parameters()):
        assert old.grad is not None
        torch.testing.assert_close(new, old - 0.1 * old.grad)


def test_gradients_are_clipped_to_the_given_norm() -> None:
    decoder, before = make_decoder(), make_decoder()
    optimizer = torch.optim.SGD(decoder.parameters(), lr=1.0)
    training.train_epoch(decoder, optimizer, [make_batch()], gradient_clip=0.01)
    steps = [new - old for new, old in zip(decoder.parameters(), before.parameters())]
    norm = torch.cat([step.detach().flatten() for step in steps]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@torch.no_grad()
def test_validation_changes_no_weights_and_turns_dropout_off() -> None:
    decoder = make_decoder()
    decoder.dropout.p = 0.5
    before = copy.deepcopy(decoder.state_dict())
    decoder.train()
    first, second = (training.validate(decoder, [make_batch()]) for _ in range(2))
    assert first == second
    assert (first.words, first.captions, first.images) == (25, 6, 3)
    expected, _ = batch_loss(decoder, make_batch())
    assert first.loss == pytest.approx(float(expected))
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_no_batches_add_up_to_nothing() -> None:
    assert training.validate(make_decoder(), []) == Totals(0.0, 0, 0, 0)


def test_a_decoder_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    decoder = make_decoder()
    nn.init.zeros_(decoder.output.weight)
    nn.init.zeros_(decoder.output.bias)
    totals = training.validate(decoder, [make_batch()])
    assert totals.loss / totals.words == pytest.approx(math.log(len(VOCABULARY)))


def progress(*losses: float) -> Progress:
    return Progress([{"epoch": n + 1, "val_loss": loss} for n, loss in enumerate(losses)])


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0], False),
        ([3.0, 2.0, 2.5], False),
        ([3.0, 2.0, 2.5, 2.1], True),  # twice no better than 2.0
        ([3.0, 2.0, 2.0, 2.0], True),  # as good is no better
        ([3.0, 2.0, 2.5, 1.9], False),
        ([3.0, 2.0, 2.5, 1.9, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([5.0, 4.0, 3.0, 2.0, 1.0], False),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], True),  # all six epochs
    ],
)
def test_training_is_over_after_its_epochs_or_when_it_stalls(
    losses: list[float], over: bool
) -> None:
    assert progress(*losses).is_over(Train(epochs=6, patience=2)) is over


@pytest.mark.parametrize(
    ("losses", "epoch", "best"), [([], 0, 0), ([2.0], 1, 1), ([3.0, 1.0, 2.0, 1.0], 4, 2)]
)
def test_progress_knows_its_epoch_and_the_best_one(
    losses: list[float], epoch: int, best: int
) -> None:
    assert (progress(*losses).epoch, progress(*losses).best_epoch) == (epoch, best)


def test_the_history_is_written_as_json_lines() -> None:
    lines = progress(2.0, 1.0).history_lines().splitlines()
    assert [json.loads(line)["val_loss"] for line in lines] == [2.0, 1.0]


def epoch_of(decoder: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    training.train_epoch(decoder, optimizer, [make_batch(), make_batch(CAPTIONS[1:])], 1.0)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    straight = make_decoder()
    optimizer = torch.optim.Adam(straight.parameters(), lr=1e-2)
    epoch_of(straight, optimizer)
    training.save_checkpoint(str(tmp_path), straight, optimizer, progress(3.0))
    epoch_of(straight, optimizer)

    torch.manual_seed(99)
    resumed = copy.deepcopy(straight)
    for parameter in resumed.parameters():
        nn.init.normal_(parameter)
    optimizer = torch.optim.Adam(resumed.parameters(), lr=0.5)
    assert training.load_checkpoint(tmp_path, resumed, optimizer) == progress(3.0)
    epoch_of(resumed, optimizer)
    weights: dict[str, Tensor] = straight.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_checkpoint_runs_no_code_when_it_is_loaded(tmp_path: Path) -> None:
    decoder = make_decoder()
    optimizer = torch.optim.Adam(decoder.parameters())
    epoch_of(decoder, optimizer)
    training.save_checkpoint(str(tmp_path), decoder, optimizer, progress(3.0, 2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder.safetensors",
        "optimizer.pt",
        "progress.json",
    ]
    state = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["lr"] == 1e-3
    weights = safetensors.torch.load_file(tmp_path / "decoder.safetensors")
    assert weights.keys() == decoder.state_dict().keys()
    assert len(json.loads((tmp_path / "progress.json").read_text())["history"]) == 2


def test_batches_come_one_a_table_and_tell_how_many_images_were_seen() -> None:
    rows = feature_rows(CAPTIONS)
    seen: list[int] = []
    found = training.batches([rows[:2], rows[2:]], VOCABULARY, Train(), CPU, seen.append)
    assert [len(batch.embedding) for batch in found] == [2, 1]
    assert seen == [2, 1]
