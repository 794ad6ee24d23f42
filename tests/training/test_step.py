"""Which networks each update trains, and how, against a step written in plain torch."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.losses import LOSSES, AdversarialLoss
from infogan_dist.model.networks import build_networks
from infogan_dist.runtime.distributed import Engine
from infogan_dist.training.state import initial_state
from infogan_dist.training.step import TrainStep
from tests.conftest import TINY

SHAPE = (1, 8, 8)
BATCH = 32


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def create_step(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)

    def create(*overrides: str) -> TrainStep:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = read_config([str(tmp_path / "tiny.yaml"), "train.precision=fp64", *overrides])
        spec = LatentSpec(config.noise, config.codes)
        engine = Engine(config)
        state = initial_state(config, engine, build_networks(config.networks, spec, SHAPE, config.seed))
        return TrainStep(config, spec, engine, state)

    return create


# Batch norm everywhere, since which batches enter its running statistics is part of the law.
NORMED = (
    "networks.generator=[{kind: dense, out: 8, grid: true, then: [batchnorm, relu]},"
    "{kind: deconv, stride: 2, then: [tanh]}]",
    "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]",
    "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]",
)


def inputs(train_step: TrainStep, step: int, count: int = BATCH) -> tuple[Tensor, Latents]:
    real = (
        torch.rand((train_step.config.real_batch, *SHAPE), generator=torch.Generator().manual_seed(step)) * 2
        - 1
    )
    dtype = train_step.engine.dtype
    return real.to(dtype), train_step.spec.sample(0, "latents", step * count, count, dtype)


def state_of(train_step: TrainStep) -> dict[str, Tensor]:
    return {
        f"{n}.{k}": v.clone()
        for n, net in train_step.state.networks().items()
        for k, v in net.state_dict().items()
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


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
    train_step.update_generator(real, latents, None, None)
    assert changed(start, middle) == d_moves
    assert changed(middle, state_of(train_step)) == g_moves
    assert with_gradients == {"d": d_moves, "g": g_moves}


def by_hand(train_step: TrainStep, steps: int) -> dict[str, Tensor]:
    """Train copies of the networks by the paper's equations, in plain torch."""
    config = train_step.config
    nets = {n: copy.deepcopy(net).train() for n, net in train_step.state.networks().items()}
    g, d, q = nets["generator"], nets["discriminator"], nets["recognition"]
    q_with_d = config.objective.q_step == "discriminator"
    groups = ([d, q], [g]) if q_with_d else ([d], [g, q])
    adams = [
        torch.optim.Adam(itertools.chain(*(n.parameters() for n in group)), lr, (0.5, 0.999))
        for group, lr in zip(groups, (2e-4, 1e-3), strict=True)
    ]

    def information_loss(params: Tensor, codes: dict[str, Tensor]) -> Tensor:
        digit = F.cross_entropy(params[:, :10], codes["digit"][:, 0])
        mean, log_sigma = params[:, 10:12], params[:, 12:]
        return digit + 0.1 * F.gaussian_nll_loss(mean, codes["style"], (2 * log_sigma).exp(), full=True) * 2

    for step in range(steps):
        real, latents = inputs(train_step, step)
        fake = g(latents.vector)
        features, logits = d(fake.detach())
        loss = F.binary_cross_entropy_with_logits(d(real)[1], torch.ones(len(real)).double())
        loss = loss + F.binary_cross_entropy_with_logits(logits, torch.zeros(len(logits)).double())
        if q_with_d:
            loss = loss + information_loss(q(features), latents.codes)
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        features, logits = d(g(latents.vector))
        loss = F.binary_cross_entropy_with_logits(logits, torch.ones(len(logits)).double())
        loss = loss + information_loss(q(features), latents.codes)
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, live in zip(nets["generator_ema"].parameters(), g.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * live)
    return {f"{n}.{k}": v for n, net in nets.items() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_steps_equal_those_written_by_hand(create_step, q_step: str, accumulation: int):
    train_step = create_step(f"objective.q_step={q_step}", f"train.accumulation={accumulation}")
    expected = by_hand(train_step, 4)
    for step in range(4):
        train_step.run(*inputs(train_step, step))
    ours = state_of(train_step)
    for name, value in expected.items():
        # fp64: Adam's eps of 1e-8 limits the effect of rounding (1e-16) on tiny gradients to 1e-7
        torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-9, msg=name)


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
        terms = [train_step.run(*inputs(train_step, step)).terms for step in range(3)]
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
    t = {k: float(v) for k, v in result.terms.items()}
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
    per_step = {"generator": 1, "discriminator": 2, "recognition": 1, "generator_ema": 1}  # D: real and fake
    for name, count in counts.items():
        assert count == 3 * accumulation * per_step[name.split(".")[0]], name


def test_the_average_follows_weights_and_running_statistics(create_step):
    train_step = create_step(*NORMED, "train.ema_decay=0.3")
    mean = {k: v.clone() for k, v in train_step.state.ema.state_dict().items()}
    for step in range(5):
        train_step.run(*inputs(train_step, step))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, live in train_step.state.generator.state_dict().items():
            mean[name] = decay * mean[name] + (1 - decay) * live if live.is_floating_point() else live.clone()
    for name, value in train_step.state.ema.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-12, atol=1e-12)


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
    reported = [float(s.run(*inputs(s, 0)).terms["grad_norm/d"]) for s in (free, clipped)]
    assert reported[0] == pytest.approx(reported[1])  # the norm before clipping is logged
    assert reported[0] > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_r1_adds_its_penalty_to_the_discriminator_s_loss_only(create_step):
    plain, penalised = create_step(), create_step("objective.r1=10")
    a, b = (s.run(*inputs(s, 0)).terms for s in (plain, penalised))
    assert float(b["d/loss"] - a["d/loss"]) == pytest.approx(float(b["d/r1"]), rel=1e-6)
    assert float(b["d/r1"]) > 0
    assert "d/r1" not in a


def test_mixed_precision_computes_losses_in_fp32(create_step):
    full, mixed = create_step("train.precision=fp32"), create_step("train.precision=bf16")
    a, b = (s.run(*inputs(s, 0)).terms for s in (full, mixed))
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
    torch.testing.assert_close(result.terms["d/paired"], F.softplus(difference).mean(), rtol=1e-9, atol=0)
    with torch.no_grad():  # G's update follows D's
        difference = (
            train_step.state.discriminator(g(latents.vector))[1] - train_step.state.discriminator(real)[1]
        )
    torch.testing.assert_close(
        result.terms["g/adversarial"], F.softplus(-difference).mean(), rtol=1e-9, atol=0
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
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_metrics_that_other_code_reads_are_emitted_under_every_option(create_step, options: tuple[str, ...]):
    """The progress bar, the failure monitor, the summary and the sweeps read them by name."""
    train_step = create_step(*options)
    terms = train_step.run(*inputs(train_step, 0)).terms
    names = {"d/loss", "d/adversarial", "g/loss", "grad_norm/d", "grad_norm/g"}
    names |= {f"{kind}/{code}" for kind in ("bound", "gain") for code in train_step.spec.codes}
    assert names <= terms.keys()


@pytest.mark.usefixtures("paired_loss")
def test_metrics_that_other_code_reads_are_emitted_under_a_paired_loss(create_step):
    train_step = create_step("objective.loss=hinge")
    terms = train_step.run(*inputs(train_step, 0)).terms
    assert {"d/loss", "d/adversarial", "g/loss", "bound/digit", "gain/digit"} <= terms.keys()
    torch.testing.assert_close(terms["d/adversarial"], terms["d/paired"])
