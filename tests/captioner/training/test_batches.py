from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from captioner import features
from captioner.training.batches import batches, collate
from captioner.vocabulary import EOS, PAD, SOS, UNK
from tests.captioner.training.data import (
    CAPTIONS,
    CAT,
    CHANNELS,
    CPU,
    DOG,
    RUNS,
    SLEEPS,
    TWO,
    VOCABULARY,
    A,
    feature_rows,
    make_batch,
    options,
)


def test_captions_of_an_image_stay_together_the_longest_first_and_are_padded() -> None:
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
    assert batch.serials.tolist() == [100, 101, 102]
    assert batch.references[2] == [["two", "cat", "runs", "a", "dog"], ["a", "zebra", "runs"]]


def test_features_become_float32_tensors_in_the_order_of_the_rows() -> None:
    rows = feature_rows()
    batch = collate(rows, VOCABULARY, options(), CPU)
    assert batch.tokens is not None
    assert batch.embedding.dtype == batch.tokens.dtype == torch.float32
    np.testing.assert_array_equal(batch.embedding.numpy(), features.to_numpy(rows["embedding"]))
    np.testing.assert_array_equal(batch.tokens.numpy(), features.to_numpy(rows["tokens"]))


def test_features_without_tokens_make_a_batch_without_them() -> None:
    rows = feature_rows(tokens=False)
    assert collate(rows, VOCABULARY, options(), CPU).tokens is None


def test_rows_of_several_chunks_make_one_batch() -> None:
    rows = feature_rows()
    parts = pa.concat_tables([rows[:1], rows[1:]])
    whole, chunked = (collate(table, VOCABULARY, options(), CPU) for table in (rows, parts))
    assert torch.equal(whole.embedding, chunked.embedding)
    assert whole.tokens is not None
    assert chunked.tokens is not None
    assert torch.equal(whole.tokens, chunked.tokens)
    assert torch.equal(whole.words, chunked.words)


def test_first_takes_one_caption_an_image_and_keeps_all_references() -> None:
    batch = make_batch(captions_per_image="first")
    assert batch.words[:, :, :5].tolist() == [
        [[SOS, A, DOG, RUNS, EOS]],
        [[SOS, A, CAT, SLEEPS, EOS]],
        [[SOS, TWO, CAT, RUNS, A]],
    ]
    assert batch.captions == 3
    assert [len(references) for references in batch.references] == [3, 1, 2]


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


def test_batches_come_one_a_table() -> None:
    rows = feature_rows()
    found = batches([rows[:2], rows[2:]], VOCABULARY, options(), CPU)
    assert [len(batch.embedding) for batch in found] == [2, 1]


@pytest.mark.parametrize("idle", [False, True])
def test_what_an_epoch_has_seen_before_it_broke_off_is_left_out(idle: bool) -> None:
    rows = feature_rows(CAPTIONS * 3)
    tables = [rows[:2], rows[2:4], rows[4:6], rows[6:8], rows[8:]]
    done = np.array([101, 102, 103])
    found = list(batches(tables, VOCABULARY, options(), CPU, done, idle))
    learned = [batch.serials.tolist() for batch in found if not batch.idle]
    assert learned == [[100, 104], [105, 106], [107, 108]]  # no step on one image alone
    # Where workers step together, a table that fills no batch is a step all the same, and the end.
    expected = [True, True, False, False, False, True] if idle else [False] * 3
    assert [batch.idle for batch in found] == expected


@pytest.mark.parametrize("tables_done", [0, 1, 2, 3])
def test_workers_take_as_many_steps_whatever_each_has_done(tables_done: int) -> None:
    rows = feature_rows(CAPTIONS * 2)
    tables = [rows[:2], rows[2:4], rows[4:]]
    done = np.array([*range(100, 100 + 2 * tables_done), 999])  # 999: another worker's
    found = list(batches(tables, VOCABULARY, options(), CPU, done, idle=True))
    assert len(found) == len(tables) + 1
    assert sum(len(batch.serials) for batch in found if not batch.idle) == 6 - 2 * tables_done


def test_what_an_epoch_remembers_keeps_no_rows_in_memory() -> None:
    batch = make_batch()
    assert batch.serials.base is None
    assert batch.serials.tolist() == [100, 101, 102]


def test_patches_are_left_out_of_each_image_by_itself() -> None:
    batch = make_batch([["A dog."]] * 8)
    assert batch.tokens is not None
    torch.manual_seed(0)
    fewer = batch.without_patches(0.5).tokens
    assert fewer is not None
    assert fewer.shape == (8, 2, CHANNELS)
    kept = (batch.tokens.unsqueeze(1) == fewer.unsqueeze(2)).all(dim=-1)  # (images, left, patches)
    assert (kept.sum(dim=-1) == 1).all()
    assert (kept.sum(dim=1) <= 1).all()
    assert len(kept.any(dim=1).unique(dim=0)) > 1  # not the same ones of all
    assert not torch.equal(batch.without_patches(0.5).tokens, fewer)


def test_a_patch_is_left_of_every_image() -> None:
    batch = make_batch()
    fewer = batch.without_patches(0.99).tokens
    assert fewer is not None
    assert fewer.shape[1] == 1
    assert batch.without_patches(0.0) is batch
