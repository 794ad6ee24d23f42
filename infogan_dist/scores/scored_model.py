"""What is scored: a trained model, real images of both splits, and images that it draws."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from infogan_dist.config.schema import Config
from infogan_dist.data.fetch import open_store
from infogan_dist.data.finite import CHUNK_SIZE, FiniteDataset
from infogan_dist.data.shards import Manifest
from infogan_dist.errors import ConfigError
from infogan_dist.model.codes import Code, variable_names
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.networks import Discriminator, Generator, RecognitionNetwork, build_networks
from infogan_dist.runtime.distributed import Engine

PURPOSE = "scores"  # of the random stream: fresh latents, which training never sees
RECALIBRATION = 10_000  # images that batch-norm statistics are taken from anew, at most


class NotMeasurable(ConfigError):  # noqa: N818 - it says what is missing, as one line
    """A score asks for what this model or these images do not have."""


@dataclass(frozen=True)
class Score:
    """A number with all that is needed to say what it means.

    Attributes:
        name: as in scores.json and, after `score/`, in the logs.
        protocol: images, samples, matching, batch norm, ... by word; `interval_95` where there is one.
    """

    name: str
    value: float
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A score's picture, uint8 [height, width, 3]."""

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class CodeReader:
    """D's trunk and Q as one reader of codes, with one choice of batch-norm statistics.

    Attributes:
        suffix: of the names of scores that were read so.
        treatment: where the statistics are from, in words.
    """

    discriminator: Discriminator
    recognition: RecognitionNetwork
    suffix: str
    treatment: str

    @torch.no_grad()
    def posterior_params(self, images: Tensor) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] to the parameters of Q(c|x) [n, spec.num_posterior_params]."""
        features, _ = self.discriminator(images)
        return self.recognition(features)

    def norms(self) -> list[_BatchNorm]:
        """The batch norms on the way to the codes."""
        return [
            m
            for n in (self.discriminator, self.recognition)
            for m in n.modules()
            if isinstance(m, _BatchNorm)
        ]


class ScoredModel:
    """A trained model with the images that it is scored with.

    All processes call the same methods in the same order; each computes its share, and all get the same.

    Args:
        load: gives a network the trained weights of that name, `generator`, `generator_ema`, `discriminator`
            or `recognition`.
        train: the images that it has learned from.
        test: held-out images of the same kind, or None.

    Raises:
        ConfigError: the held-out images are of another kind.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        load: Callable[[str, nn.Module], None],
        train: Manifest,
        test: Manifest | None,
    ):
        self.engine, self.config, self.scores = engine, config, config.scores
        self.spec = LatentSpec(config.noise, config.codes)
        self.manifests = {"train": train} | ({"test": test} if test else {})
        # Networks of their own: scores change no statistics of a run, and no batch norm waits for others.
        generator, discriminator, recognition = build_networks(
            config.networks, self.spec, train.image_shape, config.seed
        )
        drawing = "generator_ema" if self.scores.ema else "generator"
        own = {drawing: generator, "discriminator": discriminator, "recognition": recognition}
        for name, network in own.items():
            load(name, network)
            network.to(engine.device, engine.dtype).eval().requires_grad_(False)
        self.generator: Generator = generator
        self.running = CodeReader(discriminator, recognition, "", "running statistics")

        self.images = {split: self._images(split) for split in self.manifests}
        self._drawn: dict[int, Tensor] = {}
        self._room = config.data.cache_mib * 2**20

    def _images(self, split: str) -> FiniteDataset:
        """The real images of a split."""
        manifest, data = self.manifests[split], self.config.data
        expected = self.manifests["train"].image_shape
        if manifest.image_shape != expected:
            raise ConfigError(
                f"data.test: images of {list(manifest.image_shape)} where the model has {list(expected)}"
            )
        skip, kept = data.on_error == "skip", data.cache_mib * 2**20
        return FiniteDataset(manifest, open_store(data), skip, self.scores.limit, kept)

    @property
    def which_generator(self) -> str:
        """The generator that draws, in words."""
        return "averaged" if self.scores.ema else "last"

    def variables(self, kind: type[Code]) -> list[tuple[str, int, str]]:
        """Each variable of the codes of a kind: its code, its index there, and its own name."""
        return [
            (name, i, variable)
            for name, code in self.spec.codes.items()
            if isinstance(code, kind)
            for i, variable in enumerate(variable_names(name, code))
        ]

    @cached_property
    def fake_sizes(self) -> list[int]:
        """Images of each piece of those that the model draws."""
        return [min(CHUNK_SIZE, self.scores.images - i) for i in range(0, self.scores.images, CHUNK_SIZE)]

    def latents(self, i: int) -> Latents:
        """The prior's draws from which the i-th piece is drawn."""
        return self.spec.sample(
            self.config.seed, PURPOSE, i * CHUNK_SIZE, self.fake_sizes[i], self.engine.dtype
        )

    @cached_property
    def fake_values(self) -> dict[str, Tensor]:
        """Each code's values [N, V], by name, from which the images are drawn."""
        pieces = [self.latents(i).codes for i in range(len(self.fake_sizes))]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in self.spec.codes}

    @torch.no_grad()
    def fakes(self, i: int) -> Tensor:
        """The i-th piece of drawn images, [n, C, H, W] in [-1, 1] on the device.

        Pieces are kept until they fill `data.cache_mib`, for several scores look at them.
        """
        if i in self._drawn:
            return self._drawn[i]
        piece = self.generator(self.latents(i).to(self.engine.device).vector)
        if piece.nbytes <= self._room:
            self._room -= piece.nbytes
            self._drawn[i] = piece
        return piece

    def reals(self, split: str, i: int) -> Tensor:
        """The i-th piece of a split, [n, C, H, W] in [-1, 1] on the device."""
        images = torch.from_numpy(self.images[split].read(i).images)
        return images.to(self.engine.device).to(self.engine.dtype) / 127.5 - 1

    def per_image(self, sizes: list[int], width: int, task: Callable[[int], Any]) -> np.ndarray:
        """`width` numbers an image, float64 [N, width], from a task that gives a piece's [n, width]."""

        def row(i: int) -> np.ndarray:
            padded = np.zeros((CHUNK_SIZE, width))
            padded[: sizes[i]] = np.asarray(task(i), np.float64).reshape(sizes[i], width)
            return padded.ravel()

        table = self.engine.distributed_map(len(sizes), CHUNK_SIZE * width, row).reshape(
            len(sizes), CHUNK_SIZE, width
        )
        return np.concatenate([piece[:n] for piece, n in zip(table, sizes, strict=True)])

    def labels(self, split: str) -> np.ndarray:
        """The class of each image of a split, int64 [N]. Raises `NotMeasurable` where one has none."""
        data = self.images[split]
        labels = self.per_image(data.sizes, 1, lambda i: data.read(i).labels)[:, 0].astype(np.int64)
        if labels.min() < 0:
            raise NotMeasurable(f"needs labels, which {self.manifests[split].name} lacks")
        return labels

    def real_codes(self, reader: CodeReader, split: str) -> dict[str, Distribution]:
        """Q(c|x) of each real image of a split, by code, batch shape [N, V]."""
        sizes = self.images[split].sizes
        return self._posteriors(sizes, lambda i: reader.posterior_params(self.reals(split, i)))

    def fake_codes(self, reader: CodeReader) -> dict[str, Distribution]:
        """Q(c|x) of each drawn image, by code, batch shape [N, V]."""
        return self._posteriors(self.fake_sizes, lambda i: reader.posterior_params(self.fakes(i)))

    def _posteriors(self, sizes: list[int], task: Callable[[int], Tensor]) -> dict[str, Distribution]:
        table = self.per_image(sizes, self.spec.num_posterior_params, lambda i: task(i).double().cpu())
        return self.spec.posteriors(torch.from_numpy(table))

    def real_readers(self) -> list[CodeReader]:
        """Readers of real images: as trained, and with statistics of real training images alone.

        The running statistics of training mix real and drawn images, which are two distributions.
        """
        sizes = self.images["train"].sizes
        return self._readers(sizes, lambda i: self.reals("train", i), "train images")

    def fake_readers(self) -> list[CodeReader]:
        """Readers of drawn images: as trained, and with statistics of drawn images alone."""
        return self._readers(self.fake_sizes, self.fakes, "drawn images")

    def _readers(self, sizes: list[int], draw: Callable[[int], Tensor], what: str) -> list[CodeReader]:
        # A batch of one has no variance.
        pieces = [i for i, size in enumerate(sizes) if size > 1][: RECALIBRATION // CHUNK_SIZE]
        if not self.running.norms() or not pieces:
            return [self.running]
        used = [sizes[i] for i in pieces]
        reader = CodeReader(
            copy.deepcopy(self.running.discriminator),
            copy.deepcopy(self.running.recognition),
            "_recalibrated",
            f"recalibrated on {sum(used):,} {what}",
        )
        _recalibrate(reader, used, lambda k: draw(pieces[k]), self.engine)
        return [self.running, reader]


def _recalibrate(reader: CodeReader, sizes: list[int], draw: Callable[[int], Tensor], engine: Engine) -> None:
    """Sets batch norm's statistics to the mean, over images, of their piece's own, normalised by these."""
    norms = reader.norms()
    statistics = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    for norm in norms:
        norm.momentum = 1.0  # a forward then leaves its own batch's statistics
        norm.train()

    def task(i: int) -> np.ndarray:
        reader.posterior_params(draw(i))
        return torch.cat([b.double() for b in statistics]).cpu().numpy()

    table = engine.distributed_map(len(sizes), sum(b.numel() for b in statistics), task)
    mean = torch.from_numpy(np.average(table, axis=0, weights=sizes))
    for norm in norms:
        norm.eval()
    for buffer, values in zip(statistics, mean.split([b.numel() for b in statistics]), strict=True):
        buffer.copy_(values)
