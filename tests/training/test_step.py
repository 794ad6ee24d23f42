"""Which networks each update trains, and how, against a step written in plain torch."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infogan_dist.errors import ConfigError
from infogan_dist.model.losses import LOSSES, AdversarialLoss
from tests.training.by_hand import StepsByHand
from tests.training.steps import NORMED, changed, inputs, state_of


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
@pytest.mark.parametrize("d_updates", ["joint", "split"])
def test_each_update_changes_its_own_networks_only(create_step, q_step: str, d_updates: str):
    train_step = create_step(f"objective.q_step={q_step}", f"objective.d_updates={d_updates}")
    real, latents = inputs(train_step, 0)
    with_gradients: dict[str, set[str]] = {}
    update = train_step.engine.update

    def recorded(part, suppress=None):
        name = "d" if part is train_step.state.d else "g"
        grads = {
            n
            for n, net in train_step.state.networks().items()
            if any(p.grad is not None for p in net.parameters())
        }
        with_gradients[name] = with_gradients.get(name, set()) | grads
        return update(part, suppress)

    train_step.engine.update = recorded
    with_q = {"discriminator": ({"discriminator", "recognition"}, {"generator"})}
    d_moves, g_moves = with_q.get(q_step, ({"discriminator"}, {"generator", "recognition"}))
    start = state_of(train_step)
    train_step.update_discriminator(real, latents, None)
    middle = state_of(train_step)
    train_step.update_generator(real, latents, None, train_step.suppress)
    assert changed(start, middle) == d_moves
    assert changed(middle, state_of(train_step)) == g_moves
    assert with_gradients == {"d": d_moves, "g": g_moves}


# Other values than torch's and the schema's, so that a setting that is ignored changes the weights.
ADAM = (
    "optim.discriminator.lr=1e-3",
    "optim.discriminator.beta1=0.3",
    "optim.discriminator.beta2=0.9",
    "optim.discriminator.eps=1e-3",
    "optim.generator.lr=2e-3",
    "optim.generator.beta1=0.6",
    "optim.generator.beta2=0.8",
    "optim.generator.eps=1e-4",
)
SPLIT, Q_WITH_G, R1 = "objective.d_updates=split", "objective.q_step=generator", "objective.r1=2"
HINGE, LEAST_SQUARES = "objective.loss=hinge", "objective.loss=least_squares"
CLIP = ("optim.discriminator.clip=0.05", "optim.generator.clip=0.005")
PARTS = ("train.accumulation=4", "data.lanes=4")
# Each pair of options occurs together, apart from batch norm with micro-batches, whose statistics differ, and
# batch norm with R1, which is defined only where an image's logit does not depend on other images.
COMBINATIONS = [
    (),
    (*PARTS, Q_WITH_G),
    (SPLIT,),
    (SPLIT, R1, *PARTS, *CLIP),
    (HINGE, R1, Q_WITH_G, *CLIP),
    (HINGE, SPLIT, *PARTS),
    (LEAST_SQUARES, R1, *PARTS),
    (LEAST_SQUARES, SPLIT, Q_WITH_G, R1, *CLIP),
    NORMED,
    (*NORMED, SPLIT, HINGE, *CLIP),
    (*NORMED, Q_WITH_G, LEAST_SQUARES),
]
STEPS = 4
# Weights and gradients are of order 1 or below, so that rounding in fp64 is about 1e-16. It enters a weight
# through Adam as lr * rounding / eps, here at most 2e-3 * 1e-16 / 1e-4 = 2e-15 per step. An option that is
# ignored changes some weight by more than a thousand times the tolerance; see
# `test_the_tolerance_separates_options`.
TOLERANCE = 1e-13


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: " ".join(options) or "defaults")
def test_steps_equal_those_written_by_hand(create_step, options: tuple[str, ...]):
    train_step = create_step(*ADAM, *options)
    by_hand = StepsByHand(train_step)
    expected = by_hand.run(STEPS)
    terms: dict[str, Tensor] = {}
    for step in range(STEPS):
        terms = train_step.run(*inputs(train_step, step)).terms.by_name()
    ours = state_of(train_step)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    assert terms.keys() == by_hand.terms.keys()
    for name, value in by_hand.terms.items():
        expected_term = value.detach().to(terms[name].dtype)
        torch.testing.assert_close(terms[name], expected_term, rtol=1e-12, atol=1e-12, msg=name)


ALL = (*ADAM, SPLIT, R1, *CLIP)


@pytest.mark.parametrize("ignored", ALL)
def test_the_tolerance_separates_options(create_step, ignored: str):
    """Ignoring a single option changes a weight by far more than what `TOLERANCE` allows."""
    with_all = StepsByHand(create_step(*ALL)).run(STEPS)
    without = StepsByHand(create_step(*(o for o in ALL if o != ignored))).run(STEPS)
    assert max(float((without[k] - v).abs().max()) for k, v in with_all.items()) > 1e3 * TOLERANCE


@pytest.mark.parametrize("loss", ["nonsaturating", "hinge", "least_squares"])
@pytest.mark.parametrize("d_updates", ["joint", "split"])
def test_micro_batches_add_up_to_the_batch(create_step, loss: str, d_updates: str):
    results = []
    for accumulation in (1, 2):
        train_step = create_step(
            f"objective.loss={loss}",
            f"objective.d_updates={d_updates}",
            f"train.accumulation={accumulation}",
            "objective.r1=0.5",
        )
        terms = [train_step.run(*inputs(train_step, step)).terms.by_name() for step in range(3)]
        results.append((state_of(train_step), terms))
    (at_once, terms), (in_parts, part_terms) = results
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-9, atol=1e-12, msg=name)
    for a, b in zip(terms, part_terms, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_terms_are_named_and_consistent(create_step):
    train_step = create_step("objective.r1=2.0")
    result = train_step.run(*inputs(train_step, 0))
    t = {k: float(v) for k, v in result.terms.by_name().items()}
    assert t["d/adversarial"] == pytest.approx(t["d/real"] + t["d/fake"])
    assert t["d/loss"] == pytest.approx(t["d/real"] + t["d/fake"] + t["d/information"] + t["d/r1"])
    assert t["g/loss"] == pytest.approx(t["g/adversarial"] + t["g/information"])
    assert t["bound/style"] == pytest.approx(t["bound/style.0"] + t["bound/style.1"])
    assert t["g/information"] == pytest.approx(-(t["bound/digit"] + 0.1 * t["bound/style"]))
    marginal_bound = 2 * train_step.spec.codes["style"].marginal_bound
    assert t["gain/style"] == pytest.approx(t["bound/style"] - marginal_bound)
    assert sum(t[f"usage/digit.{k}"] for k in range(10)) == pytest.approx(1)
    assert {
        "sigma/style.0",
        "sigma/style.1",
        "grad_norm/d",
        "grad_norm/g",
        "d/logit_real",
        "d/logit_fake",
    } <= t.keys()
    assert result.nonfinite.tolist() == [0, 0]


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_running_statistics_follow_the_batches_that_train_a_network_and_no_others(
    create_step, q_step: str, accumulation: int
):
    train_step = create_step(*NORMED, f"objective.q_step={q_step}", f"train.accumulation={accumulation}")
    for step in range(3):
        train_step.run(*inputs(train_step, step))
    counts = {k: int(v) for k, v in state_of(train_step).items() if k.endswith("num_batches_tracked")}
    per_step = {"generator": 1, "discriminator": 2, "recognition": 1, "generator_ema": 0}  # D: real and fake
    for name, count in counts.items():
        assert count == 3 * accumulation * per_step[name.split(".")[0]], name


def test_the_average_follows_the_weights(create_step):
    train_step = create_step(*NORMED, "train.ema_decay=0.3")
    mean = {k: v.clone() for k, v in train_step.state.ema.named_parameters()}
    for step in range(5):
        train_step.run(*inputs(train_step, step))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, live in train_step.state.generator.named_parameters():
            mean[name] = decay * mean[name] + (1 - decay) * live
    for name, value in train_step.state.ema.named_parameters():
        torch.testing.assert_close(value, mean[name], rtol=1e-12, atol=1e-12)


def test_running_statistics_of_the_average_are_those_of_what_it_generates(create_step):
    """Of its only layer of batch norm, from 2,048 latents; they depend on its weights alone."""
    train_step = create_step(*NORMED, "train.ema_decay=0.3")
    for step in range(2):
        train_step.run(*inputs(train_step, step))
    train_step.set_average_statistics()
    ema, spec = train_step.state.ema, train_step.spec
    dense, unflatten, norm = ema.layers[:3]
    vectors = spec.sample(train_step.config.seed, "statistics", 0, 2048, torch.float64).vector
    batches = unflatten(dense(vectors)).detach().chunk(8)
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    variances = [batch.transpose(0, 1).flatten(1).var(1) for batch in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-12, atol=1e-12)
    assert not ema.training
    first = {k: v.clone() for k, v in ema.state_dict().items()}
    train_step.set_average_statistics()
    assert all(torch.equal(value, first[name]) for name, value in ema.state_dict().items())


def test_a_step_with_a_loss_that_is_not_finite_changes_nothing_and_is_reported(create_step):
    train_step = create_step(*NORMED)
    train_step.run(*inputs(train_step, 0))
    before, adam = state_of(train_step), copy.deepcopy(train_step.state.optimizers())
    real, latents = inputs(train_step, 1)
    real[3, 0, 0, 0] = torch.nan
    assert train_step.run(real, latents).nonfinite.tolist() == [1, 0]
    assert changed(before, state_of(train_step)) == set()
    after = train_step.state.optimizers()
    for part in ("d", "g"):
        for old, new in zip(
            adam[part]["adam"]["state"].values(), after[part]["adam"]["state"].values(), strict=True
        ):
            assert all(torch.equal(old[k], new[k]) for k in old)
    train_step.run(*inputs(train_step, 1))  # and training continues
    assert len(changed(before, state_of(train_step))) == 4


def test_clipping_bounds_the_norm_of_all_gradients(create_step):
    free, clipped = create_step(), create_step("optim.discriminator.clip=1e-3")
    norms: list[float] = []
    step = torch.optim.Adam.step

    class Recording(torch.optim.Adam):
        def step(self, closure=None):
            grads = [p.grad for g in self.param_groups for p in g["params"]]
            norms.append(float(nn.utils.get_total_norm(grads)))
            return step(self, closure)

    clipped.state.d.optimizer.__class__ = Recording
    reported = [float(s.run(*inputs(s, 0)).terms.by_name()["grad_norm/d"]) for s in (free, clipped)]
    assert reported[0] == pytest.approx(reported[1])  # the norm before clipping is logged
    assert reported[0] > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_r1_adds_its_penalty_to_the_discriminator_s_loss_only(create_step):
    plain, penalised = create_step(), create_step("objective.r1=10")
    a, b = (s.run(*inputs(s, 0)).terms.by_name() for s in (plain, penalised))
    assert float(b["d/loss"] - a["d/loss"]) == pytest.approx(float(b["d/r1"]), rel=1e-6)
    assert float(b["d/r1"]) > 0
    assert "d/r1" not in a


def test_a_step_does_not_change_its_inputs(create_step):
    train_step = create_step("objective.r1=1")  # whose gradient is that with respect to the images
    real, latents = inputs(train_step, 0)
    images, vector = real.clone(), latents.vector.clone()
    train_step.run(real, latents)
    assert not real.requires_grad
    assert torch.equal(real, images)
    assert torch.equal(latents.vector, vector)


def test_mixed_precision_computes_losses_in_fp32(create_step):
    full, mixed = create_step("train.precision=fp32"), create_step("train.precision=bf16")
    a, b = (s.run(*inputs(s, 0)).terms.by_name() for s in (full, mixed))
    for name in ("d/loss", "g/loss", "d/logit_real"):
        assert b[name].dtype == torch.float32
        # bf16 has 8 significant bits: about 1e-2 of each term. A difference of 0 would mean that it was not
        # used.
        assert 0 < abs(float(a[name] - b[name])) < 0.05
    assert all(p.dtype == torch.float32 for p in mixed.state.generator.parameters())


def ragan(real: Tensor | None, fake: Tensor | None) -> dict[str, Tensor]:
    """A relativistic pairing loss (Jolicoeur-Martineau 2018): softplus of the difference of paired logits."""
    assert real is not None
    assert fake is not None
    return {"paired": F.softplus(fake - real).mean()}


@pytest.fixture
def paired_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def generator(fake: Tensor, real: Tensor | None) -> Tensor:
        assert real is not None
        return F.softplus(real - fake).mean()

    monkeypatch.setitem(
        LOSSES, "hinge", AdversarialLoss(ragan, generator, winning_threshold=0.02, paired=True)
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.usefixtures("paired_loss")
def test_a_paired_loss_compares_real_image_i_with_generated_image_i(create_step, accumulation: int):
    train_step = create_step("objective.loss=hinge", f"train.accumulation={accumulation}")
    real, latents = inputs(train_step, 0)
    g, d = (copy.deepcopy(n) for n in (train_step.state.generator, train_step.state.discriminator))
    with torch.no_grad():
        difference = d(g(latents.vector))[1] - d(real)[1]
    result = train_step.run(real, latents)
    torch.testing.assert_close(
        result.terms.by_name()["d/paired"], F.softplus(difference).mean(), rtol=1e-9, atol=0
    )
    with torch.no_grad():  # G's update follows D's
        difference = (
            train_step.state.discriminator(g(latents.vector))[1] - train_step.state.discriminator(real)[1]
        )
    torch.testing.assert_close(
        result.terms.by_name()["g/adversarial"], F.softplus(-difference).mean(), rtol=1e-9, atol=0
    )


@pytest.mark.usefixtures("paired_loss")
def test_a_paired_loss_is_refused_with_half_batches(create_step):
    with pytest.raises(ConfigError, match=r"objective\.loss: hinge compares.*d_updates=joint"):
        create_step("objective.loss=hinge", "objective.d_updates=split")


OPTIONS = [
    (
        f"objective.loss={loss}",
        f"objective.d_updates={d_updates}",
        f"objective.q_step={q_step}",
        f"objective.r1={r1}",
    )
    for loss, d_updates, q_step, r1 in itertools.product(
        LOSSES, ("joint", "split"), ("discriminator", "generator"), (0.0, 1.0)
    )
    if not (LOSSES[loss].paired and d_updates == "split")
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_metrics_that_other_code_reads_are_emitted_under_every_option(create_step, options: tuple[str, ...]):
    """The progress bar, the failure monitor, the summary and the sweeps read them by name."""
    train_step = create_step(*options)
    terms = train_step.run(*inputs(train_step, 0)).terms.by_name()
    names = {"d/loss", "d/adversarial", "g/loss", "grad_norm/d", "grad_norm/g"}
    names |= {f"{kind}/{code}" for kind in ("bound", "gain") for code in train_step.spec.codes}
    assert names <= terms.keys()


@pytest.mark.usefixtures("paired_loss")
def test_metrics_that_other_code_reads_are_emitted_under_a_paired_loss(create_step):
    train_step = create_step("objective.loss=hinge")
    terms = train_step.run(*inputs(train_step, 0)).terms.by_name()
    assert {"d/loss", "d/adversarial", "g/loss", "bound/digit", "gain/digit"} <= terms.keys()
    torch.testing.assert_close(terms["d/adversarial"], terms["d/paired"])
