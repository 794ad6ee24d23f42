"""Settings and saved state of the optimizers and of the fp16 gradient scalers."""

import copy

import pytest
import torch

from infogan_dist.training.step import TrainStep
from tests.training.steps import changed, inputs, state_of

ADAM = (
    "optim.discriminator={lr: 1e-3, beta1: 0.3, beta2: 0.9, eps: 1e-3, clip: 2}",
    "optim.generator={lr: 2e-3, beta1: 0.6, beta2: 0.8, eps: 1e-4, clip: 3}",
)


def test_adam_has_the_settings_of_the_config(create_step):
    state = create_step(*ADAM).state
    for part, lr, betas, eps, clip in (
        (state.d, 1e-3, (0.3, 0.9), 1e-3, 2),
        (state.g, 2e-3, (0.6, 0.8), 1e-4, 3),
    ):
        (group,) = part.optimizer.param_groups
        assert (group["lr"], group["betas"], group["eps"], part.clip) == (lr, betas, eps, clip)
        assert (group["weight_decay"], group["amsgrad"]) == (0, False)
    assert state.learning_rates() == {"lr/d": 1e-3, "lr/g": 2e-3}


def enable_scalers(train_step: TrainStep, d_scale: float, g_scale: float) -> None:
    """Scale gradients as under fp16, which itself needs a GPU; a scale doubles after three good steps."""
    train_step.engine.fp16 = True
    for part, scale in ((train_step.state.d, d_scale), (train_step.state.g, g_scale)):
        part.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)


def test_a_step_continues_bit_for_bit_from_saved_networks_and_optimizers(create_step):
    """With scalers, whose scale and count of good steps are a part of the state."""
    first, second = create_step(), create_step("seed=1")
    enable_scalers(first, 8, 32)
    for step in range(2):
        first.run(*inputs(first, step))
    enable_scalers(second, 1, 1)
    assert changed(state_of(first), state_of(second)) == set(first.state.networks())
    for name, network in first.state.networks().items():
        second.state.networks()[name].load_state_dict(network.state_dict())
    second.state.load_optimizers(copy.deepcopy(first.state.optimizers()))
    second.state.step = first.state.step
    for train_step in (first, second):
        train_step.run(*inputs(train_step, 2))
    assert changed(state_of(first), state_of(second)) == set()
    for train_step in (first, second):
        scalers = (train_step.state.d.scaler, train_step.state.g.scaler)
        assert [s.get_scale() for s in scalers] == [16, 64]  # both doubled after the third step
        assert [s.state_dict()["_growth_tracker"] for s in scalers] == [0, 0]


def test_a_checkpoint_of_another_precision_leaves_the_scalers_as_they_are(create_step):
    """One saved without scalers is continued in fp16, and the reverse."""
    plain, scaled = create_step(), create_step()
    enable_scalers(scaled, 8, 32)
    plain_state, scaled_state = (
        copy.deepcopy(plain.state.optimizers()),
        copy.deepcopy(scaled.state.optimizers()),
    )
    scaled.state.load_optimizers(plain_state)
    assert [scaled.state.d.scaler.get_scale(), scaled.state.g.scaler.get_scale()] == [8, 32]
    plain.state.load_optimizers(scaled_state)
    assert not plain.state.d.scaler.is_enabled()


def test_scaled_gradients_train_as_unscaled_ones_do(create_step):
    clip = ("optim.discriminator.clip=0.05", "optim.generator.clip=0.005")
    plain, scaled = create_step(*clip), create_step(*clip)
    enable_scalers(scaled, 8, 32)
    norms = [s.run(*inputs(s, 0)).terms.by_name() for s in (plain, scaled)]
    for name in ("grad_norm/d", "grad_norm/g"):
        torch.testing.assert_close(norms[0][name], norms[1][name], rtol=1e-12, atol=0)
    for name, value in state_of(plain).items():
        torch.testing.assert_close(state_of(scaled)[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("overflowing", ["d", "g"])
def test_an_overflow_suppresses_one_update_and_not_the_other(create_step, overflowing: str):
    """It is counted, but the run does not react, since the losses are finite."""
    train_step = create_step()
    scales = {"d": 8.0, "g": 32.0, overflowing: float("inf")}
    enable_scalers(train_step, scales["d"], scales["g"])
    before = state_of(train_step)
    result = train_step.run(*inputs(train_step, 0))
    after = {"d": {"discriminator", "recognition"}, "g": {"generator", "generator_ema"}}
    assert changed(before, state_of(train_step)) == after["g" if overflowing == "d" else "d"]
    assert result.nonfinite.tolist() == [0, 0]
    for name in ("d", "g"):
        assert float(result.terms.by_name()[f"overflow/{name}"]) == (name == overflowing)
        assert (float(result.terms.by_name()[f"grad_norm/{name}"]) == 0) == (name == overflowing)
    real, latents = inputs(train_step, 1)
    real[0] = torch.nan
    assert train_step.run(real, latents).nonfinite.tolist()[0] == 1  # a loss that is not finite is reported
