"""A decoder whose float32 products oneDNN computes, for searching on AMD's CPUs.

MKL, which computes torch's products, does not use AVX-512 there: a core with it makes 110 GFLOP/s
in batches of 160 rows, where oneDNN makes 230 (Zen 5, torch 2.15). Both are float32; only the order
of their sums differs.

torch hands oneDNN what is in tensors of its own kind, which can be neither copied nor pickled.
(What torch.compile calls takes others; beside an encoder's threads it is slower.)
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from captioner.decoders.words import TiedWordScores, WordEmbedding

_CPUS = Path("/proc/cpuinfo")
_NARROW = 64  # a product with fewer columns is not worth it


def worthwhile(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this type are computed faster so."""
    return device.type == "cpu" and dtype is torch.float32 and _amd_with_avx512()


@functools.cache
def _amd_with_avx512() -> bool:
    """By the CPU's name and not by a stopwatch: a machine computes alike in every run."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _CPUS.is_file():
        return False
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and "AuthenticAMD" in _CPUS.read_text()


def converted(module: nn.Module, words: WordEmbedding) -> nn.Module:
    """The same with copies of its weights, for inference alone; ``words`` is its embedding."""
    if isinstance(module, nn.Linear) and module.out_features >= _NARROW:
        return _Linear(module.weight, module.bias)
    if isinstance(module, nn.LSTMCell):
        return _Cell(module)
    if isinstance(module, TiedWordScores):
        return _Scores(module, words)
    other = copy.copy(module)
    other._modules = {
        name: None if part is None else converted(part, words)
        for name, part in module._modules.items()
    }
    return other


class _Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.weight, self.bias = weight.detach().to_mkldnn(), bias.detach().to_mkldnn()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()


class _Cell(nn.Module):
    """``nn.LSTMCell`` with one product in the place of two."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        weight = torch.cat([cell.weight_ih, cell.weight_hh], dim=1)
        self.gates = _Linear(weight, cell.bias_ih + cell.bias_hh)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, cell = state
        gates = self.gates(torch.cat([x, hidden], dim=-1))
        add, forget, new, show = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(add) * torch.tanh(new)
        return torch.sigmoid(show) * torch.tanh(cell), cell


class _Scores(nn.Module):
    """``TiedWordScores`` with weights of its own in the place of the embeddings."""

    def __init__(self, scores: TiedWordScores, words: WordEmbedding) -> None:
        super().__init__()
        self.project = _Linear(scores.project.weight, scores.project.bias)
        self.scores = _Linear(words.weight, scores.bias)

    def forward(self, readout: Tensor, words: WordEmbedding) -> Tensor:
        logits: Tensor = self.scores(self.project(readout))
        return logits
