"""One Ray cluster for all tests of a session (of pytest-xdist: of each of its processes), and
small data that the tests draw."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from captioner import configuration, scenes
from tests.s3 import Door, serve

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"
TINY_VIT = REPOSITORY / "configs" / "tiny-vit"
# Of all that they start, too: the cores are shared by many processes, and threads that wait for one
# another spin meanwhile, unless they are told to sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SCENES = 120
MANY = 256  # scenes, of which a job is killed or stopped in the middle
# The files that take longest, in that order: begun first, none of them is what the end waits for.
LONGEST = [
    "end_to_end/nodes",
    "end_to_end/submit",
    "end_to_end/storage_faults",
    "end_to_end/run",
    "end_to_end/resume",
    "end_to_end/nightly",
    "end_to_end/demo",
    "end_to_end/faults",
    "end_to_end/sources",
    "end_to_end/features",
    "end_to_end/bad_input",
    "end_to_end/scores",
    "end_to_end/bench",
    "end_to_end/slurm",
    "end_to_end/backends",
    "end_to_end/autoscaling",
    "end_to_end/exit_codes",
    "jobs/mixture",
    "jobs/score",
    "jobs/datasets",
    "jobs/stream",
    "captioner/encoder",
    "metrics/java",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadfile --no-loadscope-reorder`, the order of the files is that of the work."""

    def place(item: pytest.Item) -> int:
        name = f"{item.path.parent.name}/{item.path.stem.removeprefix('test_')}"
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def s3() -> Iterator[Door]:
    """An S3 server with an empty bucket; its credentials are in the environment."""
    with serve() as door:
        yield door


@pytest.fixture(scope="session")
def cluster(s3: Door) -> Iterator[str]:
    """The address of a local Ray cluster with more logical CPUs than the machine has cores.

    It starts after the S3 server, for its workers to have the credentials.
    """
    import ray

    context = ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a directory that pytest-xdist's processes share: the first that asks for it does."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def directory(name: str, make: Callable[[Path], object]) -> Path:
        made, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)  # left by one that has failed
                made.mkdir()
                make(made)
                done.touch()
        return made

    return directory


@pytest.fixture(scope="session")
def scene_data(once: Callable[..., Path]) -> Path:
    """A hundred and twenty scenes with captions, in the layout of Flickr8k."""
    return once("scenes", lambda data: scenes.write(data, SCENES, seed=0))


@pytest.fixture(scope="session")
def captioner(cluster: str) -> Callable[..., Result]:
    """Runs the command line in this process, on the shared cluster."""
    from jobs.cli import main

    def invoke(*arguments: object, status: int = 0) -> Result:
        # The frames of a command that failed in this process hold its actors, and their CPUs.
        gc.collect()
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return invoke


# Take the scenes through every stage in seconds. Blocks are few: each may start a worker, which
# takes longer than its work.
SMALL = (
    "name=small",
    "encoder.pretrained=none",
    "encoder.batch_size=16",
    "features.rows_per_file=64",
    "vocabulary.minimum_count=2",
    "decoder.embed_size=16",
    "decoder.hidden_size=32",
    "decoder.attention_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.learning_rate=0.005",
    "search.beam_size=3",
    "search.max_words=16",
    "caption.splits=[train, val, test]",
    "caption.rows_per_file=64",
    "caption.batch_size=8",
    "report.gallery=4",
    "report.attention=1",
    "cluster.rows_per_block=48",
)


def write_config(directory: Path, data: Path) -> Path:
    """``SMALL`` for these scenes. The run directory is ``directory / "run"``."""
    places = (
        f"run={directory / 'run'}",
        f"source.images={data / 'Images'}",
        f"source.captions={data / 'captions.txt'}",
        f"encoder.model=local-dir:{TINY_VIT}",
    )
    values: dict[str, Any] = {}
    configuration.apply(values, (*SMALL, *places))
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def small_config(scene_data: Path, tmp_path: Path) -> Path:
    """A configuration whose run directory, ``tmp_path / "run"``, is not there yet."""
    return write_config(tmp_path, scene_data)


@pytest.fixture(scope="session")
def _finished(once: Callable[..., Path], captioner: Callable[..., Result]) -> Path:
    """The demonstration, of the same scenes as ``scene_data``."""

    def run(directory: Path) -> None:
        settings = (f"--set={setting}" for setting in SMALL)
        demo = captioner("demo", "--out", directory / "run", "--scenes", SCENES, *settings)
        (directory / "output.txt").write_text(demo.output)

    return once("finished", run)


@pytest.fixture
def finished_run(_finished: Path, tmp_path: Path) -> Path:
    """A run directory with all stages done, the test's own."""
    return Path(shutil.copytree(_finished / "run", tmp_path / "run"))


@pytest.fixture(scope="session")
def _short(once: Callable[..., Path], captioner: Callable[..., Result], _finished: Path) -> Path:
    def run(directory: Path) -> None:
        shutil.copytree(_finished / "run", directory / "run")
        again = ("--redo", "train", "--set", "search.max_words=3")
        output = captioner("run", directory / "run", *again).output
        (directory / "output.txt").write_text(output)

    return once("short", run)


@pytest.fixture
def short_run(_short: Path, tmp_path: Path) -> Path:
    """The same, trained again, with captions of three words; the test's own."""
    return Path(shutil.copytree(_short / "run", tmp_path / "short"))


@pytest.fixture
def short_output(_short: Path) -> str:
    """What the command line said as it made ``short_run``."""
    return (_short / "output.txt").read_text()


@pytest.fixture
def extracted_run(finished_run: Path) -> Path:
    """A run directory whose next stage is training."""
    for later in ("model", "checkpoints", "captions"):
        shutil.rmtree(finished_run / later)
    return finished_run


@pytest.fixture
def finished_output(_finished: Path) -> str:
    """What the command line said as it made ``finished_run``."""
    return (_finished / "output.txt").read_text()


@pytest.fixture(scope="session")
def many_scenes(once: Callable[..., Path]) -> Path:
    """Two hundred and fifty-six scenes with captions."""
    return once("many", lambda data: scenes.write(data, MANY, seed=2))


@pytest.fixture
def slow_config(small_config: Path, many_scenes: Path, tmp_path: Path, cluster: str) -> list[str]:
    """Many scenes, an encoder that takes a while, small blocks and files."""
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {"image_size": 96, "patch_size": 12, "width": 384, "layers": 8, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    architecture = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    (tower / "open_clip_config.json").write_text(json.dumps(architecture))
    values = {
        "source.images": many_scenes / "Images",
        "source.captions": many_scenes / "captions.txt",
        "encoder.model": f"local-dir:{tower}",
        "features.rows_per_file": 32,
        "cluster.rows_per_block": 16,
        "cluster.encoders": 1,
        "cluster.address": cluster,
    }
    return [str(small_config), *(f"--set={key}={value}" for key, value in values.items())]
