"""What one run needs, from the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from captioner.errors import InputError
from captioner.sizing import figures
from captioner.sizing.instances import DEVICES, INSTANCES, PEAKS, TOWERS, Instance

_MOST = 1e15  # images, bytes, images a second: more than anyone has
_SCHEDULING_SHARE = 0.5  # of what one driver can do: the rest is for bursts, and slower drivers


@dataclass(frozen=True)
class Job:
    """An extraction. Rates are images per second of one device and of one core, where the user
    has measured them, and ``measured`` says where, if it is known; ``image_bytes`` is the mean size
    of a file."""

    images: float
    device: str = "h200"
    devices: int = 1
    model: str = "ViT-B-32"
    megapixels: float = 0.19
    image_bytes: float | None = None
    tokens: bool = True
    scaled_decode: bool = False
    source: str = "directory"
    encoder_rate: float | None = None
    decode_rate: float | None = None
    measured: str | None = None
    rows_per_block: int = 256
    batch_size: int = 64
    rows_per_file: int = 4096

    def __post_init__(self) -> None:
        """
        Raises:
            InputError: a value from which nothing can be planned.
        """
        names = ("images", "megapixels", "image_bytes", "encoder_rate", "decode_rate", "devices")
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MOST:
                raise InputError(
                    f"{name}: {value:g} is not a number greater than zero, or beyond {_MOST:g}"
                )
        for name, known in (("device", DEVICES), ("model", TOWERS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: {getattr(self, name)} is none of {', '.join(known)}")


@dataclass(frozen=True)
class OnInstance:
    """A run on machines of one kind that decode on their own cores."""

    instance: Instance
    busy: float  # share of the time that a device has something to do, at most 1
    device_hours: float

    @property
    def instance_hours(self) -> float:
        return self.device_hours / self.instance.devices


@dataclass(frozen=True)
class Plan:
    """Hours are wall hours where nothing else is said; sizes are bytes."""

    job: Job
    encoder_rate: float  # images/s of one device
    decode_rate: float  # images/s of one core
    core_seconds: float  # an image: decoding, moving, writing
    cores_a_device: float  # that keep it busy
    device_hours: float  # with so many cores, as are the hours
    hours: float
    core_hours: float
    instances: tuple[OnInstance, ...]
    read: float
    read_a_second: float  # all devices busy
    written: float
    files: float
    manifest: float
    gets: float
    puts: float
    resume_memory: float
    blocks_a_second: float
    rows_per_block: int  # with which one driver schedules all, or as many as it can
    batch_size: int
    drivers: int  # runs side by side, each on a part of the images, with those


def plan(job: Job) -> Plan:
    """What the job needs, all of its devices at work and none waiting for a core."""
    tower = TOWERS[job.model]
    decode = job.decode_rate or decode_rate(job.megapixels, job.scaled_decode)
    raw = tower.bytes_per_image(job.tokens)
    writing = raw * figures.WRITING.value if job.tokens else 0.0  # embeddings: in MOVING
    core_seconds = 1 / decode + figures.MOVING.value + writing
    encoder = job.encoder_rate or encoder_rate(job.device, job.model)
    on_cores = job.device == "cpu"
    # An encoder on a core shares it with what feeds it.
    rate = 1 / (1 / encoder + core_seconds) if on_cores else encoder
    device_hours = job.images / rate / 3600

    stored = figures.STORED_TOKENS if job.tokens else figures.STORED_EMBEDDING
    written = job.images * raw * stored.value
    files = math.ceil(job.images / (job.rows_per_file * figures.ROWS_A_FILE.value))
    parts = math.ceil(written / files / figures.PART.value)
    each = job.image_bytes or image_bytes(job.megapixels)
    all_together = rate * job.devices
    rows = _enough(all_together, figures.BLOCKS.value, job.rows_per_block)
    batch = _enough(all_together, figures.BATCHES.value, job.batch_size)
    return Plan(
        job=job,
        encoder_rate=encoder,
        decode_rate=decode,
        core_seconds=core_seconds,
        cores_a_device=1.0 if on_cores else encoder * core_seconds,
        device_hours=device_hours,
        hours=device_hours / job.devices,
        core_hours=job.images * core_seconds / 3600,
        instances=tuple(
            _on(instance, rate, core_seconds, job)
            for instance in INSTANCES
            if instance.device == job.device
        ),
        # A shard is read through to be listed, and then its images.
        read=job.images * each * (2 if job.source == "webdataset" else 1),
        read_a_second=all_together * each,
        written=written,
        files=files,
        manifest=job.images * figures.MANIFEST.value,
        gets=job.images * figures.GETS.value + files * figures.READS_A_FILE.value,
        # A part each beyond the first, and the two requests that begin and end the upload.
        puts=files * (figures.PUTS_A_FILE.value + (parts + 1 if parts > 1 else 0))
        + (job.images / figures.NAMES_A_LIST.value if job.source == "directory" else 0),
        resume_memory=job.images * figures.RESUME.value,
        blocks_a_second=all_together / job.rows_per_block,
        rows_per_block=rows,
        batch_size=batch,
        drivers=math.ceil(
            all_together / min(rows * figures.BLOCKS.value, batch * figures.BATCHES.value)
        ),
    )


def encoder_rate(device: str, model: str) -> float:
    """Images per second of one GPU, or of one core. Measured are an H200, from which others differ
    as their peaks do, and ViT-B/32 on a core, from which towers differ as their FLOPs do."""
    if device == "cpu":
        ratio = TOWERS["ViT-B-32"].gflops / TOWERS[model].gflops
        return figures.CPU_ENCODER.value * ratio
    return figures.H200_ENCODERS[model] * PEAKS[device] / PEAKS["h200"]


def decode_rate(megapixels: float, scaled: bool) -> float:
    """Images per second of one core: between two measured sizes its seconds are on a straight
    line, above them in proportion, below them as of the smallest."""
    rates = [d.scaled_images_per_second if scaled else d.images_per_second for d in _DECODING]
    return 1 / _between(megapixels, [1 / rate for rate in rates])


def image_bytes(megapixels: float) -> float:
    """Of a JPEG file of this size, in the same way."""
    return _between(megapixels, [found.size for found in _DECODING])


_DECODING = figures.DECODING


def _between(megapixels: float, values: list[float]) -> float:
    sizes = [found.megapixels for found in _DECODING]
    if megapixels <= sizes[0]:
        return values[0]
    if megapixels >= sizes[-1]:
        return values[-1] * megapixels / sizes[-1]
    upper = next(n for n, size in enumerate(sizes) if size >= megapixels)
    share = (megapixels - sizes[upper - 1]) / (sizes[upper] - sizes[upper - 1])
    return values[upper - 1] + share * (values[upper] - values[upper - 1])


def _on(instance: Instance, rate: float, core_seconds: float, job: Job) -> OnInstance:
    fed = rate if job.device == "cpu" else instance.vcpus_a_device / core_seconds
    slower = min(rate, fed)
    return OnInstance(instance, slower / rate, job.images / slower / 3600)


def _enough(images_a_second: float, most_a_second: float, at_least: int) -> int:
    """Images in a unit of which one driver can see so many a second, with room to spare: the
    smallest power of two, or the largest that fits a block."""
    needed = images_a_second / (most_a_second * _SCHEDULING_SHARE)
    if needed <= at_least:
        return at_least
    most = 2 ** int(math.log2(figures.LARGEST_BLOCK.value))
    return int(max(at_least, min(most, 2 ** math.ceil(math.log2(needed)))))
