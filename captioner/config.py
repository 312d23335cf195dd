"""All keys of a job's configuration, in sections: what they mean, their types, their defaults.

``configuration`` reads them from YAML; ``staleness`` tells which changes make results stale.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from captioner import redaction, storage, urls

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
CaptionsFormat = Literal["auto", "csv", "token", "karpathy", "coco"]


def _without_password(url: str) -> str:
    if redaction.has_password(url):
        raise ValueError(
            "a password in a URL would be stored with every result. Leave it out: credentials come "
            "from the environment, or from fsspec's own configuration (~/.config/fsspec)"
        )
    return url


# What may be the name of something, or a path or URL.
NameOrUrl = Annotated[str, AfterValidator(_without_password)]
# A path or fsspec URL. Made absolute at once: Ray's workers have working directories of their own.
Url = Annotated[NameOrUrl, AfterValidator(storage.resolve)]


def _readable_by_ray(url: str) -> str:
    """Ray takes what comes after a question mark for a query, and leaves out new lines."""
    if urls.is_local_url(url) and ("?" in url or not url.isprintable()):
        raise ValueError("a run directory has no `?` and no control characters in its path")
    return url


RunDirectory = Annotated[Url, AfterValidator(_readable_by_ray)]

# Not photographs for certain. Everything else is opened, and its bytes decide.
_NOT_IMAGES = "txt json jsonl csv tsv parquet md html xml yaml yml py npy cls tar zip gz"
NOT_IMAGES = [f"*.{suffix}" for suffix in _NOT_IMAGES.split(" ")]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class Source(Section):
    """Where the images and their reference captions are."""

    images: Url
    """Local path, fsspec URL or, for shards, a glob such as ``s3://bucket/*.tar``. A ZIP file is
    read in place: ``zip://::photos.zip``, or ``zip://train::photos.zip`` for a directory in it."""
    format: Literal["auto", "directory", "webdataset", "parquet", "list"] = "auto"
    """A directory tree; WebDataset tar shards; Parquet with image bytes; or a list of URIs, as
    text, Parquet, or the TSV of Conceptual Captions. ``auto`` goes by the name: tar, parquet, txt,
    tsv, else a directory."""
    captions: Url | None = None
    """A captions file, or a glob of several; none: there is nothing to train on or to score
    against, but for what shards and lists bring with them."""
    captions_format: CaptionsFormat = "auto"
    include: list[str] = ["*"]
    """Globs over file names; over paths relative to ``images`` where they contain a slash. Case
    counts for those that begin with it, as in ``/2024/*``."""
    exclude: list[str] = NOT_IMAGES
    sidecar_captions: bool = False
    """Of a directory: an image's captions are the lines of the text file beside it, ``cat.txt`` for
    ``cat.jpg``, as in img2dataset's plain files. Every listing reads them all."""
    image_column: str | None = None
    """Of Parquet: image bytes, or URIs. None: the first of the usual names that is there."""
    caption_column: str | None = None
    """Of Parquet: text, or lists of it; of WebDataset a key of the ``.json``, whose ``.txt`` counts
    for nothing then."""
    key_column: str | None = None
    keep_columns: list[str] = []
    """More columns of Parquet, or keys of the ``.json`` beside WebDataset's images: text, whole
    numbers or booleans. The manifest keeps them as text, and ``score.group_by`` may name them."""
    allow_http: bool = False
    """Whether a list of URIs may have ``http://`` and ``https://``."""
    max_deleted: Fraction = 0.5
    """Listing again fails if more of the known images than this are gone: more often than not it
    is a disk that is not mounted."""


class Split(Section):
    """Which images train, validate and test: lists where given, else a stable hash."""

    train: Fraction = 0.8
    val: Fraction = 0.1
    test: Fraction = 0.1
    train_list: Url | None = None
    val_list: Url | None = None
    test_list: Url | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _fractions_add_up(self) -> Split:
        if abs(self.train + self.val + self.test - 1.0) > 1e-9:
            raise ValueError("train, val and test must add up to 1")
        return self

    @property
    def lists(self) -> dict[str, str]:
        """The split lists that are given, by split."""
        named = {"train": self.train_list, "val": self.val_list, "test": self.test_list}
        return {split: url for split, url in named.items() if url is not None}


class Image(Section):
    """Bounds on what is decoded; an image beyond them becomes a row with that reason."""

    max_bytes: Positive = 256 * 1024 * 1024
    # Pillow itself refuses images of more than 178,956,970 pixels.
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 120_000_000
    scaled_decode: bool = False
    """Decode large JPEGs at a half, a quarter or an eighth, the nearest that is not smaller than
    what the encoder needs. Faster; the pixels, and with them the features, change a little."""
    max_error_rate: Fraction = 0.05
    """A job stops once more of its images have failed than this, after enough of them to tell."""


