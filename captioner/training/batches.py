"""Feature rows -> tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from captioner import features, parquet_dir
from captioner.config import Train
from captioner.language_model import AnyVocabulary
from captioner.vocabulary import EOS, PAD

COLUMNS = ["serial", "split", "captions", "embedding", "tokens", "error"]


@dataclass(frozen=True)
class Batch:
    """Some images with their captions. The captions of an image share its features."""

    serials: NDArray[np.int64]  # (images,): which they are
    references: list[list[list[str]]]  # images, captions, words: all of them, and whole
    embedding: Tensor  # (images, embedding_size) float32
    tokens: Tensor | None  # (images, patches, channels) float32
    # (images, captions, length) int64: <SOS> words <EOS>, then <PAD>; an image's longest first
    words: Tensor
    idle: bool = False  # other workers learn from theirs, this one from nothing

    @property
    def captions(self) -> int:
        """How many captions there are; images with fewer than the others have empty rows."""
        return int((self.words[:, :, 0] != PAD).sum())

    def without_patches(self, share: float) -> Batch:
        """Every image without so many of its patches, others of each; one is left at least."""
        if self.tokens is None or not share:
            return self
        images, patches, _ = self.tokens.shape
        left = max(1, round(patches * (1.0 - share)))
        order = torch.rand(images, patches, device=self.tokens.device).argsort(dim=1)
        image_of = torch.arange(images, device=self.tokens.device).unsqueeze(1)
        return replace(self, tokens=self.tokens[image_of, order[:, :left]])


def collate(
    rows: pa.Table, vocabulary: AnyVocabulary, options: Train, device: torch.device
) -> Batch:
    """Rows as ``features.with_references`` gives them -> tensors."""
    references = rows["references"].to_pylist()
    used = slice(1) if options.captions_per_image == "first" else slice(None)
    encoded = [
        sorted(
            (_cut(vocabulary.ids(words), options.max_words) for words in captions[used]),
            key=len,
            reverse=True,
        )
        for captions in references
    ]
    return Batch(
        # A copy: an epoch remembers them all, and a view would keep the rows' block in memory.
        serials=rows["serial"].to_numpy().copy(),
        references=references,
        embedding=_floats(rows["embedding"], device),
        tokens=_floats(rows["tokens"], device) if "tokens" in rows.column_names else None,
        words=padded(encoded).to(device),
    )


def padded(captions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Ids by image and caption -> ``(images, captions, length) int64``, filled up with <PAD>."""
    most = max(len(of_image) for of_image in captions)
    longest = max(len(caption) for of_image in captions for caption in of_image)
    words = np.full((len(captions), most, longest), PAD, dtype=np.int64)
    for image, of_image in enumerate(captions):
        for number, caption in enumerate(of_image):
            words[image, number, : len(caption)] = caption  # NumPy's are quicker than torch's
    return torch.from_numpy(words)


def _cut(ids: list[int], max_words: int) -> list[int]:
    return ids if len(ids) <= max_words + 2 else [*ids[: max_words + 1], EOS]


def _floats(column: pa.ChunkedArray, device: torch.device) -> Tensor:
    # A copy: Arrow's memory is read-only, and a tensor that shares it must not be.
    return torch.tensor(features.to_numpy(column)).to(device).float()


def batches(
    tables: Iterable[pa.Table],
    vocabulary: AnyVocabulary,
    options: Train,
    device: torch.device,
    done: NDArray[np.int64] | None = None,
    idle: bool = False,
) -> Iterator[Batch]:
    """Tables -> batches, without the images that ``done`` names, of an epoch that was broken off:
    what is left of several tables is put together, so that a step learns from as many as ever.

    ``idle``: a table that fills no batch gives an idle one, and the end a batch of what is left, or
    an idle one: workers must step together, whatever each of them has left.
    """
    if done is None or not len(done):
        yield from (collate(rows, vocabulary, options, device) for rows in tables)
        return
    seen, full, left, any_row = np.sort(done), 0, None, None
    for rows in tables:
        full, any_row = max(full, len(rows)), rows[:1]
        new = rows.filter(pa.array(~parquet_dir.are_in(rows["serial"].to_numpy(), seen)))
        left = new if left is None else pa.concat_tables([left, new])
        if len(left) >= full:
            yield collate(left[:full], vocabulary, options, device)
            left = left[full:]
        elif idle:
            yield replace(collate(any_row, vocabulary, options, device), idle=True)
    if left is not None and len(left):
        yield collate(left, vocabulary, options, device)
    elif idle and any_row is not None:
        yield replace(collate(any_row, vocabulary, options, device), idle=True)
