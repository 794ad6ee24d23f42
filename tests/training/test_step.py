"""Who learns what in which step, against a step written out by hand."""

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
from infogan_dist.model.latents import Latents, LatentSpec
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
def make(tmp_path: Path):
    (tmp_path / "tiny.yaml").write_text(TINY)

    def stepper(*overrides: str) -> TrainStep:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = read_config([str(tmp_path / "tiny.yaml"), "train.precision=fp64", *overrides])
        spec = LatentSpec(config.noise, config.codes)
        engine = Engine(config)
        state = initial_state(config, engine, build_networks(config.networks, spec, SHAPE, config.seed))
        return TrainStep(config, spec, engine, state)

    return stepper


# Batch norm everywhere: what counts for its statistics is part of the law.
NORMED = (
    "networks.generator=[{kind: dense, out: 8, grid: true, then: [batchnorm, relu]},"
    "{kind: deconv, stride: 2, then: [tanh]}]",
    "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]",
    "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]",
)


def inputs(stepper: TrainStep, step: int, count: int = BATCH) -> tuple[Tensor, Latents]:
    real = (
        torch.rand((stepper.config.real_batch, *SHAPE), generator=torch.Generator().manual_seed(step)) * 2 - 1
    )
    dtype = stepper.engine.dtype
    return real.to(dtype), stepper.spec.sample(0, "latents", step * count, count, dtype)


def state_of(stepper: TrainStep) -> dict[str, Tensor]:
    return {
        f"{n}.{k}": v.clone()
        for n, net in stepper.state.networks().items()
        for k, v in net.state_dict().items()
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
@pytest.mark.parametrize("d_updates", ["joint", "split"])
def test_each_step_moves_its_own_networks_alone(make, q_step: str, d_updates: str):
    stepper = make(f"objective.q_step={q_step}", f"objective.d_updates={d_updates}")
    real, latents = inputs(stepper, 0)
    seen: dict[str, set[str]] = {}
    update = stepper.engine.update

    def noted(part, blocked=None):
        name = "d" if part is stepper.state.d else "g"
        grads = {
            n
            for n, net in stepper.state.networks().items()
            if any(p.grad is not None for p in net.parameters())
        }
        seen[name] = seen.get(name, set()) | grads
        return update(part, blocked)

    stepper.engine.update = noted
    with_q = {"discriminator": ({"discriminator", "recognition"}, {"generator"})}
    d_moves, g_moves = with_q.get(q_step, ({"discriminator"}, {"generator", "recognition"}))
    start = state_of(stepper)
    stepper.discriminator_step(real, latents, None)
    middle = state_of(stepper)
    stepper.generator_step(latents, None, None)
    assert changed(start, middle) == d_moves
    assert changed(middle, state_of(stepper)) == g_moves
    assert seen == {"d": d_moves, "g": g_moves}


def by_hand(stepper: TrainStep, steps: int) -> dict[str, Tensor]:
    """Trains copies of the networks as the paper's equations say, in plain torch."""
    config = stepper.config
    nets = {n: copy.deepcopy(net).train() for n, net in stepper.state.networks().items()}
    g, d, q = nets["generator"], nets["discriminator"], nets["recognition"]
    q_with_d = config.objective.q_step == "discriminator"
    groups = ([d, q], [g]) if q_with_d else ([d], [g, q])
    adams = [
        torch.optim.Adam(itertools.chain(*(n.parameters() for n in group)), lr, (0.5, 0.999))
        for group, lr in zip(groups, (2e-4, 1e-3), strict=True)
    ]

    def minus_information(parameters: Tensor, codes: dict[str, Tensor]) -> Tensor:
        digit = F.cross_entropy(parameters[:, :10], codes["digit"][:, 0])
        mean, log_sigma = parameters[:, 10:12], parameters[:, 12:]
        return digit + 0.1 * F.gaussian_nll_loss(mean, codes["style"], (2 * log_sigma).exp(), full=True) * 2

    for step in range(steps):
        real, latents = inputs(stepper, step)
        fake = g(latents.vector)
        features, logits = d(fake.detach())
        loss = F.binary_cross_entropy_with_logits(d(real)[1], torch.ones(len(real)).double())
        loss = loss + F.binary_cross_entropy_with_logits(logits, torch.zeros(len(logits)).double())
        if q_with_d:
            loss = loss + minus_information(q(features), latents.codes)
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        features, logits = d(g(latents.vector))
        loss = F.binary_cross_entropy_with_logits(logits, torch.ones(len(logits)).double())
        loss = loss + minus_information(q(features), latents.codes)
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
def test_steps_are_those_written_out_by_hand(make, q_step: str, accumulation: int):
    stepper = make(f"objective.q_step={q_step}", f"train.accumulation={accumulation}")
    expected = by_hand(stepper, 4)
    for step in range(4):
        stepper.run(*inputs(stepper, step))
    ours = state_of(stepper)
    for name, value in expected.items():
        # fp64: Adam's eps of 1e-8 keeps what rounding (1e-16) does to tiny gradients below 1e-7
        torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("loss", ["nonsaturating", "hinge", "least_squares"])
@pytest.mark.parametrize("d_updates", ["joint", "split"])
def test_micro_batches_add_up_to_the_whole_batch(make, loss: str, d_updates: str):
    results = []
    for accumulation in (1, 2):
        stepper = make(
            f"objective.loss={loss}",
            f"objective.d_updates={d_updates}",
            f"train.accumulation={accumulation}",
            "objective.r1=0.5",
        )
        terms = [stepper.run(*inputs(stepper, step))[0] for step in range(3)]
        results.append((state_of(stepper), terms))
    (whole, terms), (parts, part_terms) = results
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-9, atol=1e-12, msg=name)
    for a, b in zip(terms, part_terms, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_terms_are_named_and_consistent(make):
    stepper = make("objective.r1=2.0")
    terms, flags = stepper.run(*inputs(stepper, 0))
    t = {k: float(v) for k, v in terms.items()}
    assert t["d/loss"] == pytest.approx(t["d/real"] + t["d/fake"] + t["d/information"] + t["d/r1"])
    assert t["g/loss"] == pytest.approx(t["g/adversarial"] + t["g/information"])
    assert t["bound/style"] == pytest.approx(t["bound/style.0"] + t["bound/style.1"])
    assert t["g/information"] == pytest.approx(-(t["bound/digit"] + 0.1 * t["bound/style"]))
    marginal_bound = 2 * stepper.spec.codes["style"].marginal_bound
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
    assert flags.tolist() == [0, 0]


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batch_norm_counts_what_trains_it_and_nothing_else(make, q_step: str, accumulation: int):
    stepper = make(*NORMED, f"objective.q_step={q_step}", f"train.accumulation={accumulation}")
    for step in range(3):
        stepper.run(*inputs(stepper, step))
    counts = {k: int(v) for k, v in state_of(stepper).items() if k.endswith("num_batches_tracked")}
    per_step = {"generator": 1, "discriminator": 2, "recognition": 1, "generator_ema": 1}  # D: real and fake
    for name, count in counts.items():
        assert count == 3 * accumulation * per_step[name.split(".")[0]], name


def test_the_average_follows_weights_and_statistics(make):
    stepper = make(*NORMED, "train.ema_decay=0.3")
    mean = {k: v.clone() for k, v in stepper.state.ema.state_dict().items()}
    for step in range(5):
        stepper.run(*inputs(stepper, step))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, live in stepper.state.generator.state_dict().items():
            mean[name] = decay * mean[name] + (1 - decay) * live if live.is_floating_point() else live.clone()
    for name, value in stepper.state.ema.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-12, atol=1e-12)