class Encoder(Section):
    """The frozen image tower: any open_clip model."""

    model: NameOrUrl = "ViT-B-32"
    """A built-in name, ``local-dir:PATH`` or ``hf-hub:NAME``."""
    pretrained: NameOrUrl = "openai"
    """A weights tag or file for a built-in name; ``none`` for seeded random weights.
    ``local-dir:`` and ``hf-hub:`` models bring their own weights."""
    seed: Seed = 0
    """Of the random weights, where ``pretrained`` is ``none``."""
    image_size: Positive | None = None
    """Pixels of each side of what the tower sees; none: what it was trained with. More show more
    detail, and give more tokens: convolutional towers take any multiple of 32, of ViTs
    open_clip interpolates the position embeddings."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """How an image becomes square: cut at its longer side, padded, or squashed so that all of it is
    seen. None: as the tower was trained."""
    tokens: bool = True
    """Write the patch tokens too; attention needs them."""
    precision: Precision = "auto"
    compile: bool = False
    """Run the tower through torch.compile: minutes of start-up for a faster steady state."""
    batch_size: Positive = 64

    @field_validator("model")
    @classmethod
    def _absolute_directory(cls, model: str) -> str:
        path = model.removeprefix("local-dir:")
        return model if path == model else f"local-dir:{storage.resolve(path)}"

    @field_validator("pretrained")
    @classmethod
    def _absolute_file(cls, pretrained: str) -> str:
        is_file = "/" in pretrained or "." in pretrained  # no tag has either
        return storage.resolve(pretrained) if is_file else pretrained


class Features(Section):
    rows_per_file: Positive = 4096
    """At most. Files are half as long where blocks allow: a crash loses the one that is written and
    what is gathered for the next, together no more than this."""
    mirrored: bool = False
    """Write the features of every training image's mirror image too: training reads one view of an
    image by chance, another in the next epoch, and learns captions by heart later."""
    parts: Annotated[int, Field(ge=0)] = 0
    """And of so many random parts of it, three quarters of its width and height at least."""


class VocabularyOptions(Section):
    minimum_count: Positive = 5
    remove_stop_words: bool = False


Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class Decoder(Section):
    type: Literal["lstm", "transformer", "gpt2"] = "lstm"
    attention: Literal["additive", "multi_head", "none"] = "additive"
    """How the LSTM looks at the patches; a transformer's is multi_head, or none; GPT-2's none."""
    heads: Positive = 8
    """Of multi_head attention."""
    gate: bool = False
    """Let the LSTM decide how much of what it sees matters for the next word."""
    tie_weights: bool = False
    """Score words by the embeddings that they are read with."""
    embed_size: Positive = 256
    hidden_size: Positive = 512
    attention_size: Positive = 512
    layers: Positive = 1
    dropout: Dropout = 0.0
    """Of what the words are scored by, and between layers."""
    embed_dropout: Dropout = 0.0
    """Of the embeddings of the words read."""
    feature_dropout: Dropout = 0.0
    """Of the image's features, as the decoder has projected them."""
    pretrained: NameOrUrl | None = None
    """Of gpt2: a directory in transformers' format, or a name on the Hugging Face hub."""
    prefix_length: Positive = 10
    """Of gpt2: how many vectors the image becomes, in front of the words."""
    freeze: bool = False
    """Of gpt2: learn the mapping of the image alone."""

    @field_validator("pretrained")
    @classmethod
    def _absolute_directory(cls, pretrained: str | None) -> str | None:
        is_path = pretrained is not None and storage.exists(storage.join(pretrained, "config.json"))
        return storage.resolve(pretrained) if pretrained is not None and is_path else pretrained

    @model_validator(mode="after")
    def _sizes_fit(self) -> Decoder:
        if self.type == "transformer" and self.attention == "additive":
            raise ValueError("a transformer's attention is multi_head, or none")
        if self.type == "transformer" and self.hidden_size % 2:
            raise ValueError(f"hidden_size: {self.hidden_size} is odd, and a transformer's is not")
        if self.type == "transformer" and self.gate:
            raise ValueError("gate is for the lstm")
        if self.type == "gpt2":
            if self.attention != "none" or self.gate or self.tie_weights:
                raise ValueError("gpt2 has attention: none, and neither gate nor tie_weights")
            if not self.pretrained:
                raise ValueError("gpt2 needs pretrained: a directory, or a name such as gpt2")
        elif self.pretrained or self.freeze:
            raise ValueError(f"pretrained and freeze are for gpt2, and this is {self.type}")
        if self.type == "transformer" or self.attention == "multi_head":
            names = ["hidden_size"] + ["attention_size"] * (self.type == "lstm")
            for name in names:
                if (size := getattr(self, name)) % self.heads:
                    raise ValueError(f"heads: {self.heads} do not divide {name} {size} evenly")
        return self


