"""How many images are captioned at once."""

from __future__ import annotations

import pytest

from captioner import configuration
from jobs.caption import searched_together

JOB = {"name": "caption", "run": "runs/caption", "source": {"images": "Photos"}}


@pytest.mark.parametrize(
    ("on_gpu", "foreign", "expected"), [(False, False, 32), (True, False, 512), (True, True, 32)]
)
def test_a_gpu_searches_for_more_images_at_once(on_gpu: bool, foreign: bool, expected: int) -> None:
    assert searched_together(configuration.parse(JOB, "test"), on_gpu, foreign) == expected


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_is_configured_counts(on_gpu: bool) -> None:
    values = {**JOB, "caption": {"batch_size": 7}}
    assert searched_together(configuration.parse(values, "test"), on_gpu) == 7
