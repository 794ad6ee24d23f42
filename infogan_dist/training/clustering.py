"""The first stage of a run: a classifier divides real images into the categories of a code, without labels.

One step, with a global batch of real images x:

    1   x' = a neighbour of x, by pixels at first, later by the classifier's features as well
    2   p = classifier(distort(x)), p' = classifier(distort(x'))
    3   in the first steps: swapped prediction of balanced targets;
        later: symmetric cross entropy of p and p' - balance * H(mean of p and p')
    4   update the classifier by Adam, then its average

Every few steps the neighbours are computed again, from the features of the averaged classifier. All
statistics are those of the global batch, and all random numbers are functions of the step, so that a step
does not depend on the number of processes, and a resumed run is the same.
"""

import copy
import functools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from infogan_dist.config.clustering import ClusteringConfig
from infogan_dist.config.schema import Config
from infogan_dist.data.images import to_float
from infogan_dist.data.neighbours import nearest, pooled_pixels, principal_components
from infogan_dist.data.transfer import concatenate_on_device
from infogan_dist.model.clustering import (
    balanced_targets,
    consistency_loss,
    mean_entropy,
    swapped_prediction_loss,
)
from infogan_dist.model.networks import Classifier
from infogan_dist.model.views import VIEW_UNIFORMS, distort
from infogan_dist.rng import permutation, uniforms
from infogan_dist.runtime.batch_norm import set_running_statistics
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.metrics import Terms
from infogan_dist.training.average import WeightAverage
from infogan_dist.training.schedule import Schedule
from infogan_dist.training.state import ClusteringState, TrainState, set_learning_rate
from infogan_dist.training.step import StepResult, copy_tensors

logger = logging.getLogger(__name__)

PIXEL_COMPONENTS, FEATURE_COMPONENTS = 40, 32  # dimensions in which neighbours are searched
FIRST_HOPS = 2  # neighbours of neighbours, as long as only pixels are compared
# After this part of the steps the features change little, and no neighbours are searched any more.
LAST_REBUILD = 0.8
STATISTICS_BATCH, STATISTICS_BATCHES = 512, 8  # of real images, for the averaged classifier's batch norm
FEATURE_BATCH = 1000


