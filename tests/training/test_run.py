"""A run: what it gives to its loader and its steps, the metrics that it adds, and its pictures."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.config.load import read_config
from infogan_dist.runtime import tracking
from infogan_dist.runtime.pictures import image_grid, run_pictures
from infogan_dist.training.run import Run

CODES = (
    "codes.digit={kind: categorical, size: 3, count: 4}",
    "codes.coins={kind: bernoulli, size: 3}",
    "codes.shape={kind: gaussian, size: 2}",
)
ENTROPIES = {
    "digit": 4 * math.log(3),
    "style": 2 * math.log(2),
    "coins": 3 * math.log(2),
    "shape": math.log(2 * math.pi * math.e),
}


@pytest.fixture
def create_run(tiny: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def create(*overrides: str) -> Run:
        runs.append(Run(read_config([str(tiny), *overrides])))
        return runs[-1]

    yield create
    for run in runs:
        run.folder.unlock()


@pytest.fixture
def run(create_run: Callable[..., Run]) -> Run:
    return create_run(*CODES, "train.warm_up=2")


def test_the_logged_entropy_is_that_of_all_variables_of_a_code(run: Run):
    run.step(next(run.loader.batches(0)))
    run.log({})
    for name, entropy in ENTROPIES.items():
        assert run.metrics[f"entropy/{name}"] == pytest.approx(entropy, rel=1e-12)
        assert run.metrics[f"dead/{name}"] == 0  # before the end of the warm-up


def test_a_code_is_dead_below_a_share_of_its_entropy_or_a_number_of_nats(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    run.state.step = 2
    thresholds = {"digit": 0.05 * 4 * math.log(3), "style": 0.05}
    thresholds |= {"coins": 0.05 * 3 * math.log(2), "shape": 0.05}
    for share, dead in ((0.99, 1), (1.01, 0)):
        gains = {f"gain/{name}": share * value for name, value in thresholds.items()}
        monkeypatch.setattr(run.accumulator, "window", lambda gains=gains: dict(gains))
        run.log({})
        assert [run.metrics[f"dead/{name}"] for name in thresholds] == [dead] * 4


def test_the_loader_has_the_settings_of_the_config(create_run: Callable[..., Run]):
    loader = create_run("data.cache_mib=3", "data.workers=2", "data.on_error=skip").loader
    assert (loader.cache_bytes, loader.workers, loader.device.type) == (3 * 1024 * 1024, 2, "cpu")
    assert loader.dataset.skip


def test_a_step_takes_the_images_and_the_latents_of_its_global_batch(
    create_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    run = create_run("train.precision=fp64")
    taken = []
    do_step = run.train_step.run

    def recorded(real: torch.Tensor, latents: Any):
        taken.append((real, latents))
        return do_step(real, latents)

    monkeypatch.setattr(run, "run_step", recorded)
    batches = run.loader.batches(0)
    for step in range(2):
        batch = next(batches)
        assert run.step(batch).tolist() == [0, 0]
        real, latents = taken[-1]
        torch.testing.assert_close(real, batch.images.double() / 127.5 - 1, rtol=1e-12, atol=1e-12)
        expected = run.spec.sample(run.config.seed, "latents", 32 * step, 32, torch.float64)
        assert torch.equal(latents.vector, expected.vector)
    run.log({})
    assert run.metrics["data/substituted"] == 0


def test_pictures_are_those_of_the_first_real_images_and_of_the_averaged_generator(
    create_run: Callable[..., Run],
):
    run = create_run()
    tracking.open_trackers(run.engine.accelerator, run.config, run.folder.path)
    batch = next(run.loader.batches(0))
    run.draw_real(batch)
    for _ in range(2):
        run.step(batch)
    run.draw()
    folder = run.folder.path / "pictures"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.png")} == {
        "step_00000000/real.png",
        *(f"step_00000002/{n}.png" for n in ("samples", *(f"traversal_{v}" for v in run.spec.variables()))),
    }
    expected = {"step_00000000/real": image_grid(batch.images / 127.5 - 1, 10)}
    expected["step_00000002/samples"] = run_pictures(run.state.ema, run.spec, run.config.seed)["samples"]
    for name, pixels in expected.items():
        with Image.open(folder / f"{name}.png") as picture:
            assert np.array_equal(np.asarray(picture), pixels)
