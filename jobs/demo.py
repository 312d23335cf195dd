"""The demonstration: synthetic scenes through the same jobs as real data."""

from __future__ import annotations

from pathlib import Path

import jobs
from captioner import configuration, parquet_dir, scenes, storage
from captioner.config import JobConfig
from captioner.errors import InputError
from jobs import logs, pipeline

CONFIGS = Path(jobs.__file__).parent.parent / "configs"
BANNER = (
    "This demonstration is synthetic: scenes drawn by a program, captions of a small grammar,\n"
    "and an encoder with RANDOM WEIGHTS. It shows that every job works, not how good it is."
)


def demo(out: str, count: int, overrides: tuple[str, ...]) -> None:
    """Draw ``count`` scenes, run every stage, and print scores and examples."""
    data = Path(storage.resolve(out)) / "scenes"
    own = (
        f"run={out}",
        f"source.images={data / 'Images'}",
        f"source.captions={data / 'captions.txt'}",
        f"encoder.model=local-dir:{CONFIGS / 'tiny-vit'}",
    )
    config = configuration.load(str(CONFIGS / "demo.yaml"), (*own, *overrides))
    logs.say(BANNER)
    if not (data / "captions.txt").exists():
        scenes.write(data, count, seed=0)
    elif (there := len(list((data / "Images").iterdir()))) != count:
        raise InputError(
            f"{data}: {there} scenes are there, and not {count}. Give --scenes {there}, or --out a "
            "new directory"
        )
    pipeline.run(config)
    logs.say("\n" + examples(config, 5))
    logs.say(f"\n{BANNER}\nreport: {config.at('report.html')}")


def examples(config: JobConfig, count: int) -> str:
    """Captions beside their references, evenly picked."""
    columns = ["image_id", "caption", "references"]
    rows = parquet_dir.read(config.at("captions"), columns).sort_by("image_id").to_pylist()
    lines = []
    for row in rows[:: max(1, len(rows) // count)][:count]:
        lines.append(f"{row['image_id']}: {row['caption']}")
        lines += [f"    {reference}" for reference in row["references"]]
    return "\n".join(lines)