class SelfCritical(Section):
    """A second stage of training: captions are drawn, and those that score better than the others
    of their image become more likely (captioner/training/self_critical.py)."""

    epochs: Annotated[int, Field(ge=0)] = 0
    """0: no such stage. A run that has none may be given one later, and goes on with it."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    samples: Annotated[int, Field(ge=2)] = 5
    """Captions drawn for an image."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.5
    """Of the distribution that they are drawn from; 1 is the decoder's own."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    """How far from the first stage's weights to those that this one learns the decoder lies that is
    kept. Between the two it captions better than either; with ``patch_dropout``, best at 1."""
    max_words: Positive = 20
    bleu_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """How much smoothed BLEU-4 counts in the reward beside CIDEr-D."""
    cross_entropy: Annotated[float, Field(ge=0.0)] = 0.0
    """How much the first stage's loss, of people's words alone, counts beside the reward's."""
    patch_dropout: Dropout = 0.0
    """How many of an image's patches a step goes without, other ones every time."""


class Share(Section):
    """Training images of another run, whose features the same encoder has made."""

    run: RunDirectory
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """How many of its training images an epoch sees, other ones every time."""


class Train(Section):
    epochs: Positive = 15
    batch_size: Positive = 32
    """Images in one optimiser step, over all workers and parts: rounded down to the same number for
    each, of which one is the least."""
    captions_per_image: Literal["first", "all"] = "all"
    own_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """How many of the run's own training images an epoch sees, other ones every time."""
    mixed_with: list[Share] = []
    """Runs to train on beside this one. Validation and test images are this one's alone."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: cosine falls to nothing at the last epoch."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """In which the learning rate rises from nothing."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled from the gradient, as in AdamW."""
    label_smoothing: Dropout = 0.0
    attention_regularisation: Annotated[float, Field(ge=0.0)] = 0.0
    """How much it costs not to look at all patches alike over a caption (Show, Attend and Tell,
    equation 14)."""
    scheduled_sampling: Fraction = 0.0
    """How many of the words read are the decoder's own, at the last epoch; it rises evenly."""
    average: Dropout = 0.0
    """Decay of the moving average of the weights that is validated and kept; 0: no average."""
    choose_by: Literal["loss", "cider", "bleu_4"] = "loss"
    """What an epoch is judged by: the validation loss, or the score of captions of the validation
    images, each word the likeliest. Self-critical epochs are judged by CIDEr-D in place of the
    loss."""
    patience: Positive = 2
    """Epochs without a better one after which training stops."""
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = None
    accumulate: Positive = 1
    """Cut every batch into so many parts, for less memory; the step is the same, but for what is no
    mean over its words (attention_regularisation, self_critical.cross_entropy)."""
    precision: Precision = "auto"
    """Of the products; weights and sums stay float32."""
    checkpoint_steps: Positive | None = None
    """Save after so many steps too, and not only after an epoch."""
    max_words: Positive = 40
    """Longer captions are cut for training; references never are."""
    shuffle_buffer: Positive = 1024
    """Images held to shuffle from: 125 KB each at 49 x 1280 tokens."""
    self_critical: SelfCritical = SelfCritical()
    tensorboard: bool = False
    """Write the history as TensorBoard reads it too, into ``tensorboard/`` of the run."""
    seed: Seed = 0
    """The same one gives the same weights on the same hardware, where nothing has broken off: from
    the same features, and without cluster.address from the images on."""


class Search(Section):
    """How captions are found. captioner/search/__init__.py defines every option."""

    method: Literal["beam", "sample"] = "beam"
    beam_size: Positive = 5
    """Beams, 1 being greedy search; of sample the captions drawn."""
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.7
    repetition_penalty: Annotated[float, Field(ge=1.0)] = 1.2
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    min_words: Annotated[int, Field(ge=0)] = 0
    max_words: Positive = 20
    banned_words: list[str] = []
    required_words: Annotated[list[str], Field(max_length=4)] = []
    groups: Positive = 1
    """More: diverse beam search."""
    diversity_penalty: Annotated[float, Field(ge=0.0)] = 0.5
    temperature: Annotated[float, Field(ge=1e-6)] = 1.0
    """Of sample, as are the next three."""
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: Seed = 0
    consensus: Annotated[float, Field(ge=0.0)] | None = None
    """None: the caption of the highest score. A number: that of the beams which agrees most with
    the others, their probabilities raised to this power (captioner/consensus.py)."""
    n_best: Positive = 1
    """Captions to write of an image, with their log-probabilities."""
    precision: Precision = "float32"
    """Of the decoder's products. ``auto`` is bfloat16 where there are units for it: about twice as
    fast, and a caption differs now and then."""

    @model_validator(mode="after")
    def _options_fit(self) -> Search:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}")
        if self.n_best > self.beam_size:
            raise ValueError(f"n_best {self.n_best} is more than beam_size {self.beam_size}")
        if self.beam_size % self.groups:
            raise ValueError(f"groups {self.groups} do not divide beam_size {self.beam_size}")
        if self.method == "sample" and (self.groups > 1 or self.required_words):
            raise ValueError("groups and required_words are for method: beam")
        if self.groups > 1 and self.required_words:
            raise ValueError("required_words do not go with groups")
        return self


