"""What the simulation says is what loaders do, what networks hold, and what DDP reduces."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import DataConfig
from infogan_dist.data import loader as loader_module
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.data.write import write_shard_set
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from scripts import simulate_scale
from scripts.simulate_scale import (
    Scale,
    bucket_bytes,
    communication,
    exchange_ms,
    pass_figures,
    simulate,
    walk,
)
from tests.conftest import images_source, number_of

counted_of = functools.cache(communication)  # it takes seconds
NO_ROOM = 2**30  # bytes an image: none fits the memory of a process
SOME_ROOM = 2**30 // 25  # 25 images, or two shards of ten


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def order_of(scale: Scale) -> Order:
    return Order(0, scale.sizes, scale.lanes, scale.batch)


def histogram(values: Counter[int], count: int) -> list[int]:
    """How many of `count` things came up 0, 1, 2, ... times."""
    return np.bincount([values[i] for i in range(count)]).tolist()


@pytest.mark.parametrize(
    "scale",
    [
        Scale(4, 2, 80, 8, 8, 16, passes=3, image_bytes=NO_ROOM),  # lanes divide the shards
        Scale(4, 2, 110, 11, 8, 16, passes=3, image_bytes=NO_ROOM),  # they do not
        Scale(2, 2, 115, 11, 4, 4, passes=3, image_bytes=SOME_ROOM),  # nor are shards alike; some are kept
        Scale(8, 4, 30, 3, 8, 8, passes=4, image_bytes=SOME_ROOM),  # fewer shards than processes
        Scale(1, 1, 60, 6, 2, 20, passes=2, image_bytes=1),  # all are kept
    ],
)
def test_the_simulation_tells_what_real_loaders_read(
    scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written, reads = write_shard_set(images_source(scale.samples), tmp_path, scale.shards), Counter[int]()
    assert scale.sizes == [shard.samples for shard in written.shards]
    manifest = dataclasses.replace(written, image_shape=(1, 1, scale.image_bytes))  # for the plan's eyes
    order, own = order_of(scale), scale.lanes // scale.processes

    def noted(manifest: Manifest, index: int, *rest: Any) -> DecodedShard:
        reads[index] += 1
        return read_shard(written, index, *rest)

    monkeypatch.setattr(loader_module, "read_shard", noted)
    kept = DataConfig().cache_mib * 2**20
    streams = [
        Loader(manifest, order, range(r * own, (r + 1) * own), cache_bytes=kept).batches(0)
        for r in range(scale.processes)
    ]
    visits = walk(scale, order)
    for number in range(scale.passes):
        reads.clear()
        numbers = [[number_of(i) for _ in range(scale.steps) for i in next(s).images] for s in streams]
        figures = pass_figures(scale, order, visits, number)
        samples = figures["samples_per_process"]
        assert (samples["min"], samples["max"]) == (min(map(len, numbers)), max(map(len, numbers)))
        seen = Counter(n for process in numbers for n in process)
        assert figures["samples_by_times_seen"] == histogram(seen, scale.samples)
        assert figures["shards_by_times_fetched"] == histogram(reads, scale.shards)
        fetched = sum(scale.sizes[i] * n for i, n in reads.items()) / scale.samples
        # Sums of the same few numbers in another order.
        assert figures["sets_fetched"] == pytest.approx(fetched, rel=1e-9, abs=1e-12)


def test_shards_that_are_a_multiple_of_the_lanes_are_read_once_a_pass_and_kept_by_a_disk_cache():
    scale = Scale(8, 8, 3200, 32, 16, 64, passes=3, image_bytes=NO_ROOM)
    order = order_of(scale)
    visits = walk(scale, order)
    for number in range(scale.passes):
        figures = pass_figures(scale, order, visits, number)
        assert figures["samples_by_times_seen"] == [0, 3200]
        assert figures["shards_by_times_fetched"] == [0, 32]
        for name, each in (("samples", 400), ("shards", 4)):
            assert figures[f"{name}_per_process"] == {"min": each, "max": each, "ratio": 1}
        assert figures["sets_fetched"] == pytest.approx(1, rel=1e-9)
        # One node of all processes has each shard after the first pass.
        assert figures["sets_fetched_with_disk_cache"] == pytest.approx(float(number == 0), rel=1e-9)
        # Two lanes of each process come to the end of their shards together.
        assert figures["most_fetches_in_a_step"] == figures["most_fetches_in_a_step_of_a_node"] == 16


def test_two_nodes_find_half_of_a_pass_in_their_disk_caches():
    scale = Scale(2, 1, 40_000, 400, 2, 100, passes=2, image_bytes=NO_ROOM)
    order = order_of(scale)
    again = pass_figures(scale, order, walk(scale, order), 1)["sets_fetched_with_disk_cache"]
    # A shard's node is drawn anew each pass: binomial, n = 400, p = 1/2, whose deviation is .025 of n.
    assert 0.4 < again < 0.6


@pytest.mark.parametrize("samples", [800, 801])
def test_the_drift_is_the_orders(samples: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulate_scale, "FAR_STEP", 10)
    scale = Scale(4, 4, samples, 8, 4, 8, passes=1, image_bytes=1)
    drift = simulate(scale)["drift"]
    assert drift == order_of(scale).drift()
    assert (drift > 0) == (samples % 8 > 0)


def test_step_ten_million_of_equal_shards_is_found_at_once_by_one_of_4096_processes():
    scale = Scale(4096, 8, 10**9, 100_000, 8192, 32_768, passes=1, image_bytes=1)
    found = simulate_scale.start_up(scale, equal=True)
    assert 0 < found["slowest_lane_s"] <= found["all_lanes_s"] < 1  # a few hundredths, on two busy cores
    # 100,000 sizes and the order of one or two passes, 8 bytes each, and little else.
    assert 1.6 < found["megabytes"] < 3


@pytest.mark.parametrize("preset", simulate_scale.PRESETS)
def test_gradients_are_the_parameters_that_a_step_trains_in_ddps_own_buckets(preset: str):
    counted, config = counted_of(preset), read_config([preset])
    generator, discriminator, recognition = build_networks(
        config.networks, LatentSpec(config.noise, config.codes), simulate_scale.PRESET_SHAPE, 0
    )
    q_with_d = config.objective.q_step == "discriminator"
    assert q_with_d == (preset == "configs/mnist.yaml")  # so that both ways are seen
    parts = {"d": [discriminator], "g": [generator]}
    parts["d" if q_with_d else "g"].append(recognition)
    for name, networks in parts.items():
        parameters = [p for network in networks for p in network.parameters()]
        assert counted["parameters"][name] == sum(p.numel() for p in parameters)
        assert sum(counted["buckets"][name]) == sum(p.numel() * p.element_size() for p in parameters)
        parameters.reverse()
        assigned, _ = dist._compute_bucket_assignment_by_size(parameters, [2**20, 25 * 2**20])
        assert counted["buckets"][name] == [sum(parameters[i].numel() * 4 for i in b) for b in assigned]


def test_a_bucket_is_closed_by_the_parameter_that_fills_it():
    sizes = [3, 2**22, 5, 2**24, 7, 2**18, 11]  # floats, from the first layer to the last
    parameters = [nn.Parameter(nn.Parameter().new_empty(n)) for n in sizes]
    assert bucket_bytes(parameters) == [4 * (11 + 2**18), 4 * (7 + 2**24), 4 * (5 + 2**22 + 3)]


def test_batch_norm_is_exchanged_once_for_each_forward_and_backward_of_the_papers_step():
    counted, config = counted_of("configs/mnist.yaml"), read_config(["configs/mnist.yaml"])
    networks = build_networks(
        config.networks, LatentSpec(config.noise, config.codes), simulate_scale.PRESET_SHAPE, 0
    )
    layers = [[len(b) for n, b in network.named_buffers() if n.endswith("mean")] for network in networks]
    # G makes the fakes once. D sees real, fake, and fake again for G's step; Q fake, real (its usage, without
    # a gradient), and fake for G's step.
    forwards, backwards = (1, 3, 3), (1, 3, 2)
    gathered = sum(n * (2 * c + 1) for n, norms in zip(forwards, layers, strict=True) for c in norms)
    reduced = sum(n * 2 * c for n, norms in zip(backwards, layers, strict=True) for c in norms)
    assert (counted["norm_gathered"], counted["norm_reduced"]) == (gathered, reduced)
    assert counted["buffer_bytes"] == sum(2 * 4 * c for norms in layers for c in norms)
    times = [f + b for f, b in zip(forwards, backwards, strict=True)]
    assert counted["norm_exchanges"] == sum(n * len(norms) for n, norms in zip(times, layers, strict=True))


def test_a_ring_of_two_sends_the_gradients_once_and_a_long_one_twice():
    counted = {
        "buckets": {"d": [3_000_000, 1_000_000], "g": [2_000_000]},
        "reductions": {"d": 2, "g": 1},
        "norm_gathered": 1000,
        "norm_reduced": 500,
        "norm_exchanges": 10,
        "flops_per_image": 1e9,
    }
    two = exchange_ms(counted, 2, bandwidth=1.0, latency=20.0, tflops=0.1)
    times = [two[name] for name in ("d_gradients", "g_gradients", "batch_norm", "latency")]
    # At 1 GB/s a megabyte takes a millisecond; 5 buckets and 10 exchanges wait.
    assert times == pytest.approx([8, 2, 4e-6 * 1500, 0.3], rel=1e-9)
    assert two["images_meanwhile"] == pytest.approx(sum(times) / 10, rel=1e-9)  # an image takes 10 ms
    long = exchange_ms(counted, 1001, bandwidth=1.0, latency=20.0, tflops=0.1)
    assert long["d_gradients"] == pytest.approx(2 * 8, rel=2e-3)  # (n - 1) / n is 1 but for a thousandth
    assert long["batch_norm"] == pytest.approx(
        4.0 + 4e-3, rel=1e-3
    )  # gathered numbers come from each process


def test_the_command_line_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(simulate_scale, "FAR_STEP", 100)
    monkeypatch.setattr(simulate_scale, "PRESETS", ("configs/quickstart.yaml",))
    small = ["--processes=4", "--samples=800", "--shards=10", "--batch=16", "--passes=2"]
    simulate_scale.main([*small, f"--json={tmp_path}/scale.json"])
    written = json.loads((tmp_path / "scale.json").read_text())
    expected = simulate(Scale(4, 8, 800, 10, 4, 16, 2, 3 * 64 * 64))
    assert (written["scale"], written["passes"]) == (expected["scale"], expected["passes"])
    assert list(written["communication"]) == ["configs/quickstart.yaml"]
    said = capsys.readouterr().out
    assert "| samples per process | 200 to 200 (ratio 1.0000) | 200 to 200 (ratio 1.0000) |" in said
    assert "steps_per_pass: 50, " in said


@pytest.mark.parametrize(
    ("wrong", "says"), [("--lanes=6", "data.lanes=4 or 8"), ("--batch=26", "batch_size=24 or 28")]
)
def test_what_no_run_could_do_is_refused_in_one_line(wrong: str, says: str, capsys):
    with pytest.raises(SystemExit) as ended:
        simulate_scale.main(["--processes=4", "--batch=24", wrong])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
