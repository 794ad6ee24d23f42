"""What follows a step: the only reader of the config's `every` settings."""

from dataclasses import dataclass

from infogan_dist.config.schema import Config

LAST_RATE = 0.02  # of the learning rate; lower ones change next to nothing


@dataclass(frozen=True)
class Schedule:
    """When to log, draw, evaluate and save.

    Attributes:
        config: the run's.
        samples: number of training images.
    """

    config: Config
    samples: int

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.length(self.samples)

    def should_log(self, step: int) -> bool:
        """Whether the metrics of the last steps are averaged and logged after this step."""
        return step % self.config.train.log_every == 0 or step == self.config.clustering.steps

    def should_draw(self, step: int) -> bool:
        """Whether pictures are drawn after this step; those of the last step follow its checkpoint."""
        return (
            step % self.config.tracking.pictures_every == 0
            and self._is_generating(step)
            and step < self.total
        )

    def should_evaluate(self, step: int) -> bool:
        """Whether the scores are computed after this step."""
        every = self.config.train.evaluate_every
        return every is not None and self._is_generating(step) and (step % every == 0 or step == self.total)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is saved after this step."""
        intervals = (self.config.checkpoint.every, self.config.checkpoint.keep_every)
        return any(every is not None and step % every == 0 for every in intervals)

    def is_dead_code_reported(self, step: int) -> bool:
        """Whether a code has had time enough to be learned, so that a small gain means that it is dead."""
        return step >= self.config.clustering.steps + self.config.train.warm_up

    def _is_generating(self, step: int) -> bool:
        """Whether the generator has been trained."""
        return step > self.config.clustering.steps

    def classifier_rate(self, step: int) -> float:
        """Return the learning rate of the classifier in a step, counted from 0."""
        clustering = self.config.clustering
        return clustering.lr * decay_factor(step, clustering.steps, clustering.decay)

    def gan_rate_factor(self, step: int) -> float:
        """Return what the learning rates of D and G are multiplied by in a step, counted from 0."""
        first = self.config.clustering.steps
        return decay_factor(step - first, self.total - first, self.config.optim.decay)


def decay_factor(step: int, steps: int, share: float) -> float:
    """Return 1, and in the last `share` of the steps a factor that falls linearly to `LAST_RATE`."""
    if share == 0:
        return 1.0
    return min(1.0, max(LAST_RATE, (1 - step / steps) / share))
