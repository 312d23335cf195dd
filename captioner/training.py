"""Training a decoder: batches, loss, one epoch, early stopping, checkpoints. No Ray in here."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch
from torch import Tensor, nn

from captioner import features
from captioner.config import Train
from captioner.vocabulary import EOS, PAD, Vocabulary

COLUMNS = ["split", "captions", "embedding", "tokens", "error"]


@dataclass(frozen=True)
class Batch:
    """Some images with their captions."""

    embedding: Tensor  # (images, embedding_size) float32
    tokens: Tensor | None  # (images, patches, channels) float32
    words: Tensor  # (images, captions, length) int64: <SOS> words <EOS>, then <PAD>

    @property
    def captions(self) -> int:
        """How many captions there are; images with fewer than the others have empty rows."""
        return int((self.words[:, :, 0] != PAD).sum())


def collate(rows: pa.Table, vocabulary: Vocabulary, options: Train, device: torch.device) -> Batch:
    """Feature rows -> tensors. The captions of an image stay together and share its features."""
    encoded = [
        [_cut(vocabulary.encode(caption), options.max_words) for caption in captions]
        for captions in (
            captions[:1] if options.captions_per_image == "first" else captions
            for captions in rows["captions"].to_pylist()
        )
    ]
    most = max(len(captions) for captions in encoded)
    longest = max(len(caption) for captions in encoded for caption in captions)
    words = torch.full((len(encoded), most, longest), PAD)
    for image, captions in enumerate(encoded):
        for number, caption in enumerate(captions):
            words[image, number, : len(caption)] = torch.tensor(caption)
    return Batch(
        embedding=_floats(rows["embedding"], device),
        tokens=_floats(rows["tokens"], device) if "tokens" in rows.column_names else None,
        words=words.to(device),
    )


def _cut(ids: list[int], max_words: int) -> list[int]:
    return ids if len(ids) <= max_words + 2 else [*ids[: max_words + 1], EOS]


def _floats(column: pa.ChunkedArray, device: torch.device) -> Tensor:
    # A copy: Arrow's memory is read-only, and a tensor that shares it must not be.
    return torch.tensor(features.to_numpy(column), device=device).float()


@dataclass
class Totals:
    """Sums over batches; they add up over workers too."""

    loss: float = 0.0  # summed over words, in nats
    words: int = 0
    captions: int = 0
    images: int = 0

    def add(self, loss: float, words: int, batch: Batch) -> None:
        self.loss += loss
        self.words += words
        self.captions += batch.captions
        self.images += len(batch.embedding)


def batch_loss(decoder: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross-entropy of every word given those before it, summed; and the number of words.

    Padding counts for nothing.
    """
    targets = batch.words[:, :, 1:]
    keep = targets != PAD  # (images, captions, length - 1)
    logits, _ = decoder(batch.embedding, batch.tokens, batch.words[:, :, :-1], keep)
    loss = nn.functional.cross_entropy(logits, targets[keep], reduction="sum")
    return loss, int(keep.sum())


def train_epoch(
    decoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    gradient_clip: float | None,
) -> Totals:
    """One pass over the training images. A step minimises the mean loss of a batch's words."""
    decoder.train()
    totals = Totals()
    for batch in batches:
        loss, words = batch_loss(decoder, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss / words).backward()  # type: ignore[no-untyped-call]
        if gradient_clip is not None:
            nn.utils.clip_grad_norm_(decoder.parameters(), gradient_clip)
        optimizer.step()
        totals.add(loss.item(), words, batch)
    return totals


@torch.inference_mode()
def validate(decoder: nn.Module, batches: Iterable[Batch]) -> Totals:
    """The loss on held-out images, without dropout."""
    decoder.eval()
    totals = Totals()
    for batch in batches:
        loss, words = batch_loss(decoder, batch)
        totals.add(loss.item(), words, batch)
    return totals


@dataclass
class Progress:
    """How far training is. Saved with every checkpoint."""

    history: list[dict[str, Any]] = field(default_factory=list)  # an entry an epoch

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The epoch of the lowest validation loss, counted from 1; 0 before the first."""
        losses = [entry["val_loss"] for entry in self.history]
        return losses.index(min(losses)) + 1 if losses else 0

    def is_over(self, options: Train) -> bool:
        """All epochs done, or no better validation loss for ``patience`` epochs."""
        stalled = self.epoch - self.best_epoch
        return self.epoch >= options.epochs or (self.epoch > 0 and stalled >= options.patience)

    def history_lines(self) -> str:
        return "".join(json.dumps(entry) + "\n" for entry in self.history)


def save_checkpoint(
    directory: str, decoder: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """All that it takes to go on: weights, optimizer, history."""
    folder = Path(directory)
    safetensors.torch.save_file(decoder.state_dict(), folder / "decoder.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "progress.json").write_text(json.dumps(asdict(progress)))


def load_checkpoint(
    directory: str | os.PathLike[str], decoder: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """The inverse of ``save_checkpoint``, in place."""
    folder = Path(directory)
    decoder.load_state_dict(safetensors.torch.load_file(folder / "decoder.safetensors"))
    state = torch.load(io.BytesIO((folder / "optimizer.pt").read_bytes()), weights_only=True)
    optimizer.load_state_dict(state)
    return Progress(**json.loads((folder / "progress.json").read_text()))


def batches(
    tables: Iterable[pa.Table],
    vocabulary: Vocabulary,
    options: Train,
    device: torch.device,
    seen: Callable[[int], None] = lambda images: None,
) -> Iterator[Batch]:
    """Tables of usable feature rows -> batches; ``seen`` hears of each one's images."""
    for rows in tables:
        yield collate(rows, vocabulary, options, device)
        seen(len(rows))