class ClusteringStep:
    """Does the first stage's steps.

    Args:
        config: the run's.
        engine: device, precision and processes.
        state: what the steps update; its `clustering` is not None.
        schedule: the learning rate.
        images: all real images, uint8 [N, C, H, W].
    """

    def __init__(self, config: Config, engine: Engine, state: TrainState, schedule: Schedule, images: Tensor):
        assert state.clustering is not None
        self.config, self.settings, self.engine, self.state = config, config.clustering, engine, state
        self.clustering: ClusteringState = state.clustering
        self.schedule, self.images = schedule, images
        self.average = WeightAverage(
            self.clustering.average, self.clustering.classifier, self.settings.ema_decay
        )
        if (self.clustering.graphs.pixels < 0).any():
            logger.info("searching the neighbours of %d images", len(images))
            vectors = principal_components(pooled_pixels(images).to(engine.device), PIXEL_COMPONENTS)
            self.clustering.graphs.pixels.copy_(self._neighbours(vectors))

    def batches(self, step: int) -> Iterator[Tensor]:
        """Yield this process's images of each step from `step` on: uint8 [2n, C, H, W], partners last."""
        while True:
            rows = self._rows(step)
            images = self.images[torch.cat([rows, self._partners(step, rows)])]
            yield concatenate_on_device([images], self.engine.device)
            step += 1

    def run(self, images: Tensor) -> StepResult:
        """Do one step.

        Args:
            images: of `batches`.
        """
        settings, step, part = self.settings, self.state.step, self.clustering.part
        set_learning_rate(part, self.schedule.classifier_rate(step))
        self.average.set_weight(step)
        restore = copy_tensors(part.buffers)
        views = distort(to_float(images, self.engine.dtype), self._view_uniforms(step), settings.views)
        with self.engine.autocast():
            logits = part.module(views)
        log_probs, partner_log_probs = logits.to(self.engine.dtype).log_softmax(1).chunk(2)
        shares = self.engine.mean((log_probs.exp().mean(0) + partner_log_probs.exp().mean(0)) / 2)
        entropy = mean_entropy(shares)
        if step < settings.balanced_steps:
            loss = swapped_prediction_loss(
                log_probs, partner_log_probs, self._targets(log_probs, partner_log_probs)
            )
        else:
            loss = consistency_loss(log_probs, partner_log_probs) - settings.balance * entropy
        self.engine.backward(part, loss)
        norm, suppressed = self.engine.update(part)
        restore(suppressed)
        self.average.update(suppressed)
        agreement = (log_probs.argmax(1) == partner_log_probs.argmax(1)).to(self.engine.dtype).mean()
        terms = {"loss": loss, "entropy": entropy, "agreement": agreement}
        result = Terms({f"classifier/{name}": value for name, value in terms.items()})
        result.add({"grad_norm/classifier": norm})
        self.state.step += 1
        self._follow(self.state.step)
        return StepResult(result, torch.stack([suppressed, suppressed]).float())

    def _follow(self, step: int) -> None:
        """After a step, search neighbours by features, or make the averaged classifier ready for use."""
        settings = self.settings
        if step == settings.steps:
            self._set_statistics(self.clustering.average)
        elif should_rebuild(settings, step):
            classifier = copy.deepcopy(self.clustering.average)
            self._set_statistics(classifier)
            vectors = torch.nn.functional.normalize(self._features(classifier), dim=1)
            self.clustering.graphs.features.copy_(
                self._neighbours(principal_components(vectors, FEATURE_COMPONENTS))
            )

    def _targets(self, log_probs: Tensor, partner_log_probs: Tensor) -> Tensor:
        """Return this process's rows of the balanced targets of the global batch."""
        own = torch.cat([log_probs, partner_log_probs]).detach()
        everyone = self.engine.gather(own)
        return balanced_targets(everyone.flatten(0, 1)).view_as(everyone)[self.engine.rank]

    def _rows(self, step: int) -> Tensor:
        """Return the indices of this process's images, int64 [n], in a random order for each epoch."""
        count, samples = self.settings.batch_size // self.engine.world, len(self.images)
        first = step * self.settings.batch_size + self.engine.rank * count
        positions = np.arange(first, first + count)
        rows = [_order(self.config.seed, p // samples, samples)[p % samples] for p in positions.tolist()]
        return torch.from_numpy(np.array(rows))

    def _uniforms(self, purpose: str, step: int, width: int) -> Tensor:
        """Return the random numbers [n, width] of this process's images in a step."""
        count = self.settings.batch_size // self.engine.world
        first = step * self.settings.batch_size + self.engine.rank * count
        return torch.from_numpy(uniforms(self.config.seed, f"clustering/{purpose}", first, count, width))

    def _view_uniforms(self, step: int) -> Tensor:
        draws = self._uniforms("views", step, 2 * VIEW_UNIFORMS)
        return concatenate_on_device(list(draws.chunk(2, 1)), self.engine.device)

    def _partners(self, step: int, rows: Tensor) -> Tensor:
        """Return a random neighbour of each image, int64 [n]."""
        graphs, draws = self.clustering.graphs, self._uniforms("partners", step, 3)
        hops = (
            (draws[:, :FIRST_HOPS] * self.settings.neighbours).long().clamp_max(self.settings.neighbours - 1)
        )
        by_pixels = rows
        for hop in hops.T:
            by_pixels = graphs.pixels[by_pixels, hop].long()
        if (graphs.features < 0).any():
            return by_pixels
        direct = graphs.pixels[rows, hops[:, 0]].long()
        by_features = graphs.features[rows, hops[:, 0]].long()
        return torch.where(draws[:, 2] < self.settings.pixel_share, direct, by_features)

    def _neighbours(self, vectors: Tensor) -> Tensor:
        """Return the nearest neighbours of all images, int32 [N, k]; the processes share the work."""
        samples, world, rank = len(vectors), self.engine.world, self.engine.rank
        rows = range(samples * rank // world, samples * (rank + 1) // world)
        table = torch.zeros(samples, self.settings.neighbours, dtype=torch.int64, device=vectors.device)
        table[rows.start : rows.stop] = nearest(vectors, rows, self.settings.neighbours)
        return self.engine.sum(table).cpu().int()

    @torch.no_grad()
    def _features(self, classifier: Classifier) -> Tensor:
        """Return the features of all images, [N, D] on the device; the processes share the work."""
        samples, world, rank = len(self.images), self.engine.world, self.engine.rank
        rows = range(samples * rank // world, samples * (rank + 1) // world)
        own = [
            classifier.features(self._float_images(slice(i, min(i + FEATURE_BATCH, rows.stop))))
            for i in range(rows.start, rows.stop, FEATURE_BATCH)
        ]
        table = own[0].new_zeros(samples, own[0].shape[1])
        table[rows.start : rows.stop] = torch.cat(own)
        return self.engine.sum(table)

    def _set_statistics(self, classifier: Classifier) -> None:
        """Set batch norm's statistics to those of real images.

        Those of training belong to distorted images. Every process computes the same.
        """
        order = torch.from_numpy(permutation(self.config.seed, "clustering/statistics", 0, len(self.images)))
        batches = order.split(STATISTICS_BATCH)[:STATISTICS_BATCHES]
        set_running_statistics(classifier, (self._float_images(rows) for rows in batches))

    def _float_images(self, rows: Tensor | slice) -> Tensor:
        return to_float(self.images[rows].to(self.engine.device), self.engine.dtype)


def should_rebuild(settings: ClusteringConfig, step: int) -> bool:
    """Whether neighbours are searched by features after a step, counted from 1."""
    return step % settings.rebuild_every == 0 and step < LAST_REBUILD * settings.steps


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """Return the order of the images in an epoch; a batch may contain images of two."""
    return permutation(seed, "clustering", epoch, samples)
