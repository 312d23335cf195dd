"""A plan as text for people, and the tables of cluster/SIZING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from captioner.errors import InputError
from captioner.sizing import figures
from captioner.sizing.instances import (
    INSTANCES_SOURCE,
    PEAKS,
    PEAKS_SOURCE,
    TOWERS,
    TOWERS_SOURCE,
)
from captioner.sizing.plan import Job, OnInstance, Plan, decode_rate, encoder_rate, plan

_COUNTS = (1e6, 100e6, 1e9)
_ROWS_PER_BLOCK = (256, 512, 1024)
_BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def describe(found: Plan, price_per_hour: float | None = None, instance: str | None = None) -> str:
    """The plan, and which of its figures were measured; ``price_per_hour`` is of ``instance``.

    Raises:
        InputError: there is no such instance with this device.
    """
    job = found.job
    device = "core" if job.device == "cpu" else "GPU"
    read, written = size(found.read), size(found.written)
    lines = [
        f"{job.images:,.0f} images of {job.megapixels:g} megapixels ({job.source}), {job.model}, "
        f"{'with' if job.tokens else 'without'} tokens, {job.devices} x {job.device}",
        "",
        _line("encoder", f"{found.encoder_rate:,.0f} images/s a {device}", _encoder_source(job)),
        _line("decoding", f"{found.decode_rate:,.0f} images/s a core", _decode_source(job)),
        _line(
            "a core's time", f"{1e3 * found.core_seconds:.2f} ms an image", "decode, move, write"
        ),
        "",
        *_hours(found, device),
        "",
        _line("read", f"{read}, {size(found.read_a_second)} a second", ""),
        _line("written", f"{written} in {found.files:,.0f} files", ""),
        _line("manifest", size(found.manifest), ""),
        _line("GET, HEAD requests", f"{found.gets:,.0f}", ""),
        _line("PUT, LIST requests", f"{found.puts:,.0f}", ""),
        _line("memory to resume", f"{size(found.resume_memory)} a node", ""),
        _line(
            "driver",
            f"{found.blocks_a_second:,.1f} blocks a second",
            _advice(found),
        ),
        "",
        f"On machines of one kind, which decode on their own cores ({device} hours, hours with "
        f"{job.devices:,}, how busy the {device}s are):",
        *(_on_line(on, job) for on in found.instances),
    ]
    if price_per_hour is not None:
        on = _named(found, instance)
        lines.append(
            f"  {on.instance.name} at {price_per_hour:,g} an hour: "
            f"{on.instance_hours * price_per_hour:,.2f}"
        )
    lines += ["", "Where the figures come from:", *sources(job)]
    return "\n".join(line.rstrip() for line in lines)


def _hours(found: Plan, device: str) -> Iterable[str]:
    yield _line(f"{device} hours", hours(found.device_hours), "")
    yield _line(f"hours on {found.job.devices:,} {device}s", hours(found.hours), "")
    if found.job.device == "cpu":
        yield _line("core hours to feed them", hours(found.core_hours), "among those above")
    else:
        yield _line("core hours to feed them", hours(found.core_hours), "")
        yield _line("cores that each needs", f"{found.cores_a_device:,.1f}", "not to wait")


def sources(job: Job) -> Iterable[str]:
    """Each figure with what it is: measured, and where; or an estimate, and how derived."""
    yield f"  encoder: {_encoder_source(job)}"
    if job.device in PEAKS and job.encoder_rate is None:
        rate, peak = figures.H200_ENCODERS[job.model], PEAKS["h200"]
        yield f"    an H200's {rate:,.0f} images/s: {figures.H200_SOURCE}"
        if job.device != "h200":
            yield f"    x {PEAKS[job.device]:g} / {peak:g} TFLOPS ({PEAKS_SOURCE})"
    yield f"  decoding: {_decode_source(job)}"
    if job.decode_rate is None:
        yield f"    {figures.DECODING_SOURCE}"
    for figure in figures.FIGURES:
        if figure is figures.CPU_ENCODER and (job.device != "cpu" or job.encoder_rate is not None):
            continue
        yield f"  {figure.what}: {number(figure.value)} {figure.unit}, {figure.kind}"
        yield f"    {figure.source}"
    yield f"  machines: {INSTANCES_SOURCE}"


def _encoder_source(job: Job) -> str:
    if job.encoder_rate is not None:
        return job.measured or "given with --encoder-rate"
    if job.device == "cpu":
        return "measured" if job.model == "ViT-B-32" else "estimate, from ViT-B/32's by FLOPs"
    return "measured" if job.device == "h200" else "ESTIMATE, from an H200's by peak TFLOPS"


def _decode_source(job: Job) -> str:
    if job.decode_rate is not None:
        return job.measured or "given with --decode-rate"
    known = [found.megapixels for found in figures.DECODING]
    if job.megapixels in known:
        return "measured"
    if job.megapixels < known[0]:
        return "as of the smallest size measured"
    inside = job.megapixels < known[-1]
    return "between two sizes measured" if inside else "in proportion to the largest size measured"


def _advice(found: Plan) -> str:
    wanted = []
    if found.rows_per_block > found.job.rows_per_block:
        wanted.append(f"cluster.rows_per_block={found.rows_per_block}")
    if found.batch_size > found.job.batch_size:
        wanted.append(f"encoder.batch_size={found.batch_size}")
    if found.drivers > 1:
        wanted.append(f"and make {found.drivers} runs of it, each of a part of the images")
    return f"set {', '.join(wanted)}" if wanted else "as it is"


def _on_line(on: OnInstance, job: Job) -> str:
    return (
        f"  {on.instance.name:22} {on.instance.vcpus_a_device:5.0f} vCPUs each "
        f"{hours(on.device_hours):>12} {hours(on.device_hours / job.devices):>12} {on.busy:6.0%}"
    )


def _named(found: Plan, name: str | None) -> OnInstance:
    names = [on.instance.name for on in found.instances]
    if name is None and len(names) > 1:
        raise InputError(f"--price-per-hour is of one machine: --instance {' | '.join(names)}")
    for on in found.instances:
        if name is None or name in (on.instance.name, on.instance.name.partition(" ")[2]):
            return on
    raise InputError(f"--instance {name}: known with {found.job.device}: {', '.join(names)}")


def _line(what: str, value: str, remark: str) -> str:
    return f"{what:23} {value:32} {remark}"


def decoding_table() -> str:
    rows = [
        [
            f"{d.megapixels:g}",
            f"{d.size / 1e3:,.0f} kB",
            f"{d.images_per_second:,.0f}",
            f"{d.scaled_images_per_second:,.0f}",
        ]
        for d in figures.DECODING
    ]
    return _table(["megapixels", "JPEG", "images/s", "with image.scaled_decode"], rows)


def cores_table() -> str:
    """Cores that keep one GPU busy: decoding, moving blocks, writing tokens."""
    kinds = [(0.05, False), (0.19, False), (1.0, False), (12.0, False), (12.0, True)]
    rows = []
    for device in PEAKS:
        needed = [
            plan(Job(1e6, device, megapixels=megapixels, scaled_decode=scaled)).cores_a_device
            for megapixels, scaled in kinds
        ]
        rate = encoder_rate(device, "ViT-B-32")
        rows.append([device, f"{rate:,.0f}", *(f"{cores:,.0f}" for cores in needed)])
    names = [f"{megapixels:g} MP{', scaled' if scaled else ''}" for megapixels, scaled in kinds]
    return _table(["GPU", "images/s", *names], rows)


def cost_table() -> str:
    """GPU hours with enough cores beside, and on each kind of machine alone, at 0.19 MP."""
    rows = []
    for device in (*PEAKS, "cpu"):
        plans = [plan(Job(images, device)) for images in _COUNTS]
        if device != "cpu":
            rows.append([device, "enough", "100 %", *(hours(p.device_hours) for p in plans)])
        for number_, on in enumerate(plans[0].instances):
            each = [hours(p.instances[number_].device_hours) for p in plans]
            vcpus = f"{on.instance.vcpus_a_device:.0f}"
            rows.append([on.instance.name, vcpus, f"{on.busy:.0%}".replace("%", " %"), *each])
    names = [f"{count(images)} images" for images in _COUNTS]
    return _table(["machine", "vCPUs a GPU", "GPU busy", *names], rows)


def driver_table() -> str:
    """GPUs that one driver feeds, by how many images stand in a block."""
    rows = []
    for model in ("ViT-B-32", "ViT-L-14"):
        for device in PEAKS:
            rate = encoder_rate(device, model)
            fed = [figures.BLOCKS.value * in_block / rate for in_block in _ROWS_PER_BLOCK]
            rows.append([model, device, f"{rate:,.0f}", *(f"{gpus:,.1f}" for gpus in fed)])
    names = [f"{in_block:,} a block" for in_block in _ROWS_PER_BLOCK]
    return _table(["tower", "GPU", "images/s", *names], rows)


def storage_table() -> str:
    """Bytes, requests and memory, at 0.19 MP from a directory."""
    with_tokens = [plan(Job(images)) for images in _COUNTS]
    without = [plan(Job(images, tokens=False)) for images in _COUNTS]
    large = [plan(Job(images, megapixels=12.0)) for images in _COUNTS]
    what: list[tuple[str, Sequence[Plan], Callable[[Plan], str]]] = [
        ("read, 0.19 MP", with_tokens, lambda p: size(p.read)),
        ("read, 12 MP", large, lambda p: size(p.read)),
        ("features with tokens", with_tokens, lambda p: size(p.written)),
        ("features without", without, lambda p: size(p.written)),
        ("files of features", with_tokens, lambda p: f"{p.files:,.0f}"),
        ("manifest", with_tokens, lambda p: size(p.manifest)),
        ("GET and HEAD", with_tokens, lambda p: f"{p.gets:,.0f}"),
        ("PUT and LIST, with tokens", with_tokens, lambda p: f"{p.puts:,.0f}"),
        ("PUT and LIST, without", without, lambda p: f"{p.puts:,.0f}"),
        ("memory to resume, a node", with_tokens, lambda p: size(p.resume_memory)),
    ]
    rows = [[name, *(show(found) for found in plans)] for name, plans, show in what]
    return _table(["", *(f"{count(images)} images" for images in _COUNTS)], rows)


def figures_table() -> str:
    rows = [
        ["decoding, one core", f"{decode_rate(0.19, False):.0f} at 0.19 MP", "images/s", "measured",
         figures.DECODING_SOURCE],
        *([f.what, number(f.value), f.unit, f.kind, f.source] for f in figures.FIGURES),
        ["image towers on one H200",
         ", ".join(f"{name} {rate:,.0f}" for name, rate in figures.H200_ENCODERS.items()),
         "images/s", "measured", f"{figures.H200_SOURCE}. Other GPUs by their peaks, an estimate"],
        ["GPU peaks", ", ".join(f"{name} {peak:g}" for name, peak in PEAKS.items()), "TFLOPS",
         "published", PEAKS_SOURCE],
        ["towers", ", ".join(f"{name} {tower.gflops:g}" for name, tower in TOWERS.items()),
         "GFLOPs an image", "measured", TOWERS_SOURCE],
        ["machines", "as in the table of GPU hours", "vCPUs, GPUs", "published", INSTANCES_SOURCE],
    ]  # fmt: skip
    return _table(["figure", "value", "unit", "", "source"], rows)


TABLES = {
    "decoding": decoding_table,
    "cores": cores_table,
    "cost": cost_table,
    "storage": storage_table,
    "driver": driver_table,
    "figures": figures_table,
}


def markdown() -> str:
    """All tables of cluster/SIZING.md, each after the comment that stands before it there."""
    return "\n\n".join(f"<!-- {name} -->\n{make()}" for name, make in TABLES.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def size(value: float) -> str:
    for unit, name in _BYTES:
        if value >= 0.9995 * unit:  # which is 1.00 of it
            return (
                f"{value / unit:.3g} {name}" if value < 1000 * unit else f"{value / unit:,.0f} PB"
            )
    return f"{value:.0f} bytes"


def hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def count(images: float) -> str:
    return f"{images / 1e9:g} billion" if images >= 1e9 else f"{images / 1e6:g} million"


def number(value: float) -> str:
    return f"{value:,.6g}" if value >= 1 else f"{value:.2g}"
