"""Updates whose loss or gradient is not finite change nothing, each network by its own flag."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infogan_dist.errors import ConfigError
from infogan_dist.training.step import TrainStep
from tests.training.steps import NORMED, changed, inputs, state_of


def moments(train_step: TrainStep, part: str) -> list[Tensor]:
    state = train_step.state.optimizers()[part]["adam"]["state"]
    return [value.clone() for of_parameter in state.values() for value in of_parameter.values()]


@pytest.mark.parametrize("steps_before", [0, 2])
def test_half_batches_with_bad_generated_images_leave_no_change_of_the_real_half(
    create_step, steps_before: int
):
    train_step = create_step(*NORMED, "objective.d_updates=split")
    for step in range(steps_before):
        train_step.run(*inputs(train_step, step))
    before, adam = state_of(train_step), moments(train_step, "d")
    real, latents = inputs(train_step, 5)
    latents.vector[2] = torch.nan  # of an image that D's second half contains
    assert train_step.run(real, latents).nonfinite.tolist()[0] == 1
    assert changed(before, state_of(train_step)) == set()
    for old, new in zip(adam, moments(train_step, "d"), strict=False):
        assert torch.equal(old, new)
    if not adam:  # Adam creates its state in its first step
        assert all(not value.any() for value in moments(train_step, "d"))


def test_a_bad_update_of_the_generator_leaves_the_discriminator_s_statistics_with_its_weights(create_step):
    train_step = create_step(*NORMED)
    reference = create_step(*NORMED)
    losses = train_step.losses
    losses.adversarial = replace(losses.adversarial, generator=lambda fake, real: fake.mean() * torch.nan)
    before = state_of(train_step)
    result = train_step.run(*inputs(train_step, 0))
    reference.run(*inputs(reference, 0))
    assert result.nonfinite.tolist() == [0, 1]
    after, expected = state_of(train_step), state_of(reference)
    assert changed(before, after) == {"discriminator", "recognition"}
    for name, value in after.items():
        if name.startswith(("discriminator", "recognition")):
            assert torch.equal(value, expected[name]), name


def test_under_fp16_an_overflow_of_the_discriminator_does_not_hold_back_the_generator(create_step):
    """The path of the code is that of fp16; the numbers are in fp64, since CPUs have no fp16."""
    train_step = create_step(*NORMED)
    train_step.engine.fp16 = True
    before = state_of(train_step)
    real, latents = inputs(train_step, 0)
    real[3, 0, 0, 0] = torch.inf
    terms = train_step.run(real, latents).terms.by_name()
    assert (float(terms["overflow/d"]), float(terms["overflow/g"])) == (1, 0)
    after = state_of(train_step)
    assert changed(before, after) == {"generator", "generator_ema"}
    statistics = [name for name in after if name.startswith("generator.") and "running_mean" in name]
    assert statistics
    assert all(not torch.equal(before[name], after[name]) for name in statistics)


@pytest.mark.parametrize("q_step", ["discriminator", "generator"])
def test_batch_norm_of_one_image_is_refused_in_one_line(create_step, q_step: str):
    dense = "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]"
    small = ["data.lanes=1", f"objective.q_step={q_step}"]
    with pytest.raises(ConfigError, match=r"train\.batch_size: 4 leaves one image .* 4 micro-batch"):
        create_step(dense, *small, "train.batch_size=4", "train.accumulation=4")
    with pytest.raises(ConfigError, match=r"train\.batch_size: 2 leaves one image"):
        create_step(dense, *small, "train.batch_size=2", "objective.d_updates=split")
    train_step = create_step(dense, *small, "train.batch_size=4", "train.accumulation=2")
    real, latents = inputs(train_step, 0)
    assert train_step.run(real, latents).nonfinite.tolist() == [0, 0]