def test_a_step_with_a_loss_that_is_not_finite_leaves_no_trace_and_is_reported(make):
    stepper = make(*NORMED)
    stepper.run(*inputs(stepper, 0))
    before, adam = state_of(stepper), copy.deepcopy(stepper.state.optimizers())
    real, latents = inputs(stepper, 1)
    real[3, 0, 0, 0] = torch.nan
    _, flags = stepper.run(real, latents)
    assert flags.tolist() == [1, 0]
    assert changed(before, state_of(stepper)) == set()
    after = stepper.state.optimizers()
    for part in ("d", "g"):
        for old, new in zip(
            adam[part]["adam"]["state"].values(), after[part]["adam"]["state"].values(), strict=True
        ):
            assert all(torch.equal(old[k], new[k]) for k in old)
    stepper.run(*inputs(stepper, 1))  # and training goes on
    assert len(changed(before, state_of(stepper))) == 4


def test_clipping_bounds_the_norm_of_all_gradients(make):
    free, clipped = make(), make("optim.discriminator.clip=1e-3")
    norms: list[float] = []
    step = torch.optim.Adam.step

    class Noting(torch.optim.Adam):
        def step(self, closure=None):
            grads = [p.grad for g in self.param_groups for p in g["params"]]
            norms.append(float(nn.utils.get_total_norm(grads)))
            return step(self, closure)

    clipped.state.d.optimizer.__class__ = Noting
    reported = [float(s.run(*inputs(s, 0))[0]["grad_norm/d"]) for s in (free, clipped)]
    assert reported[0] == pytest.approx(reported[1])  # the norm before clipping is what is logged
    assert reported[0] > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_r1_adds_its_penalty_to_d_s_loss_alone(make):
    plain, penalised = make(), make("objective.r1=10")
    a, b = (s.run(*inputs(s, 0))[0] for s in (plain, penalised))
    assert float(b["d/loss"] - a["d/loss"]) == pytest.approx(float(b["d/r1"]), rel=1e-6)
    assert float(b["d/r1"]) > 0
    assert "d/r1" not in a


def test_mixed_precision_computes_losses_in_fp32(make):
    full, mixed = make("train.precision=fp32"), make("train.precision=bf16")
    a, b = (s.run(*inputs(s, 0))[0] for s in (full, mixed))
    for name in ("d/loss", "g/loss", "d/logit_real"):
        assert b[name].dtype == torch.float32
        # bf16 keeps 8 bits: some 1e-2 of each term, and not nothing, or it was not used
        assert 0 < abs(float(a[name] - b[name])) < 0.05
    assert all(p.dtype == torch.float32 for p in mixed.state.generator.parameters())