Form = Literal["jsonl", "csv", "sidecar", "webdataset"]


class Caption(Section):
    splits: list[Literal["train", "val", "test"]] = ["test"]
    """Which splits of the manifest a run captions; images without a split are in none."""
    batch_size: Positive | None = None
    """Images that are searched at once; unless given 32, on a GPU 512 (of ``hf:`` and ``coca:``
    models 32)."""
    rows_per_file: Positive = 4096
    formats: list[Form] = []
    """What to write captions as beside the Parquet shards."""


class Score(Section):
    also: list[Literal["meteor", "spice", "clip_score", "ref_clip_score"]] = []
    """Beside BLEU, ROUGE-L and CIDEr-D. METEOR and SPICE need Java and the extra ``scores``,
    CLIPScore a run whose tower is a CLIP model's."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Of the images, for confidence intervals."""
    seed: Seed = 0
    """Of the resamples."""
    group_by: Annotated[str, Field(min_length=1)] | None = None
    """Score each group of images too: those of a ``directory``, of the first level of their ids'
    paths or, as ``directory:2``, of the first two; or those alike in a column of the manifest:
    ``split``, ``uri`` (the shard), or one of ``source.keep_columns``."""


class Report(Section):
    gallery: Positive = 24
    attention: Annotated[int, Field(ge=0)] = 3
    table_rows: Positive = 100_000
    """Captions to search in the page, about 30 bytes each; of more the failed images, the worst
    captions, and a random sample."""


class Cluster(Section):
    """Where and how wide to run. Changes speed, never results, so it may differ between calls."""

    address: str | None = None
    """A Ray cluster; none starts Ray on this machine."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What encoders run on; auto: GPUs where the cluster has any."""
    encoders: Positive | None = None
    """Encoder (and search) actors; none: one for each GPU; where there is none, one a node, and for
    a job of many batches one a core."""
    encoders_max: Positive | None = None
    """The pool grows up to so many as nodes join; none: one for each GPU that joins."""
    shared_paths: bool = False
    """Whether the cluster's machines all see the same files at a local path, as on NFS. Without it
    a local path is refused where there are several."""
    patience: Annotated[float, Field(ge=0.0)] = 15.0
    """Seconds to wait for the cluster to be large enough; longer where it grows by itself."""
    train_workers: Positive = 1
    train_workers_max: Positive | None = None
    """Training goes on with more workers, up to so many, as the cluster grows, and with fewer, down
    to ``train_workers``, as it shrinks."""
    train_retries: Annotated[int, Field(ge=0)] = 3
    """How often training goes on from its last checkpoint after a worker was lost."""
    decode_cpus: Annotated[float, Field(gt=0.0)] = 1.0
    """Logical CPUs that a decoding task claims."""
    rows_per_block: Positive = 256
    """Images that travel together from task to task."""


class JobConfig(Section):
    name: str
    run: RunDirectory
    """The run directory, local or any fsspec URL."""
    source: Source
    split: Split = Split()
    image: Image = Image()
    encoder: Encoder = Encoder()
    features: Features = Features()
    vocabulary: VocabularyOptions = VocabularyOptions()
    decoder: Decoder = Decoder()
    train: Train = Train()
    search: Search = Search()
    caption: Caption = Caption()
    score: Score = Score()
    report: Report = Report()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _attention_has_tokens(self) -> JobConfig:
        if self.decoder.attention != "none" and not self.encoder.tokens:
            raise ValueError("decoder.attention needs encoder.tokens: true (or attention: none)")
        if self.decoder.attention == "none" and self.train.self_critical.patch_dropout:
            raise ValueError("train.self_critical.patch_dropout needs decoder.attention")
        return self

    def at(self, *parts: str) -> str:
        """A place inside the run directory."""
        return storage.join(self.run, *parts)

    @property
    def places(self) -> dict[str, str]:
        """What every machine of a cluster reads or writes, by the key that names it."""
        return {"run": self.run, "source.images": self.source.images}

    @property
    def mixed_runs(self) -> dict[str, str]:
        """What those of a training read beside it."""
        return {f"train.mixed_with[{i}].run": m.run for i, m in enumerate(self.train.mixed_with)}
