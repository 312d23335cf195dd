"""The figures that a plan is made of, each with its source.

A measured one names hardware, date and command; an estimate says how it was derived. A better
measurement of any of them changes this file, and ``captioner plan --markdown`` cluster/SIZING.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_HERE = "2 cores (AMD EPYC, Zen 4, virtual), 2026-11-25, other work beside it"


@dataclass(frozen=True)
class Figure:
    """``measured``, or else an estimate; ``source`` says where, or how it was derived."""

    what: str
    value: float
    unit: str
    measured: bool
    source: str

    @property
    def kind(self) -> str:
        return "measured" if self.measured else "estimate"


@dataclass(frozen=True)
class Decoding:
    """Of JPEG files of one size: images per second of one core."""

    megapixels: float
    size: float  # bytes
    images_per_second: float
    scaled_images_per_second: float  # with image.scaled_decode


DECODING = (
    Decoding(0.05, 19_528, 3417.3, 3407.2),
    Decoding(0.19, 58_593, 467.1, 468.1),
    Decoding(1.00, 247_104, 112.6, 223.5),
    Decoding(3.98, 893_862, 33.0, 100.2),
    Decoding(12.00, 2_557_536, 8.3, 43.5),
)
DECODING_SOURCE = (
    "`captioner bench decode`: photographs of Flickr8k enlarged with grain, JPEG of quality 90; "
    f"process time of one thread, best of 5; {_HERE}"
)

MOVING = Figure(
    "blocks: reading the manifest, moving pixels of 224 x 224, writing embeddings",
    2 / 5982,
    "core seconds an image",
    True,
    "`captioner bench scale`, 1,000,000 rows: 5,982 images/s on 2 cores (AMD EPYC, Zen 4), "
    "2026-11-24",
)
WRITING = Figure(
    "writing tokens as Parquet, Zstandard",
    743e-6 / 76_288,
    "core seconds a byte of float16",
    True,
    "features of 784 photographs, ViT-B/32 with random weights, written to memory in row groups "
    f"of 256: 743 microseconds for the 76,288 bytes of an image; {_HERE}",
)
STORED_TOKENS = Figure(
    "bytes in a features file for each byte of float16, with tokens",
    58_098 / 76_288,
    "",
    True,
    "`captioner features describe`: ViT-B/32 with random weights, 784 photographs of Flickr8k, "
    "58,098 of 76,288 bytes an image. Trained weights compress otherwise: MobileNetV2's tokens, "
    "85 % of them zero, to 0.17 of theirs. Of other towers an estimate",
)
STORED_EMBEDDING = Figure(
    "the same without tokens",
    806 / 1024,
    "",
    True,
    "the same photographs and weights, the column of tokens left out: 806 of 1,024 bytes an image",
)
MANIFEST = Figure(
    "manifest, without captions",
    35,
    "bytes an image",
    True,
    "7,091 rows of Flickr8k; 135 with five captions each",
)
RESUME = Figure(
    "memory to resume, once a node",
    8,
    "bytes an image done since the last complete run",
    True,
    "captioner/docs/speed.md, Extraction",
)
GETS = Figure(
    "GET for an image, from a directory as from a tar shard",
    1,
    "requests an image",
    True,
    "S3 requests counted in the log of moto's server: 1,200 images, index and extract, 2026-11-25",
)
NAMES_A_LIST = Figure(
    "names that a LIST gives", 1000, "names a request", False, "the S3 API's own maximum"
)
ROWS_A_FILE = Figure(
    "rows of a features file for each of features.rows_per_file",
    0.5,
    "",
    True,
    "files are half as long where blocks allow: the same log, 10 files of 120 rows at 256",
)
PUTS_A_FILE = Figure(
    "PUT and LIST for a features file and its checkpoints",
    8,
    "requests a file",
    True,
    "the same log: 10 files, 30 PUT and 50 LIST; multipart uploads come on top",
)
READS_A_FILE = Figure(
    "GET and HEAD for a features file and its checkpoints",
    11.6,
    "requests a file",
    True,
    "the same log: 22 GET and 94 HEAD",
)
PART = Figure(
    "part of a multipart upload",
    10e6,
    "bytes a PUT",
    False,
    "pyarrow uploads parts of 10 MB or more; not counted",
)
# Images per second of one H200, `Encoder.encode` alone.
H200_ENCODERS = {"ViT-B-32": 25_210.0, "ViT-B-16": 9526.0, "ViT-L-14": 2604.0, "ViT-H-14": 1360.0}
H200_SOURCE = (
    "`Encoder.encode` with tokens, 256 ready pictures at 224 x 224 again and again, there and back "
    "over PCIe, random weights, bf16; one NVIDIA H200, torch 2.11, 2026-11-26"
)
CPU_ENCODER = Figure(
    "ViT-B/32 on one core with bf16 units",
    34.0 / 2,
    "images/s",
    True,
    "`captioner bench extract`: 34.0 images/s on 2 cores (AMD EPYC, Zen 4), 2026-11-24; other "
    "towers by their FLOPs, an estimate",
)
BLOCKS = Figure(
    "blocks that one driver schedules",
    67,
    "blocks a second",
    False,
    "reckoned from its processor time, as if it had one core: `captioner bench scale --encoders 64 "
    "--encoder-rate 25 --decode-rate 400 --rows 60000 --set cluster.rows_per_block=64`: "
    f"14.9 ms of the driver's process a block; {_HERE}",
)
BATCHES = Figure(
    "batches of encoders that one tally counts",
    4700,
    "batches a second",
    True,
    f"`Tally.add` called 20,000 times, a thousand at once: 0.21 ms of its process each; {_HERE}",
)
LARGEST_BLOCK = Figure(
    "rows with pixels of 224 x 224 that Ray leaves in one block",
    1337,
    "rows",
    True,
    "Ray 2.60 cuts blocks of more than 1.5 x 128 MiB: blocks of 1,024 rows stayed whole, of 2,048 "
    "came out as 892 and 1,156; 2026-11-25",
)

FIGURES = (
    MOVING, WRITING, STORED_TOKENS, STORED_EMBEDDING, MANIFEST, RESUME, GETS, NAMES_A_LIST,
    ROWS_A_FILE, PUTS_A_FILE, READS_A_FILE, PART, CPU_ENCODER, BLOCKS, BATCHES,
    LARGEST_BLOCK,
)  # fmt: skip
