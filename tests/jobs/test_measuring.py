from __future__ import annotations

import pytest

from jobs.bench import measuring


@pytest.mark.parametrize(
    ("summary", "rate", "said"),
    [
        ({"steady_images_per_second": 50.0, "new_rows": 5000}, 50.0, ""),
        ({"steady_images_per_second": 50.0, "new_rows": 400}, 50.0, "the job ran for 8 s, in much"),
        (
            {"steady_images_per_second": None, "images_per_second": 3.0, "new_rows": 64},
            3.0,
            "too few images to tell start-up from speed",
        ),
    ],
)
def test_a_rate_of_a_short_job_comes_with_a_warning(
    summary: dict[str, float | None],
    rate: float,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert measuring.steady(summary) == rate
    line = capsys.readouterr().err
    assert line.startswith(said)
    assert bool(line) == bool(said)
