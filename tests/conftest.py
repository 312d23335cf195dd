"""One Ray cluster for all tests of a session (of pytest-xdist: of each of its processes), and
small data that the tests draw."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from captioner import scenes
from tests.s3 import Door, serve

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"
TINY_VIT = REPOSITORY / "configs" / "tiny-vit"


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
def scene_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty scenes with captions, in the layout of Flickr8k."""
    data = tmp_path_factory.mktemp("scenes")
    scenes.write(data, 120, seed=1)
    return data


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


def write_config(directory: Path, data: Path) -> Path:
    """A configuration that takes the scenes through every stage in seconds."""
    path = directory / "small.yaml"
    path.write_text(
        f"""
name: small
run: {directory / "run"}
source: {{images: {data / "Images"}, captions: {data / "captions.txt"}}}
encoder: {{model: "local-dir:{TINY_VIT}", pretrained: none, batch_size: 16}}
features: {{rows_per_file: 32}}
vocabulary: {{minimum_count: 2}}
decoder: {{embed_size: 16, hidden_size: 32, attention_size: 32}}
train: {{epochs: 2, batch_size: 16, learning_rate: 5.0e-3}}
search: {{beam_size: 3, max_words: 16}}
caption: {{splits: [train, val, test], rows_per_file: 32, batch_size: 8}}
report: {{gallery: 4, attention: 1}}
cluster: {{rows_per_block: 16}}
"""
    )
    return path


@pytest.fixture
def small_config(scene_data: Path, tmp_path: Path) -> Path:
    """A configuration whose run directory, ``tmp_path / "run"``, is not there yet."""
    return write_config(tmp_path, scene_data)


@pytest.fixture(scope="session")
def _finished(
    captioner: Callable[..., Result], scene_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("finished")
    output = captioner("run", write_config(directory, scene_data)).output
    return directory / "run", output


@pytest.fixture
def finished_run(_finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A run directory with all stages done, the test's own."""
    return Path(shutil.copytree(_finished[0], tmp_path / "run"))


@pytest.fixture
def extracted_run(finished_run: Path) -> Path:
    """A run directory whose next stage is training."""
    for later in ("model", "checkpoints", "captions"):
        shutil.rmtree(finished_run / later)
    return finished_run


@pytest.fixture
def finished_output(_finished: tuple[Path, str]) -> str:
    """What the command line said as it made ``finished_run``."""
    return _finished[1]


@pytest.fixture
def slow_config(small_config: Path, tmp_path: Path, cluster: str) -> list[str]:
    """Four hundred scenes, an encoder that takes a while, small files."""
    scenes.write(tmp_path / "many", 400, seed=2)
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {"image_size": 96, "patch_size": 12, "width": 384, "layers": 8, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    architecture = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}}
    (tower / "open_clip_config.json").write_text(json.dumps(architecture))
    values = {
        "source.images": tmp_path / "many" / "Images",
        "source.captions": tmp_path / "many" / "captions.txt",
        "encoder.model": f"local-dir:{tower}",
        "cluster.address": cluster,
    }
    return [str(small_config), *(f"--set={key}={value}" for key, value in values.items())]
