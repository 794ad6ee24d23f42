"""What is scored: a trained model, the real images of both splits, and images that the model generates."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from infogan_dist.config.schema import Config
from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import open_store
from infogan_dist.data.finite import CHUNK_SIZE, SAMPLE_SEED, FiniteDataset
from infogan_dist.data.images import to_float
from infogan_dist.data.shards import Manifest
from infogan_dist.errors import ConfigError
from infogan_dist.model.codes import Code
from infogan_dist.model.latents import Latents, LatentSpec, variable_names
from infogan_dist.model.networks import ClusteredCode, Generator, build_classifier, build_networks
from infogan_dist.rng import permutation
from infogan_dist.runtime.distributed import Engine
from infogan_dist.scores.code_reader import RECALIBRATION_IMAGES, CodeReader
from infogan_dist.scores.distributed_map import DistributedMap, with_shared_errors
from infogan_dist.scores.score import ScoreUnavailableError

PURPOSE = "scores"  # name of the random sequence of the latents: other ones than in training
GATHERED_NUMBERS = 2**23  # that the processes exchange at a time when they read images together: 64 MiB


class CodeVariable(NamedTuple):
    """One of the independent variables of a code.

    Attributes:
        code: the code's name.
        index: column of the variable in the code's values [N, V].
        name: the variable's name, such as `digit` or `style.0`.
    """

    code: str
    index: int
    name: str


class ScoredModel:
    """A trained model with the images that it is scored with.

    All processes call the same methods in the same order; each process computes its share, and all get the
    same result. Images are divided into chunks of at most `CHUNK_SIZE`, which do not depend on the number of
    processes.

    Args:
        engine: device, precision and the other processes.
        config: the run's config; its `scores` section has the options.
        load: loads the trained weights of the name `generator`, `generator_ema`, `discriminator`,
            `recognition` or `classifier_ema` into a network.
        train: the images that it was trained on.
        test: held-out images of the same shape, or None.

    Attributes:
        engine, config: the arguments.
        spec: the latent codes.
        distributed_map: divides work among the processes; the error of a task is raised on all of them.
        manifests: the real images by split, `train` and, if there are held-out images, `test`.
        datasets: the same, or random samples of them (`scores.limit`), as chunks of decoded images.
        generator: the averaged generator, or the last step's (`scores.ema`).
        trained_reader: D and Q with the running statistics of training.

    Raises:
        ConfigError: the held-out images have another shape.
    """

    def __init__(
        self,
        engine: Engine,
        config: Config,
        load: Callable[[str, nn.Module], None],
        train: Manifest,
        test: Manifest | None,
    ):
        self.engine, self.config = engine, config
        self.distributed_map: DistributedMap = with_shared_errors(engine.distributed_map, engine.world)
        self.spec = LatentSpec(config.noise, config.codes)
        check_test_shape(train, test)
        self.manifests = {"train": train} | ({"test": test} if test else {})
        # With copies of the networks, scores change no statistics of a run, and no batch norm waits for the
        # other processes.
        shape, categories = train.image_shape, self.spec.clustered_categories(config.clustering)
        generator, discriminator, recognition = build_networks(
            config.networks, self.spec, shape, config.seed, categories
        )
        classifier = build_classifier(config.networks, categories, shape, config.seed)
        generator_name = "generator_ema" if config.scores.ema else "generator"
        networks = {generator_name: generator, "discriminator": discriminator, "recognition": recognition}
        networks |= {"classifier_ema": classifier} if classifier else {}
        for name, network in networks.items():
            load(name, network)
            network.to(engine.device, engine.dtype).eval().requires_grad_(False)
        self.generator: Generator = generator
        clustered = ClusteredCode(config.clustering.code, classifier) if classifier else None
        self.trained_reader = CodeReader(
            discriminator, recognition, "", "running statistics", self.spec, clustered
        )
        self.datasets = {split: self._open_dataset(split) for split in self.manifests}
        self._generated: MemoryCache[int, Tensor] = MemoryCache(config.data.cache_mib * 2**20)

    def _open_dataset(self, split: str) -> FiniteDataset:
        manifest, data = self.manifests[split], self.config.data
        skip, cache_bytes = data.on_error == "skip", data.cache_mib * 2**20
        return FiniteDataset(manifest, open_store(data), skip, self.config.scores.limit, cache_bytes)

    @property
    def generator_weights(self) -> str:
        """The weights of the generator, for protocols: `averaged` or `last`."""
        return "averaged" if self.config.scores.ema else "last"

    def categorical_variables(self) -> list[CodeVariable]:
        """Return the variables of all categorical codes."""
        return self._variables(lambda code: code.categories is not None)

    def continuous_variables(self) -> list[CodeVariable]:
        """Return the variables of all continuous codes."""
        return self._variables(lambda code: code.is_continuous)

    def _variables(self, is_included: Callable[[Code], bool]) -> list[CodeVariable]:
        return [
            CodeVariable(name, i, variable)
            for name, code in self.spec.codes.items()
            if is_included(code)
            for i, variable in enumerate(variable_names(name, code))
        ]

    @cached_property
    def generated_sizes(self) -> list[int]:
        """Number of images of each chunk of generated images."""
        count = self.config.scores.images
        return [min(CHUNK_SIZE, count - i) for i in range(0, count, CHUNK_SIZE)]

    def latents(self, i: int) -> Latents:
        """Return the draws from the prior that the i-th chunk is generated from."""
        return self.spec.sample(
            self.config.seed, PURPOSE, i * CHUNK_SIZE, self.generated_sizes[i], self.engine.dtype
        )

    @cached_property
    def generated_codes(self) -> dict[str, Tensor]:
        """Each code's values [N, V], by name, that the images are generated from."""
        chunks = [self.latents(i).codes for i in range(len(self.generated_sizes))]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in self.spec.codes}

    @torch.no_grad()
    def generated_chunk(self, i: int) -> Tensor:
        """Return the i-th chunk of generated images, [n, C, H, W] in [-1, 1] on the device.

        Several scores use the same images: chunks are cached until they fill `data.cache_mib`.
        """
        if i in self._generated:
            return self._generated[i]
        images = self.generator(self.latents(i).to(self.engine.device).vector)
        self._generated.add(i, images, images.nbytes)
        return images

    def real_chunk(self, split: str, i: int) -> Tensor:
        """Return the i-th chunk of a split, [n, C, H, W] in [-1, 1] on the device."""
        return self._to_device(self.datasets[split].read(i).images)

    def _to_device(self, images: np.ndarray) -> Tensor:
        return to_float(torch.from_numpy(images).to(self.engine.device), self.engine.dtype)

    def per_image(self, sizes: list[int], width: int, task: Callable[[int], Any]) -> np.ndarray:
        """Compute some numbers for each image, the chunks divided among the processes.

        Args:
            sizes: number of images of each chunk.
            width: numbers per image.
            task: maps the index of a chunk to its numbers [n, width].

        Returns:
            float64 [N, width].
        """

        def row(i: int) -> np.ndarray:
            padded = np.zeros((CHUNK_SIZE, width))
            padded[: sizes[i]] = np.asarray(task(i), np.float64).reshape(sizes[i], width)
            return padded.ravel()

        rows = self.distributed_map(len(sizes), CHUNK_SIZE * width, row)
        chunks = rows.reshape(len(sizes), CHUNK_SIZE, width)
        return np.concatenate([chunk[:n] for chunk, n in zip(chunks, sizes, strict=True)])

    def labels(self, split: str) -> np.ndarray:
        """Return the class of each image of a split, int64 [N].

        Raises:
            ScoreUnavailableError: an image has no label.
        """
        dataset = self.datasets[split]
        labels = self.per_image(dataset.sizes, 1, lambda i: dataset.read(i).labels)[:, 0].astype(np.int64)
        if labels.min() < 0:
            raise ScoreUnavailableError(
                f"needs labels, but some images of {self.manifests[split].name} have none"
            )
        return labels

    def real_posteriors(self, reader: CodeReader, split: str) -> dict[str, Distribution]:
        """Return Q(c|x) of each real image of a split, by code, batch shape [N, V]."""
        sizes = self.datasets[split].sizes
        return self._posteriors(sizes, lambda i: reader.posterior_params(self.real_chunk(split, i)))

    def generated_posteriors(self, reader: CodeReader) -> dict[str, Distribution]:
        """Return Q(c|x) of each generated image, by code, batch shape [N, V]."""
        sizes = self.generated_sizes
        return self._posteriors(sizes, lambda i: reader.posterior_params(self.generated_chunk(i)))

    def _posteriors(self, sizes: list[int], task: Callable[[int], Tensor]) -> dict[str, Distribution]:
        table = self.per_image(sizes, self.spec.num_posterior_params, lambda i: task(i).double().cpu())
        return self.spec.posteriors(torch.from_numpy(table))

    def real_readers(self) -> list[CodeReader]:
        """Return the readers for real images: as trained, and recalibrated on real training images.

        The running statistics of training mix real and generated images, which have two different
        distributions.
        """
        return self._real_readers

    @cached_property
    def _real_readers(self) -> list[CodeReader]:
        if not self.trained_reader.batch_norms():
            return [self.trained_reader]
        images = self._random_images("train", RECALIBRATION_IMAGES)
        chunks = [images[i : i + CHUNK_SIZE] for i in range(0, len(images), CHUNK_SIZE)]
        sizes = [len(chunk) for chunk in chunks]
        return self._readers(sizes, lambda i: self._to_device(chunks[i]), "random train images")

    def _random_images(self, split: str, limit: int) -> np.ndarray:
        """Return at most `limit` images of a split in random order, uint8 [n, C, H, W].

        They are drawn over all shards, because shards may be ordered by class, and the statistics of a chunk
        must be those of the set. All processes read them together, each shard once.
        """
        dataset, shape = self.datasets[split], self.manifests[split].image_shape
        order = permutation(SAMPLE_SEED, "scores/recalibration", 0, len(dataset))[:limit]
        positions, width = np.sort(order), math.prod(shape)
        chunks = [positions[i : i + CHUNK_SIZE] for i in range(0, len(positions), CHUNK_SIZE)]
        step = max(self.engine.world, GATHERED_NUMBERS // (CHUNK_SIZE * width))
        parts = []
        for first in range(0, len(chunks), step):
            part = chunks[first : first + step]
            numbers = self.per_image(
                [len(chunk) for chunk in part], width, lambda i, part=part: dataset.take(part[i]).images
            )
            parts.append(numbers.astype(np.uint8))
        return np.concatenate(parts)[np.searchsorted(positions, order)].reshape(-1, *shape)

    def generated_readers(self) -> list[CodeReader]:
        """Return the readers for generated images: as trained, and recalibrated on generated images."""
        return self._readers(self.generated_sizes, self.generated_chunk, "drawn images")

    def _readers(self, sizes: list[int], chunk: Callable[[int], Tensor], images: str) -> list[CodeReader]:
        recalibrated = self.trained_reader.recalibrated(sizes, chunk, images, self.distributed_map)
        return [self.trained_reader] + ([recalibrated] if recalibrated is not None else [])


def check_test_shape(train: Manifest, test: Manifest | None) -> None:
    """Refuse held-out images of another shape than the model's. Raises `ConfigError`."""
    if test is not None and test.image_shape != train.image_shape:
        raise ConfigError(
            f"data.test: images of {list(test.image_shape)}, but the model has {list(train.image_shape)} "
            "(channels, height, width); name a shard set with images of the model's shape"
        )
