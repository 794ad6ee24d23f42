"""One training step: the discriminator's update, then the generator's.

The algorithm (Chen et al. 2016, arXiv 1606.03657, eq. 6), with `q_step=discriminator` and `d_updates=joint`:

    1   take the step's real images x and latents (z, c) ~ prior
    2   fake = G(z, c)
    3   L_I = sum over codes of lambda * (H(c) + mean log Q(c | fake))                            (eq. 5)
    4   L_D = loss.discriminator(D(x), D(fake)) + r1 / 2 * mean |grad D(x)|^2 (+ r2 on fake)
    5   update trunk, logit and Q by Adam on L_D - L_I
    6   freeze D and Q
    7   L_G = loss.generator(D(fake)), and L_I again with the updated Q
    8   update G by Adam on L_G - L_I
    9   average of G's weights = decay * average + (1 - decay) * weights

With `q_step=generator` line 5 leaves Q out and line 8 includes it. With `d_updates=split` lines 4 and 5 are
done twice: on half a batch of real images, then on every second generated image. With accumulation lines 2
to 4 and 7 are done for each micro-batch, and gradients add up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_dist.config.batch_share import BatchShare
from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.runtime.batch_norm import refuse_single_images, set_running_statistics, untracked
from infogan_dist.runtime.distributed import Engine, TrainablePart
from infogan_dist.runtime.metrics import Terms
from infogan_dist.training.average import WeightAverage
from infogan_dist.training.objective import Objective, at_least_fp32
from infogan_dist.training.state import TrainState

STATISTICS_BATCH, STATISTICS_BATCHES = 256, 8  # of generated images, for the averaged generator's batch norm


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step.

    Attributes:
        terms: numbers to log, on the device.
        nonfinite: float32 [2] on the device: whether D's and whether G's loss or gradient was not finite; in
            the first stage both are the classifier's.
    """

    terms: Terms
    nonfinite: Tensor


@dataclass(frozen=True)
class UpdateResult:
    """The outcome of the discriminator's or of the generator's update.

    Attributes:
        terms: numbers to log.
        suppressed: bool [], whether nothing was updated, since a gradient was not finite.
        nonfinite: float32 [], whether the run has to react to that.
    """

    terms: Terms
    suppressed: Tensor
    nonfinite: Tensor


