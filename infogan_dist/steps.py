"""The discriminator's step and the generator's step: who learns what from which images."""

import torch
from torch import Tensor

from infogan_dist.codes import Latents, LatentSpec, variable_names
from infogan_dist.config import Config
from infogan_dist.engine import Engine, frozen, untracked
from infogan_dist.objective import (
    fake_loss,
    generator_loss,
    information_loss,
    lower_bound,
    r1_penalty,
    real_loss,
)
from infogan_dist.state import TrainState

Terms = dict[str, Tensor]  # numbers of a step by their logged name


class Stepper:
    """Does steps on a `TrainState`."""

    def __init__(self, config: Config, spec: LatentSpec, engine: Engine, state: TrainState):
        self.config, self.objective, self.spec, self.engine = config, config.objective, spec, engine
        self.state, self.q_with_d = state, config.objective.q_step == "discriminator"
        trained = (state.generator, state.discriminator, state.recognition)
        self._tracked = [b for network in trained for b in network.buffers()]

    def train_step(self, real: Tensor, latents: Latents) -> tuple[Terms, Tensor]:
        """One step of D, one of G, and the average's.

        Args:
            real: this process's images of the step, in [-1, 1], [n, C, H, W].
            latents: this process's latents of the step; both networks learn from them.

        Returns:
            The step's terms, and two flags (float32 [2]): whether D's and whether G's loss or gradient was
            not finite. A network's step that was leaves no trace in weights, moments, average or statistics,
            and D's holds back G's.
        """
        before = [b.clone() for b in self._tracked]
        # With one micro-batch the fakes are made once and serve both steps.
        fake = self._fake(latents) if self.config.train.accumulation == 1 else None
        d_terms, d_bad, d_failed = self.discriminator_step(real, latents, fake)
        # An fp16 overflow is the scaler's affair, and one step's overflow no reason to hold up the other.
        g_terms, g_bad, g_failed = self.generator_step(latents, fake, None if self.engine.fp16 else d_bad)
        bad = d_bad | g_bad
        for buffer, old in zip(self._tracked, before, strict=True):
            buffer.copy_(torch.where(bad, old, buffer))
        state = self.state
        self.engine.average_buffers((state.generator, state.discriminator, state.recognition))
        self._average(bad)
        state.step += 1
        return {**d_terms, **g_terms}, torch.stack([d_failed, g_failed])

    def discriminator_step(
        self, real: Tensor, latents: Latents, fake: Tensor | None
    ) -> tuple[Terms, Tensor, Tensor]:
        """Lowers L_D, and -lambda L_I too where D's step trains Q.

        Under d_updates=split D takes two steps, on the real half batch and then on the fakes of every
        second latent, whichever process holds it.

        Returns:
            Terms; whether a gradient was not finite; whether that is to be reported (float32).
        """
        terms: Terms = {}
        joint = self.objective.d_updates == "joint"
        bad, failed, norms = torch.zeros((), dtype=torch.bool, device=real.device), [], []
        for takes_real, takes_fake in ((True, True),) if joint else ((True, False), (False, True)):
            for i, last in self._micro_batches():
                rows = latents[self._rows(len(latents.vector), i)]
                rows = rows if joint else rows[::2]
                with self.engine.accumulate(self.state.d, last):
                    images = real[self._rows(len(real), i)] if takes_real else None
                    fakes = self._fakes_for_d(rows, fake, joint) if takes_fake else None
                    loss = self._discriminator_loss(images, fakes, rows, terms)
                    self.engine.backward(self.state.d, loss)
                failed.append(~loss.detach().isfinite())
            if self.q_with_d and not takes_fake:
                for parameter in self.state.recognition.parameters():
                    parameter.grad = None  # not a gradient of 0, by which Adam would move on
            norm, this_bad = self.engine.update(self.state.d, bad)
            norms.append(norm)
            bad = bad | this_bad
        terms.update(self._norm("d", torch.stack(norms).mean(), bad))
        return terms, bad, self._report(bad, failed)

    def generator_step(
        self, latents: Latents, fake: Tensor | None, blocked: Tensor | None
    ) -> tuple[Terms, Tensor, Tensor]:
        """Lowers L_G - lambda L_I over G, and over Q where G's step trains it; D is frozen.

        Returns:
            As `discriminator_step`.
        """
        terms: Terms = {}
        failed = []
        for i, last in self._micro_batches():
            rows = latents[self._rows(len(latents.vector), i)]
            with self.engine.accumulate(self.state.g, last):
                loss = self._generator_loss(self._fake(rows) if fake is None else fake, rows, terms)
                self.engine.backward(self.state.g, loss)
            failed.append(~loss.detach().isfinite())
        norm, bad = self.engine.update(self.state.g, blocked)
        terms.update(self._norm("g", norm, bad))
        return terms, bad, self._report(bad, failed)

    def warm_up(self, real: Tensor, latents: Latents) -> None:
        """Runs both steps' forward and backward once and discards everything.

        DDP reorders its gradient buckets after its first backward, and with them the order of summation:
        after this the first step of a started run and that of a resumed one sum alike.
        """
        parts = (self.state.d, self.state.g)
        buffers = [b.clone() for b in self._tracked]
        loss = self._discriminator_loss(real, self._fake(latents).detach(), latents, {})
        self.engine.backward(self.state.d, loss)
        self.engine.backward(self.state.g, self._generator_loss(self._fake(latents), latents, {}))
        for part in parts:
            part.optimizer.zero_grad()
        for buffer, old in zip(self._tracked, buffers, strict=True):
            buffer.copy_(old)

    def _discriminator_loss(
        self, real: Tensor | None, fake: Tensor | None, latents: Latents, terms: Terms
    ) -> Tensor:
        kind, r1 = self.objective.loss, self.objective.r1
        if real is not None and r1 > 0:
            real = real.detach().requires_grad_()
        with self.engine.autocast():
            out = {k: _wide(v) for k, v in self.state.d.module(real, fake).items()}
        losses: Terms = {}
        if real is not None:
            losses["d/real"] = real_loss(kind, out["real_logits"])
            if r1 > 0:
                losses["d/r1"] = 0.5 * r1 * r1_penalty(out["real_logits"], real)
            self._add(terms, {"d/logit_real": out["real_logits"].mean(), **self._usage(out["real_features"])})
        if fake is not None:
            losses["d/fake"] = fake_loss(kind, out["fake_logits"])
            if self.q_with_d:
                bounds = lower_bound(self.spec, self.spec.posteriors(out["parameters"]), latents.codes)
                losses["d/information"] = information_loss(self.spec, bounds)
            self._add(terms, {"d/logit_fake": out["fake_logits"].mean()})
        total = torch.stack(list(losses.values())).sum()
        self._add(terms, {"d/loss": total, **losses})
        return total / self.config.train.accumulation

    def _generator_loss(self, fake: Tensor, latents: Latents, terms: Terms) -> Tensor:
        state = self.state
        held = (state.discriminator, state.recognition) if self.q_with_d else (state.discriminator,)
        # The bare networks: gradients pass through them to G, and the parts that wrap them take no notice.
        with frozen(*held), self.engine.autocast():
            features, logits = state.discriminator(fake)
            parameters = state.recognition(features)
        posteriors = self.spec.posteriors(parameters)
        bounds = lower_bound(self.spec, posteriors, latents.codes)
        losses = {
            "g/adversarial": generator_loss(self.objective.loss, _wide(logits)),
            "g/information": information_loss(self.spec, bounds),
        }
        total = torch.stack(list(losses.values())).sum()
        self._add(terms, {"g/loss": total, **losses})
        for name, code in self.spec.codes.items():
            gain = bounds[name] - code.uninformed
            self._add(terms, _by_variable(f"bound/{name}", bounds[name]))
            self._add(terms, _by_variable(f"gain/{name}", gain))
            sigma = code.sigma(posteriors[name])
            if sigma is not None:
                names = variable_names(name, code)
                self._add(terms, {f"sigma/{n}": s for n, s in zip(names, sigma, strict=True)})
        return total / self.config.train.accumulation

    @torch.no_grad()
    def _usage(self, features: Tensor) -> Terms:
        """How often Q takes each category for real images."""
        with untracked(self.state.recognition), self.engine.autocast():
            posteriors = self.spec.posteriors(self.state.recognition(features.detach()))
        terms: Terms = {}
        for name, code in self.spec.codes.items():
            usage = code.usage(posteriors[name])
            for variable, shares in zip(
                variable_names(name, code), [] if usage is None else usage, strict=False
            ):
                terms.update({f"usage/{variable}.{k}": share for k, share in enumerate(shares)})
        return terms

    def _fake(self, latents: Latents) -> Tensor:
        with self.engine.autocast():
            return _wide(self.state.g.module(latents.vector))

    def _fakes_for_d(self, latents: Latents, fake: Tensor | None, joint: bool) -> Tensor:
        if fake is not None:
            return (fake if joint else fake[::2]).detach()
        # G's step makes these images anew, and it is there that they count for batch norm.
        with torch.no_grad(), untracked(self.state.generator), self.engine.autocast():
            return _wide(self.state.generator(latents.vector))

    def _average(self, bad: Tensor) -> None:
        """Moves the average of G and of its batch-norm statistics, unless the step was void.

        The decay starts low, so that the first weights are soon forgotten.
        """
        decay = min(self.config.train.ema_decay, (1 + self.state.step) / (10 + self.state.step))
        weight = (~bad).to(self.engine.dtype) * (1 - decay)
        live = self.state.generator.state_dict()
        for name, mean in self.state.ema.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(live[name], weight)
            else:
                mean.copy_(live[name])

    def _add(self, terms: Terms, more: Terms) -> None:
        """Adds a micro-batch's share to a step's terms."""
        for name, value in more.items():
            share = value.detach() / self.config.train.accumulation
            terms[name] = terms[name] + share if name in terms else share

    def _micro_batches(self) -> list[tuple[int, bool]]:
        count = self.config.train.accumulation
        return [(i, i == count - 1) for i in range(count)]

    def _rows(self, total: int, i: int) -> slice:
        size = total // self.config.train.accumulation
        return slice(i * size, (i + 1) * size)

    def _norm(self, name: str, norm: Tensor, bad: Tensor) -> Terms:
        """The gradients' norm; in fp16 also how often they overflowed, when they count as 0."""
        if not self.engine.fp16:
            return {f"grad_norm/{name}": norm}
        return {f"grad_norm/{name}": torch.where(bad, 0.0, norm), f"overflow/{name}": bad.float()}

    def _report(self, bad: Tensor, failed: list[Tensor]) -> Tensor:
        """What the loop is to hear of; of an fp16 overflow, whose losses are finite, nothing."""
        return (torch.stack(failed).any() if self.engine.fp16 else bad).float()


def _by_variable(name: str, values: Tensor) -> Terms:
    """A code's sum, and each of its variables where it has more than one."""
    each = {f"{name}.{i}": v for i, v in enumerate(values)} if len(values) > 1 else {}
    return {name: values.sum(), **each}


def _wide(values: Tensor) -> Tensor:
    """At least fp32, in which losses are computed under mixed precision."""
    return values if values.dtype == torch.float64 else values.float()
