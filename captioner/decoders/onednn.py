"""A decoder whose float32 products oneDNN computes, for searching on AMD's CPUs.

MKL, which computes torch's products, does not use AVX-512 there: a core with it makes 110 GFLOP/s
in batches of 160 rows, where oneDNN makes 250 (Zen 5, torch 2.15). Both are float32; only the order
of their sums differs.
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
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and "AuthenticAMD" in _CPUS.read_text()


def converted(module: nn.Module, words: WordEmbedding) -> nn.Module:
    """The same with the same weights, for inference alone; ``words`` is its embedding."""
    if isinstance(module, nn.Linear) and module.out_features >= _NARROW:
        return _Linear(module)
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


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``nn.functional.linear``, by what torch.compile calls for it."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Linear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


class _Cell(nn.Module):
    """``nn.LSTMCell``"""

    def __init__(self, cell: nn.LSTMCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        own, (hidden, cell) = self.cell, state
        gates = product(x, own.weight_ih, own.bias_ih) + product(hidden, own.weight_hh, own.bias_hh)
        add, forget, new, show = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(add) * torch.tanh(new)
        return torch.sigmoid(show) * torch.tanh(cell), cell


class _Scores(nn.Module):
    """``TiedWordScores``"""

    def __init__(self, scores: TiedWordScores, words: WordEmbedding) -> None:
        super().__init__()
        self.project, self.bias = converted(scores.project, words), scores.bias

    def forward(self, readout: Tensor, words: WordEmbedding) -> Tensor:
        return product(self.project(readout), words.weight, self.bias)
