"""The losses of the discriminator's and of the generator's update.

With a classifier (`clustering`), whose categories are those of a code c:

    D(x) stands for D(x, category of x): of a real image, the classifier's; of a generated one, c;
    log Q(c | fake) is the classifier's, of a distorted view of the generated image. D's update leaves it out,
    since neither D nor Q can change it.
"""

import torch
from torch import Tensor

from infogan_dist.config.schema import Config
from infogan_dist.model.codes import CategoricalCode
from infogan_dist.model.latents import Latents, LatentSpec, variable_names
from infogan_dist.model.losses import LOSSES, gradient_penalty, information_loss, lower_bound
from infogan_dist.model.views import VIEW_UNIFORMS, distort, shear_and_dilate
from infogan_dist.rng import uniforms
from infogan_dist.runtime.batch_norm import frozen, untracked
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.metrics import Terms
from infogan_dist.training.state import TrainState


class Objective:
    """Computes the losses of a micro-batch from the networks.

    Args:
        config: the run's.
        spec: the latent codes.
        engine: precision.
        state: the networks.

    Attributes:
        adversarial: the adversarial loss.
        is_penalised: whether this step has the penalties R1 and R2.
    """

    def __init__(self, config: Config, spec: LatentSpec, engine: Engine, state: TrainState):
        self.config, self.settings, self.spec, self.engine, self.state = (
            config, config.objective, spec, engine, state,
        )  # fmt: skip
        self.adversarial, self.is_penalised = LOSSES[config.objective.loss], True
        self.clustered = config.clustering.code if state.clustering is not None else None

    def discriminator(
        self, real: Tensor | None, fake: Tensor | None, latents: Latents, terms: Terms
    ) -> Tensor:
        """Return L_D (- L_I) of a micro-batch, and add its terms to `terms`.

        Args:
            real, fake: real images, and generated ones without their graph, [n, C, H, W]; one may be None.
            latents: of the generated images.
            terms: gets numbers to log.
        """
        real, fake = self._with_gradient(real, self.settings.r1), self._with_gradient(fake, self.settings.r2)
        categories = (self._real_categories(real), self._fake_categories(latents))
        restyled, change = self._restyle(fake, latents)
        with self.engine.autocast():
            out = self.state.d.module(real, fake, *categories, restyled)
            out = {name: at_least_fp32(value) for name, value in out.items()}
        real_logits, fake_logits = out.get("real_logits"), out.get("fake_logits")
        adversarial = self.adversarial.discriminator(real_logits, fake_logits)
        losses = {f"d/{name}": value for name, value in adversarial.items()}
        if real is not None and real_logits is not None:
            losses |= self._penalty("d/r1", self.settings.r1, real_logits, real)
            terms.add({"d/logit_real": real_logits.mean()})
            self._add_code_usage(terms, out["real_features"], categories[0])
        if fake is not None and fake_logits is not None:
            losses |= self._penalty("d/r2", self.settings.r2, fake_logits, fake)
            if self.settings.q_with_discriminator:
                losses |= self._information("d/information", out["posterior_params"], latents)
            if change is not None:
                moved = self._moved(latents, change)
                losses |= self._information("d/equivariance", out["restyled_params"], moved)
            terms.add({"d/logit_fake": fake_logits.mean()})
        total = torch.stack(list(losses.values())).sum()
        adversarial_loss = torch.stack(list(adversarial.values())).sum()
        terms.add({"d/loss": total, "d/adversarial": adversarial_loss})
        terms.add(losses)
        return total

    def generator(self, real: Tensor, fake: Tensor, latents: Latents, terms: Terms) -> Tensor:
        """Return L_G - L_I of a micro-batch, and add its terms to `terms`.

        Args:
            real: real images [n, C, H, W], for paired losses.
            fake: generated images with their graph.
            latents, terms: as of `discriminator`.
        """
        state = self.state
        q_with_d = self.settings.q_with_discriminator
        held = (state.discriminator, state.recognition) if q_with_d else (state.discriminator,)
        view = self._distort(fake, latents)
        # Unwrapped networks: gradients pass through them to G, and DDP does not reduce for them.
        with frozen(*held), self.engine.autocast():
            features, fake_logits = state.discriminator(fake, self._fake_categories(latents))
            params = self._with_category(state.recognition(features), view)
            real_logits = None
            if self.adversarial.paired:
                real_logits = at_least_fp32(state.discriminator(real, self._real_categories(real))[1])
        posteriors = self.spec.posteriors(params)
        bounds = lower_bound(self.spec, posteriors, latents.codes)
        losses = {
            "g/adversarial": self.adversarial.generator(at_least_fp32(fake_logits), real_logits),
            "g/information": information_loss(self.spec, bounds),
        }
        total = torch.stack(list(losses.values())).sum()
        terms.add({"g/loss": total, **losses})
        for name, code in self.spec.codes.items():
            terms.add_variables(f"bound/{name}", bounds[name])
            terms.add_variables(f"gain/{name}", bounds[name] - code.marginal_bound)
            sigma = code.mean_sigma(posteriors[name])
            if sigma is not None:
                names = tuple(f"sigma/{n}" for n in variable_names(name, code))
                terms.add_vector(names, sigma)
        return total

    def draw_distortions(self, first: int, count: int) -> Tensor | None:
        """Return the uniforms float64 [count, D] for random changes of generated images; None without any.

        Args:
            first: index of the first latent over the whole run.
            count: number of latents.
        """
        width = (VIEW_UNIFORMS if self.clustered else 0) + len(self.settings.equivariance)
        if width == 0:
            return None
        return torch.from_numpy(uniforms(self.config.seed, "distortions", first, count, width))

    def _with_gradient(self, images: Tensor | None, gamma: float) -> Tensor | None:
        """Return images of which a penalty differentiates the logits, where this step has one."""
        if images is None or gamma == 0 or not self.is_penalised:
            return images
        return images.detach().requires_grad_()

    def _penalty(self, name: str, gamma: float, logits: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return R1 or R2 by name; in steps without it, 0, so that the mean over steps is the penalty's."""
        if gamma == 0:
            return {}
        if not self.is_penalised:
            return {name: logits.new_zeros(())}
        weight = 0.5 * gamma * self.settings.penalty_every
        return {name: weight * gradient_penalty(logits, images)}

    def _information(self, name: str, params: Tensor, latents: Latents) -> dict[str, Tensor]:
        """Return -lambda L_I by name, of the codes that Q learns."""
        bounds = lower_bound(self.spec, self.spec.posteriors(params), latents.codes)
        learned = {n: bound for n, bound in bounds.items() if n != self.clustered}
        return {name: information_loss(self.spec, learned)}

    @torch.no_grad()
    def _real_categories(self, images: Tensor | None) -> Tensor | None:
        """Return the category that the classifier gives to each image, one-hot [n, K]."""
        if images is None or self.state.clustering is None:
            return None
        with self.engine.autocast():
            logits = self.state.clustering.average(images)
        return self._one_hot(logits.argmax(1, keepdim=True))

    def _fake_categories(self, latents: Latents) -> Tensor | None:
        """Return the category from which each image was generated, one-hot [n, K]."""
        return self._one_hot(latents.codes[self.clustered]) if self.clustered is not None else None

    def _one_hot(self, values: Tensor) -> Tensor:
        assert self.clustered is not None
        code = self.spec.codes[self.clustered]
        assert isinstance(code, CategoricalCode)
        return code.encode(values).to(self.engine.dtype)

    def _distort(self, fake: Tensor, latents: Latents) -> Tensor | None:
        """Return the view of each generated image that the classifier reads; None without a classifier.

        Its coordinates need full precision, so it must be computed outside of autocast.
        """
        if self.clustered is None:
            return None
        assert latents.distortion is not None
        return distort(fake, latents.distortion[:, :VIEW_UNIFORMS], self.config.clustering.views)

    def _with_category(self, params: Tensor, view: Tensor | None) -> Tensor:
        """Return the posteriors' parameters with the classifier's logits of views, where there are any."""
        if view is None:
            return params
        assert self.clustered is not None
        assert self.state.clustering is not None
        return self.spec.replace_params(params, self.clustered, self.state.clustering.average(view))

    def _restyle(self, fake: Tensor | None, latents: Latents) -> tuple[Tensor | None, Tensor | None]:
        """Return changed copies of generated images, and the change of each variable [n, V]."""
        kinds = self.settings.equivariance
        if fake is None or not kinds:
            return None, None
        assert latents.distortion is not None
        draws = (latents.distortion[:, -len(kinds) :] * 2 - 1).to(fake.dtype)
        change = draws * self.settings.equivariance_range
        by_kind = {kind: change[:, i] for i, kind in enumerate(kinds.values())}
        none = change.new_zeros(len(change))
        # A code's range is 2; a shear of 1/2 is as large as a digit's slant.
        shear, dilation = by_kind.get("shear", none) / 2, by_kind.get("dilation", none)
        return shear_and_dilate(fake.detach(), shear, dilation), change

    def _moved(self, latents: Latents, change: Tensor) -> Latents:
        """Return latents whose codes have moved by the change [n, V] of the variables of `equivariance`."""
        codes = {name: values.clone() for name, values in latents.codes.items()}
        for i, variable in enumerate(self.settings.equivariance):
            name, index = self.spec.variable(variable)
            codes[name][:, index] += change[:, i]
        return Latents(latents.vector, codes)

    @torch.no_grad()
    def _add_code_usage(self, terms: Terms, features: Tensor, categories: Tensor | None) -> None:
        """Add how often Q, or the classifier, assigns real images to each value of the discrete codes."""
        with untracked(self.state.recognition), self.engine.autocast():
            posteriors = self.spec.posteriors(self.state.recognition(features.detach()))
        for name, code in self.spec.codes.items():
            usage = code.usage(posteriors[name])
            if categories is not None and name == self.clustered:
                usage = categories.mean(0, keepdim=True)
            if usage is not None:
                variables = variable_names(name, code)
                names = tuple(f"usage/{v}.{k}" for v in variables for k in range(usage.shape[1]))
                terms.add_vector(names, usage.flatten())


def at_least_fp32(values: Tensor) -> Tensor:
    """Return the values in fp32, in which losses are computed under mixed precision, or in fp64."""
    return values if values.dtype == torch.float64 else values.float()