class TrainStep:
    """Does training steps; see the algorithm above.

    Args:
        config: the run's.
        spec: the latent codes.
        engine: device, precision and processes.
        state: what the steps update.

    Attributes:
        share: this process's part of a global batch.
        losses: the losses of both updates.
        suppress: bool [] on the device; while it is true, steps change nothing.
        average: updates the averaged generator.

    Raises:
        ConfigError: a loss that compares real with generated images, under `d_updates=split`.
    """

    def __init__(self, config: Config, spec: LatentSpec, engine: Engine, state: TrainState):
        self.config, self.objective, self.spec, self.engine, self.state = (
            config, config.objective, spec, engine, state,
        )  # fmt: skip
        self.losses = Objective(config, spec, engine, state)
        self.share = BatchShare(config, engine.world, engine.rank)
        self.suppress = torch.zeros((), dtype=torch.bool, device=engine.device)
        self.average = WeightAverage(state.ema, state.generator, config.train.ema_decay)
        if self.losses.adversarial.paired and config.objective.split_updates:
            raise ConfigError(
                f"objective.loss: {config.objective.loss} compares real with generated images; "
                "use objective.d_updates=joint"
            )
        refuse_single_images(self.share, state.trained_networks())

    def run(self, real: Tensor, latents: Latents) -> StepResult:
        """Update D, then G, then the average of G.

        An update whose loss or gradient is not finite is suppressed: its weights, moments and running
        statistics and, for G, the average do not change. If D's update is suppressed, so is G's.

        Args:
            real: this process's real images of the step, [n, C, H, W] in [-1, 1].
            latents: this process's latents of the step; both updates use them.
        """
        self.prepare()
        result = self.compute(real, latents)
        self.state.step += 1
        return result

    def prepare(self) -> None:
        """Set what depends on the number of the step."""
        step = self.state.step - self.config.clustering.steps
        self.average.set_weight(step)
        self.losses.is_penalised = step % self.objective.penalty_every == 0

    def compute(self, real: Tensor, latents: Latents) -> StepResult:
        """Do the device's work of `run`: all that a CUDA graph can contain."""
        restore_d, restore_g = copy_tensors(self.state.d.buffers), copy_tensors(self.state.g.buffers)
        # With one micro-batch the generated images serve both updates.
        fake = self._generate(latents) if self.config.train.accumulation == 1 else None
        d = self.update_discriminator(real, latents, fake)
        # Under fp16 an overflow concerns one scaler alone, and must not suppress the other update.
        g = self.update_generator(real, latents, fake, self.suppress if self.engine.fp16 else d.suppressed)
        restore_d(d.suppressed)
        restore_g(g.suppressed)
        self.average.update(g.suppressed)
        d.terms.update(g.terms)
        return StepResult(d.terms, torch.stack([d.nonfinite, g.nonfinite]))

    def update_discriminator(self, real: Tensor, latents: Latents, fake: Tensor | None) -> UpdateResult:
        """Lower L_D, and -L_I too where this update trains Q.

        Under `d_updates=split` this takes two steps of Adam: on the real half batch, then on the images of
        every second latent, whichever process owns it.

        Args:
            real, latents: as of `run`.
            fake: generated images [n, C, H, W]; None: generate those of each micro-batch.
        """
        terms = Terms(parts=self.config.train.accumulation)
        joint = not self.objective.split_updates
        # Of two steps of Adam the first is taken back if the second is suppressed.
        restore = self.engine.copy_state(self.state.d) if not joint else None
        suppressed, nonfinite, norms = self.suppress, [], []
        for takes_real, takes_fake in ((True, True),) if joint else ((True, False), (False, True)):
            for micro in self.share.micro_batches():
                rows = latents.map(micro.take)
                rows = rows if joint else rows[::2]
                with self.engine.accumulate(self.state.d, micro.is_last):
                    images = micro.take(real) if takes_real else None
                    fakes = self._fakes_for_discriminator(rows, fake) if takes_fake else None
                    loss = self.losses.discriminator(images, fakes, rows, terms)
                    nonfinite.append(self._backward(self.state.d, loss))
            if self.objective.q_with_discriminator and not takes_fake:
                for parameter in self.state.recognition.parameters():
                    # Real images give Q no gradient. A zero gradient would let Adam move by its momentum.
                    parameter.grad = None
            norm, update_suppressed = self.engine.update(self.state.d, suppressed)
            norms.append(norm)
            suppressed = suppressed | update_suppressed
        if restore is not None:
            restore(suppressed)
        norm = norms[0] if joint else torch.stack(norms).mean()
        terms.update(self._gradient_norm("d", norm, suppressed))
        return UpdateResult(terms, suppressed, self._report(suppressed, nonfinite))

    def update_generator(
        self, real: Tensor, latents: Latents, fake: Tensor | None, suppress: Tensor
    ) -> UpdateResult:
        """Lower L_G - L_I over G, and over Q where this update trains it; D is frozen.

        Args:
            real, latents: as of `run`; the real images are used by paired losses only.
            fake: generated images with their graph; None: generate those of each micro-batch.
            suppress: bool []: whether to suppress the update in any case.
        """
        terms, nonfinite = Terms(parts=self.config.train.accumulation), []
        for micro in self.share.micro_batches():
            rows = latents.map(micro.take)
            with self.engine.accumulate(self.state.g, micro.is_last):
                images = self._generate(rows) if fake is None else fake
                loss = self.losses.generator(micro.take(real), images, rows, terms)
                nonfinite.append(self._backward(self.state.g, loss))
        norm, own_suppressed = self.engine.update(self.state.g, suppress)
        terms.update(self._gradient_norm("g", norm, own_suppressed))
        return UpdateResult(terms, own_suppressed | suppress, self._report(own_suppressed, nonfinite))

    def warm_up(self, real: Tensor, latents: Latents) -> None:
        """Run the forward and backward of both updates once and discard their results.

        DDP reorders its gradient buckets after its first backward, and with them the order of summation.
        After this call the first step of a started run and that of a resumed one sum alike.

        Args:
            real, latents: a micro-batch of any content.
        """
        restore = copy_tensors([*self.state.d.buffers, *self.state.g.buffers])
        loss = self.losses.discriminator(real, self._generate(latents).detach(), latents, Terms())
        self.engine.backward(self.state.d, loss)
        loss = self.losses.generator(real, self._generate(latents), latents, Terms())
        self.engine.backward(self.state.g, loss)
        for part in (self.state.d, self.state.g):
            part.optimizer.zero_grad()
        restore(None)

    def set_average_statistics(self) -> None:
        """Set the averaged generator's running statistics, before it is used.

        They are a function of its weights and of the seed, so that it does not matter how often this is done.
        """
        starts = range(0, STATISTICS_BATCH * STATISTICS_BATCHES, STATISTICS_BATCH)
        seed, engine = self.config.seed, self.engine
        samples = (self.spec.sample(seed, "statistics", i, STATISTICS_BATCH, engine.dtype) for i in starts)
        set_running_statistics(self.state.ema, (s.vector.to(engine.device) for s in samples))

    def _generate(self, latents: Latents) -> Tensor:
        with self.engine.autocast():
            return at_least_fp32(self.state.g.module(latents.vector))

    def _fakes_for_discriminator(self, latents: Latents, fake: Tensor | None) -> Tensor:
        if fake is not None:
            return (fake[::2] if self.objective.split_updates else fake).detach()
        # The generator's update generates these images again, and updates its running statistics then.
        with torch.no_grad(), untracked(self.state.generator), self.engine.autocast():
            return at_least_fp32(self.state.generator(latents.vector))

    def _backward(self, part: TrainablePart, loss: Tensor) -> Tensor:
        """Add the gradients of a micro-batch's share of the step's loss; return whether it was not finite."""
        count = self.config.train.accumulation
        return self.engine.backward(part, loss if count == 1 else loss / count)

    def _gradient_norm(self, name: str, norm: Tensor, suppressed: Tensor) -> Terms:
        """Return the norm of the gradients; in fp16 also how often they overflowed, when they count as 0."""
        if not self.engine.fp16:
            return Terms({f"grad_norm/{name}": norm})
        norm = torch.where(suppressed, 0.0, norm)
        return Terms({f"grad_norm/{name}": norm, f"overflow/{name}": suppressed.float()})

    def _report(self, suppressed: Tensor, nonfinite: list[Tensor]) -> Tensor:
        """Return whether the run has to react; not to an fp16 overflow, whose losses are finite."""
        return (torch.stack(nonfinite).any() if self.engine.fp16 else suppressed).float()


def copy_tensors(tensors: Iterable[Tensor]) -> Callable[[Tensor | None], None]:
    """Copy tensors, and return a function that restores them where a flag, bool [], is true; None: anyway."""
    copies = [(tensor, tensor.clone()) for tensor in tensors]

    def restore(flag: Tensor | None) -> None:
        for tensor, copy in copies:
            tensor.copy_(copy if flag is None else torch.where(flag, copy, tensor))

    return restore
