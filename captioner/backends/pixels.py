"""Pixels as a tower wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.backends import Pixels
from captioner.images import Preprocessing


def normalised(pixels: Pixels, target: Preprocessing, device: torch.device) -> Tensor:
    """``(images, height, width, 3) uint8`` -> ``(images, 3, height, width) float32``."""
    values = torch.tensor(pixels, device=device).permute(0, 3, 1, 2).float() / 255.0
    mean, std = (
        torch.tensor(each, device=device).view(3, 1, 1) for each in (target.mean, target.std)
    )
    return (values - mean) / std
