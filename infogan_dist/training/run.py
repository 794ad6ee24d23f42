"""A run assembled from its parts: data, networks, state, logs and checkpoints."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from infogan_dist import __version__
from infogan_dist.config.batch_share import launched_share
from infogan_dist.config.load import flatten
from infogan_dist.config.schema import Config
from infogan_dist.data.fetch import open_store
from infogan_dist.data.finite import FiniteDataset
from infogan_dist.data.images import to_float
from infogan_dist.data.loader import Batch, Loader
from infogan_dist.data.resident import open_loader
from infogan_dist.data.shards import load_manifest
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.networks import build_classifier, build_networks
from infogan_dist.runtime import checkpoint, run_logs, tracking
from infogan_dist.runtime.checkpoint import Checkpoint
from infogan_dist.runtime.device import describe_machine, resolve_config
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.metrics import MetricAccumulator, Terms
from infogan_dist.runtime.pictures import image_grid, run_pictures
from infogan_dist.runtime.run_folder import RunFolder
from infogan_dist.training.clustering import ClusteringStep
from infogan_dist.training.graph import CudaGraph, GraphedStep
from infogan_dist.training.schedule import Schedule
from infogan_dist.training.state import initial_clustering, initial_state, set_learning_rate
from infogan_dist.training.step import TrainStep

logger = logging.getLogger(__name__)


class Run:
    """A run ready to train: everything that can be refused has been, and the newest checkpoint is loaded.

    Attributes:
        config: the resolved config.
        folder: the run folder, locked by the main process.
        manifest, test: the training images, and held-out ones or None.
        spec: the latent codes.
        engine: device, precision and processes.
        state: networks and optimizers.
        train_step: does the steps.
        run_step: function that does a step, `TrainStep.run` or a replay of a recorded step.
        loader: this process's real images.
        schedule: what follows each step.
        metrics: the last logged ones, by name.

    Raises:
        ConfigError, DataError: before a device is touched, where that can be known.
    """

    def __init__(self, config: Config):
        config = self.config = resolve_config(config)
        self.folder, self.share = RunFolder(Path(config.run)), launched_share(config)
        tracking.check_trackers(config)
        self.manifest = load_manifest(config.data.shards)
        self.test = None if config.data.test is None else load_manifest(config.data.test)
        if config.train.evaluate_every is not None:
            # scikit-learn takes a second to import, and most runs are not scored.
            from infogan_dist.scores.requirements import check_scores

            check_scores(config, self.manifest, self.test)
        self.spec = LatentSpec(config.noise, config.codes)
        shape, categories = self.manifest.image_shape, self.spec.clustered_categories(config.clustering)
        networks = build_networks(config.networks, self.spec, shape, config.seed, categories)
        classifier = build_classifier(config.networks, categories, shape, config.seed)
        self.folder.create()
        if self.share.rank == 0:
            self.folder.lock()
        resumed = self.folder.resume_point(config, self.manifest)
        initial = checkpoint.require(Path(config.train.init_from)) if config.train.init_from else None

        self.engine = Engine(config)
        self._refuse_unequal_processes(resumed or initial)
        clustering = (
            initial_clustering(config, self.engine, classifier, self.manifest.samples) if classifier else None
        )
        self.state = initial_state(config, self.engine, networks, clustering)
        self.accumulator = MetricAccumulator(self.engine)
        self.train_step = TrainStep(config, self.spec, self.engine, self.state)
        graphed = GraphedStep(self.train_step, CudaGraph()) if config.train.cuda_graph else None
        self.run_step = graphed.run if graphed else self.train_step.run
        self.metrics: dict[str, float] = {}
        self.schedule = Schedule(config, self.manifest.samples)
        self.loader = self._create_loader()
        self._load(resumed, initial)
        self.clustering_step = self._create_clustering_step()
        self._warm_up()

    def _refuse_unequal_processes(self, start: Checkpoint | None) -> None:
        """Refuse to train if the processes do not all have the same config, data, checkpoint and code."""
        values = {
            "config": json.dumps(
                [v for v in flatten(self.config).items() if not v[0].startswith(("run", "tracking."))]
            ),
            "data": self.manifest.fingerprint(),
            "checkpoint": start.digest() if start else "none",
            "version of infogan_dist or torch": f"{__version__} {torch.__version__}",
        }
        for name, ranks in zip(values, self.engine.differing_ranks(list(values.values())), strict=True):
            if ranks:
                raise ConfigError(
                    f"run: process {', '.join(map(str, ranks))} has another {name} than process 0; start "
                    "all with the same arguments and installation, in a run folder that all share "
                    f"({self.folder.path})"
                )

    def _create_loader(self) -> Loader:
        loader = open_loader(self.config, self.manifest, self.share.lanes, self.engine.device)
        # A second of work for 100,000 shards, which one process does for all.
        if self.engine.is_main and (warning := loader.order.drift_warning()):
            logger.warning(warning)
        return loader

    def _create_clustering_step(self) -> ClusteringStep | None:
        """Return what does the first stage's steps; None if the run has none, or has finished them."""
        config = self.config
        if self.state.step >= config.clustering.steps:
            return None
        dataset = FiniteDataset(self.manifest, open_store(config.data), config.data.on_error == "skip")
        logger.info("reading all %d images, for their neighbours", len(dataset))
        images = torch.from_numpy(dataset.take(np.arange(len(dataset))).images)
        return ClusteringStep(config, self.engine, self.state, self.schedule, images)

    def batches(self) -> Iterator[Batch]:
        """Yield this process's real images of each step that remains."""
        first = self.config.clustering.steps
        if self.clustering_step is not None:
            yield from self._pairs(self.clustering_step)
            self.clustering_step = None  # it holds all images in memory
        yield from self.loader.batches(max(0, self.state.step - first))

    def _pairs(self, clustering_step: ClusteringStep) -> Iterator[Batch]:
        """Yield the images of the first stage's remaining steps."""
        remaining = self.config.clustering.steps - self.state.step
        for images in itertools.islice(clustering_step.batches(self.state.step), remaining):
            none = torch.full((len(images),), -1)
            yield Batch(images, none, none.new_zeros(len(images), dtype=torch.bool))

    def _load(self, resumed: Checkpoint | None, initial: Checkpoint | None) -> None:
        """Load the weights of a checkpoint of this run, else those of `train.init_from`."""
        start = resumed or initial
        if start is not None:
            for name, network in self.state.networks().items():
                checkpoint.load_network(start, name, network)
        if resumed is not None:
            self.state.load_optimizers(checkpoint.load_optimizers(resumed))
            self.state.step, self.metrics = resumed.step, resumed.metadata["metrics"]
            self.accumulator.load(resumed.metadata["window"])
            logger.info("continuing from %s", resumed.path)
            before = resumed.metadata.get("machine", {})
            now = describe_machine(self.engine.device, self.engine.world)
            changed = [f"{k}: {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
            if changed and self.engine.is_main:
                message = "the run continues on another machine (%s): results are equal to rounding only"
                logger.warning(message, "; ".join(changed))

    def _warm_up(self) -> None:
        if self.engine.world == 1:
            return
        micro = next(self.share.micro_batches())
        shape = (micro.latents, *self.manifest.image_shape)
        real = torch.zeros(shape, dtype=self.engine.dtype, device=self.engine.device)
        latents = self._latents("warm_up", 0, micro.latents)
        self.train_step.warm_up(real, latents)

    def open(self) -> None:
        """Start to record stop signals, prepare the folder, and start the trackers."""
        self.engine.listen_for_stop()
        if self.engine.is_main:
            self.folder.prepare(self.config, self.state.step)
        tracking.open_trackers(self.engine.accelerator, self.config, self.folder.path)

    def step(self, batch: Batch) -> torch.Tensor:
        """Do one step on this process's share of a global batch.

        Returns:
            float32 [2]: whether D's and whether G's loss or gradient was not finite.
        """
        engine = self.engine
        if self.is_clustering:
            assert self.clustering_step is not None
            result = self.clustering_step.run(batch.images)
        else:
            self._set_learning_rates()
            first, count = self.share.first_latent(self.state.step), self.share.latents
            real, latents = to_float(batch.images, engine.dtype), self._latents("latents", first, count)
            result = self.run_step(real, latents)
        # Filled by a kernel: a copy from the host would wait for it.
        substituted = float(batch.substituted.double().mean())
        terms, flags = Terms(), Terms()
        terms.update(result.terms)
        terms.add({"data/substituted": torch.full((), substituted, dtype=engine.dtype, device=engine.device)})
        flags.add_vector(("nonfinite/d", "nonfinite/g"), result.nonfinite)
        self.accumulator.add(terms, flags)
        return result.nonfinite

    @property
    def is_clustering(self) -> bool:
        """Whether the next step trains the classifier."""
        return self.state.step < self.config.clustering.steps

    def _latents(self, purpose: str, first: int, count: int) -> Latents:
        """Return latents on the device, with the random numbers that the objective needs for their images."""
        latents = self.spec.sample(self.config.seed, purpose, first, count, self.engine.dtype)
        distortion = self.train_step.losses.draw_distortions(first, count)
        return dataclasses.replace(latents, distortion=distortion).to(self.engine.device)

    def _set_learning_rates(self) -> None:
        if self.config.optim.decay == 0:
            return
        factor = self.schedule.gan_rate_factor(self.state.step)
        set_learning_rate(self.state.d, self.config.optim.discriminator.lr * factor)
        set_learning_rate(self.state.g, self.config.optim.generator.lr * factor)

    def log(self, timing: dict[str, float]) -> None:
        """Reduce the window's metrics over all processes, and log them.

        Args:
            timing: measured times, logged beside them.
        """
        step = self.state.step
        entropy = {f"entropy/{n}": c.entropy * c.variables for n, c in self.spec.codes.items()}
        self.metrics = {**self.accumulator.window(), **entropy, **self.state.learning_rates()}
        for name, code in self.spec.codes.items():
            if f"gain/{name}" not in self.metrics:
                continue  # in the first stage
            dead = (
                self.schedule.is_dead_code_reported(step)
                and self.metrics[f"gain/{name}"] < code.dead_threshold
            )
            self.metrics[f"dead/{name}"] = float(dead)
        self.engine.accelerator.log({**self.metrics, **timing}, step=step)

    def evaluate(self) -> None:
        """Compute the scores of the run so far, and log them. To be called by all processes."""
        from infogan_dist.scores.evaluation import evaluate
        from infogan_dist.scores.score import ScoreUnavailableError
        from infogan_dist.scores.scored_model import ScoredModel

        self.train_step.set_average_statistics()

        def load(name: str, network: nn.Module) -> None:
            network.load_state_dict(self.state.networks()[name].state_dict())

        try:
            result = evaluate(ScoredModel(self.engine, self.config, load, self.manifest, self.test))
        except ScoreUnavailableError as error:
            # The labels, which every process reads, rule it out: training continues without scores.
            if self.engine.is_main:
                logger.warning("not scored: %s", error)
            return
        scores = {run_logs.SCORE_PREFIX + name: value for name, value in result.values().items()}
        self.engine.accelerator.log(scores, step=self.state.step)
        if self.engine.is_main:
            pictures = {run_logs.SCORE_PREFIX + name: pixels for name, pixels in result.pictures.items()}
            tracking.log_pictures(self.engine.accelerator, pictures, self.state.step)

    def lacks_scores(self) -> bool:
        """Whether the scores of the current step are due, but not logged. To be called by all processes.

        That is if the run was interrupted after the checkpoint of this step, which precedes its scores.
        """
        if self.state.step == 0 or not self.schedule.should_evaluate(self.state.step):
            return False
        missing = self.engine.is_main and not run_logs.has_step(
            self.folder.path, run_logs.SCORES, self.state.step
        )
        return bool(self.engine.sum(torch.tensor([float(missing)], device=self.engine.device)) > 0)

    def draw(self) -> None:
        """Draw samples and traversals of the averaged generator, on the main process."""
        if self.engine.is_main:
            with self.engine.timed("drawing"):
                self.train_step.set_average_statistics()
                pictures = run_pictures(self.state.ema, self.spec, self.config.seed)
                tracking.log_pictures(self.engine.accelerator, pictures, self.state.step)

    def draw_real(self, batch: Batch) -> None:
        """Draw the first real images, to show the networks' input."""
        if self.engine.is_main:
            picture = image_grid(to_float(batch.images[:100].cpu(), torch.float32), 10)
            tracking.log_pictures(self.engine.accelerator, {"real": picture}, self.state.step)

    def save(self) -> None:
        """Save a checkpoint, and prune older ones. To be called by all processes."""
        window = self.accumulator.state()
        if self.engine.is_main:
            metadata = {
                "version": __version__,
                "step": self.state.step,
                "world": self.engine.world,
                "machine": describe_machine(self.engine.device, self.engine.world),
                "data": self.manifest.name,
                "data_fingerprint": self.manifest.fingerprint(),
                "image_shape": self.manifest.image_shape,
                "label_names": self.manifest.label_names,
                "metrics": self.metrics,
                "window": window,
            }
            with self.engine.timed("saving a checkpoint"):
                self.train_step.set_average_statistics()
                networks, optimizers = self.state.networks(), self.state.optimizers()
                folder = self.folder.save(self.config, networks, optimizers, metadata)
            if folder is not None:
                tracking.log_checkpoint(self.engine.accelerator, folder, self.state.step)
        self.engine.wait()
