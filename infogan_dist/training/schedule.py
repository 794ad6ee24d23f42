"""What follows a step: the only reader of the config's `every` settings."""

from dataclasses import dataclass

from infogan_dist.config.schema import Config


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
        return step % self.config.train.log_every == 0

    def should_draw(self, step: int) -> bool:
        """Whether pictures are drawn after this step; those of the last step follow its checkpoint."""
        return step % self.config.tracking.pictures_every == 0 and step < self.total

    def should_evaluate(self, step: int) -> bool:
        """Whether the scores are computed after this step."""
        every = self.config.train.evaluate_every
        return every is not None and (step % every == 0 or step == self.total)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is saved after this step."""
        intervals = (self.config.checkpoint.every, self.config.checkpoint.keep_every)
        return any(every is not None and step % every == 0 for every in intervals)

    def is_dead_code_reported(self, step: int) -> bool:
        """Whether a code has had time enough to be learned, so that a small gain means that it is dead."""
        return step >= self.config.train.warm_up
