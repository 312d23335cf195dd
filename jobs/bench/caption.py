"""How fast captions are found: in batches against one image at a time, and the Ray job against its
parts alone."""

from __future__ import annotations

import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from ray.data import DataContext

from captioner import configuration, decoders, model, model_files, storage, tower_copy
from captioner.config import Decoder, JobConfig, Search
from captioner.encoder import Encoder
from captioner.model import CaptionModel
from captioner.search import NEVER
from captioner.vocabulary import EOS, SOS, SPECIAL, Vocabulary
from jobs import caption as caption_job
from jobs import index, logs, session
from jobs.bench.measuring import (
    draw,
    files_of,
    hardware,
    on_gpu,
    pixels_of,
    row,
    seconds,
    steady,
    use_all_cores,
)
from jobs.directory import job_config

_WORDS = 3000  # of an untrained decoder's vocabulary, about that of Flickr8k
_SIZES = (1, 8, 32, 128)
_ALONE = 16  # images that are captioned one at a time
_BLOCK = 32  # rows: a bench is short, and the first block's way is start-up


def measure(
    images: str | None, model_url: str | None, count: int, overrides: tuple[str, ...]
) -> None:
    """Print captions/s from ready features and of the fused job, of a trained model or of one with
    random weights, which writes captions longer than people's."""
    use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        url = model_url or _untrained(f"{folder}/model")
        more = (*overrides, "image.max_error_rate=1", f"cluster.rows_per_block={_BLOCK}")
        drawn = f"{folder}/images"
        config = job_config(images or drawn, url, f"{folder}/run", None, more)
        size = caption_job.searched_together(config, on_gpu())
        if images is None:
            draw(Path(drawn), max(count, 4 * size, 2 * max(_SIZES)))  # of one batch all is start-up
        device = "cuda" if on_gpu() else "cpu"
        captioner = CaptionModel.load(url, device)
        encoder = Encoder(tower_copy.options_of(url, config.encoder), device)
        trained = "" if model_url else ", UNTRAINED decoder"
        pictures = "pictures" if images else "pictures of noise"
        logs.say(
            f"{date.today()}, {hardware()}; {pictures}; encoder: {encoder.identity.describe()}; "
            f"{captioner.config.decoder.type} of {captioner.config.decoder.hidden_size}{trained}\n"
        )
        files = files_of(config.source.images, 2 * max(*_SIZES, size))  # half to get warm by
        began = time.perf_counter()
        pixels = pixels_of(files, config, encoder)
        decoding = len(files) / (time.perf_counter() - began)  # on one core
        features = [encoder.encode(part) for part in _parts(pixels, 32)]
        embedding, tokens = (
            None if values[0] is None else torch.cat(list(values)).numpy()
            for values in zip(*features)
        )
        search = _search(captioner, embedding, tokens, config.search, size)
        encoding = len(pixels) / seconds(lambda: [encoder.encode(p) for p in _parts(pixels, size)])
        _fused(config, url, decoding * session.cores(), encoding, search, size)


def _untrained(url: str) -> str:
    """A model directory of random weights, on ViT-B/32 with random weights."""
    values: dict[str, Any] = {
        "name": "bench",
        "run": url,
        "source": {"images": url},
        "encoder": {"model": "ViT-B-32", "pretrained": "none"},
    }
    config = configuration.parse(values, "bench")
    identity = Encoder(config.encoder).identity
    vocabulary = Vocabulary([*SPECIAL, *(f"word{number}" for number in range(_WORDS))])
    torch.manual_seed(0)
    decoder = decoders.build(Decoder(), identity, len(vocabulary))
    model.write_description(url, config, vocabulary, identity)
    model.save_weights(storage.join(url, model_files.WEIGHTS), decoder)
    return url


def _parts(values: Any, size: int) -> list[Any]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _search(
    captioner: CaptionModel, embedding: Any, tokens: Any, options: Search, together: int
) -> float:
    """Print captions/s from ready features; return that of the configured search, of as many
    images ``together`` as the job searches."""

    def find(size: int, images: range, search: Search) -> list[str]:
        found = []
        for start in images[::size]:
            part = slice(start, min(start + size, images.stop))
            some = None if tokens is None else tokens[part]
            found += captioner.caption(embedding[part], some, search)
        return [caption.text for caption in found]

    def rate(size: int, search: Search, most: int | None = None) -> float:
        """Of one half of the images, or of ``most`` of it, after the other: what is made but once
        for a long job is there by then."""
        find(size, range(half, 2 * half)[:most], search)
        timed = range(half)[:most]
        return len(timed) / seconds(lambda: find(size, timed, search))

    half = len(embedding) // 2
    # What is searched one at a time below knows of no other option.
    beam = Search(
        beam_size=5,
        length_penalty=options.length_penalty,
        repetition_penalty=1.0,
        max_words=options.max_words,
        precision=options.precision,
    )
    greedy = beam.model_copy(update={"beam_size": 1})
    exact = beam.model_copy(update={"precision": "float32"})

    def plain(images: int) -> list[str]:
        return [
            plain_search(
                captioner,
                embedding[n : n + 1],
                None if tokens is None else tokens[n : n + 1],
                exact,
            )
            for n in range(images)
        ]

    plain(1)
    alone = min(half, _ALONE)
    naive = alone / seconds(lambda: plain(alone))
    row("beam 5, one image and one beam at a time", naive, "captions/s")
    single = rate(1, beam, alone)
    row("beam 5, one image at a time", single, "captions/s", single / naive)
    for size in _SIZES[1:]:
        found = rate(size, beam)
        row(f"beam 5, batches of {size}", found, "captions/s", found / naive)
    few = min(len(embedding), 4 * _ALONE)
    same = sum(one == other for one, other in zip(plain(few), find(few, range(few), exact)))
    logs.say(f"{'    the same captions as one at a time':44} {same:9,} of {few:,}")
    found = rate(32, beam.model_copy(update={"precision": "auto"}))
    row("beam 5, batches of 32, search.precision=auto", found, "captions/s", found / naive)
    found = rate(128, greedy)
    row("greedy, batches of 128", found, "captions/s", found / naive)
    return rate(together, options)


@torch.inference_mode()
def plain_search(captioner: CaptionModel, embedding: Any, tokens: Any, options: Search) -> str:
    """Beam search as one writes it down: one image, each beam stepped alone, lists and sorting.
    Without penalties but that of length."""
    decoder = captioner.decoder
    memory = captioner.memory(embedding, tokens)
    beams: list[tuple[float, list[int], Any]] = [(0.0, [SOS], decoder.start(memory, 1))]
    while any(words[-1] != EOS for _, words, _ in beams):
        longer = []
        for total, words, state in beams:
            if words[-1] == EOS:
                longer.append((total, words, state))
                continue
            last = torch.tensor([[words[-1]]], device=state[0].device)
            logits, after, _ = decoder.step(last, state, memory)
            logits[:, :, NEVER] = -torch.inf
            known = logits[0, 0].float().log_softmax(dim=-1)
            if len(words) > options.max_words:
                longer.append((total + float(known[EOS]), [*words, EOS], after))
                continue
            values, ids = known.topk(options.beam_size)
            for value, word in zip(values.tolist(), ids.tolist()):
                longer.append((total + value, [*words, word], after))
        longer.sort(
            key=lambda beam: beam[0] / (len(beam[1]) - 1) ** options.length_penalty, reverse=True
        )
        beams = longer[: options.beam_size]
    return captioner.vocabulary.decode(beams[0][1][1:])


def _fused(
    config: JobConfig, url: str, decoding: float, encoding: float, search: float, size: int
) -> None:
    """Print the job's rate in steady state against the encoder alone and the search alone, and what
    is left of these where all share the cores."""
    session.begin(config)
    DataContext.get_current().wait_for_min_actors_s = 600  # nothing is decoded while they start
    index.index(config)
    job = steady(caption_job.caption_images(config, caption_job.load(config, url)))
    slower = min(encoding, search)
    described = f"beam {config.search.beam_size}" + (
        ", consensus" if config.search.consensus is not None else ""
    )
    row("(a) encoder alone, on ready pixels", encoding, "images/s")
    row(f"(b) search alone ({described}), batches of {size}", search, "captions/s")
    row("(c) Ray job: read, decode, encode, search", job, "images/s", job / slower)
    if not on_gpu():
        shared = 1.0 / (1.0 / decoding + 1.0 / encoding + 1.0 / search)
        row("    decoding, (a), (b) in turn on all cores", shared, "images/s", shared / slower)
