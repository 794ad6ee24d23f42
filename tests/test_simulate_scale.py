"""The simulation agrees with real loaders, real networks and the buckets of DDP."""

import dataclasses
import functools
import json
import sys
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
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data import shard_dataset
from infogan_dist.data.loader import Loader
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from tests.conftest import ROOT, images_source, number_of

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is started by its path
import simulate_scale
from simulation import communication, reading
from simulation.communication import Speeds, bucket_bytes, count_communication, exchange_times
from simulation.reading import Scale, epoch_figures, plan_spans, simulate

counts_of = functools.cache(count_communication)  # a call takes seconds
NO_SPACE = 2**30  # bytes of an image: none fits the memory cache of a process
LITTLE_SPACE = 2**30 // 25  # 25 images fit, or two shards of ten


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Start each test without an Accelerate state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def histogram(values: Counter[int], count: int) -> list[int]:
    """Return how many of `count` items have the values 0, 1, 2, ..."""
    return np.bincount([values[i] for i in range(count)]).tolist()


@pytest.mark.parametrize(
    "scale",
    [
        Scale(4, 2, 80, 8, 8, 16, epochs=3, image_bytes=NO_SPACE),  # a multiple of the lanes
        Scale(4, 2, 110, 11, 8, 16, epochs=3, image_bytes=NO_SPACE),  # not a multiple of them
        Scale(
            2, 2, 115, 11, 4, 4, epochs=3, image_bytes=LITTLE_SPACE
        ),  # shards of different sizes; some are cached
        Scale(8, 4, 30, 3, 8, 8, epochs=4, image_bytes=LITTLE_SPACE),  # fewer shards than processes
        Scale(1, 1, 60, 6, 2, 20, epochs=2, image_bytes=1),  # all are cached
    ],
)
def test_the_simulation_equals_real_loaders(scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written, reads = write_shard_set(images_source(scale.samples), tmp_path, scale.shards), Counter[int]()
    assert scale.shard_sizes == written.shard_sizes
    # The plan uses the size of the simulated images; the shards contain small ones.
    manifest = dataclasses.replace(written, image_shape=(1, 1, scale.image_bytes))
    order, count = scale.order(), scale.lanes // scale.processes

    def counted_read(manifest: Manifest, index: int, *rest: Any) -> DecodedShard:
        reads[index] += 1
        return read_shard(written, index, *rest)

    monkeypatch.setattr(shard_dataset, "read_shard", counted_read)
    cache_bytes = DataConfig().cache_mib * 2**20
    streams = [
        Loader(manifest, order, range(r * count, (r + 1) * count), cache_bytes=cache_bytes).batches(0)
        for r in range(scale.processes)
    ]
    spans = plan_spans(scale, order)
    for epoch in range(scale.epochs):
        reads.clear()
        numbers = [[number_of(i) for _ in range(scale.steps) for i in next(s).images] for s in streams]
        figures = epoch_figures(scale, order, spans, epoch)
        samples = figures["samples_per_process"]
        assert (samples["min"], samples["max"]) == (min(map(len, numbers)), max(map(len, numbers)))
        sample_reads = Counter(n for process in numbers for n in process)
        assert figures["samples_by_number_of_reads"] == histogram(sample_reads, scale.samples)
        assert figures["shards_by_number_of_fetches"] == histogram(reads, scale.shards)
        fetched = sum(scale.shard_sizes[i] * n for i, n in reads.items()) / scale.samples
        # The sums are computed in different orders.
        assert figures["fetched_sets"] == pytest.approx(fetched, rel=1e-9, abs=1e-12)


def test_shards_that_are_a_multiple_of_the_lanes_are_read_once_per_epoch_and_kept_by_a_disk_cache():
    scale = Scale(8, 8, 3200, 32, 16, 64, epochs=3, image_bytes=NO_SPACE)
    order = scale.order()
    spans = plan_spans(scale, order)
    for epoch in range(scale.epochs):
        figures = epoch_figures(scale, order, spans, epoch)
        assert figures["samples_by_number_of_reads"] == [0, 3200]
        assert figures["shards_by_number_of_fetches"] == [0, 32]
        for name, each in (("samples", 400), ("shards", 4)):
            assert figures[f"{name}_per_process"] == {"min": each, "max": each, "ratio": 1}
        assert figures["fetched_sets"] == pytest.approx(1, rel=1e-9)
        # All processes are on one node, which has each shard after the first epoch.
        assert figures["fetched_sets_with_disk_cache"] == pytest.approx(float(epoch == 0), rel=1e-9)
        # All lanes reach the end of their shards in the same step.
        assert figures["most_fetches_in_a_step"] == figures["most_fetches_in_a_step_of_a_node"] == 16


def test_the_disk_caches_of_two_nodes_contain_half_of_an_epoch():
    scale = Scale(2, 1, 40_000, 400, 2, 100, epochs=2, image_bytes=NO_SPACE)
    order = scale.order()
    figures = epoch_figures(scale, order, plan_spans(scale, order), 1)
    # The node of a shard is random in each epoch: binomial, n = 400, p = 1/2, standard deviation 0.025 n.
    assert 0.4 < figures["fetched_sets_with_disk_cache"] < 0.6


@pytest.mark.parametrize("samples", [800, 801])
def test_the_drift_is_that_of_the_order(samples: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "FAR_STEP", 10)
    scale = Scale(4, 4, samples, 8, 4, 8, epochs=1, image_bytes=1)
    drift = simulate(scale)["drift"]
    assert drift == scale.order().drift()
    assert (drift > 0) == (samples % 8 > 0)


def test_one_of_4096_processes_finds_step_ten_million_of_equal_shards_within_a_second():
    scale = Scale(4096, 8, 10**9, 100_000, 8192, 32_768, epochs=1, image_bytes=1)
    figures = reading.start_up(scale, equal=True)
    assert 0 < figures["slowest_lane_s"] <= figures["all_lanes_s"] < 1  # a few 0.01 s, on two busy cores
    # 100,000 sizes and the order of one or two epochs, 8 bytes each.
    assert 1.6 < figures["megabytes"] < 3


@pytest.mark.parametrize("preset", communication.PRESETS)
def test_the_buckets_are_those_of_ddp_for_the_parameters_that_a_step_trains(preset: str):
    counts, config = counts_of(preset), read_config([preset])
    generator, discriminator, recognition = build_networks(
        config.networks, LatentSpec(config.noise, config.codes), communication.PRESET_SHAPE, 0
    )
    q_with_d = config.objective.q_step == "discriminator"
    assert q_with_d == (preset == "configs/mnist.yaml")  # so that both cases are tested
    parts = {"d": [discriminator], "g": [generator]}
    parts["d" if q_with_d else "g"].append(recognition)
    for name, networks in parts.items():
        parameters = [p for network in networks for p in network.parameters()]
        assert counts["parameters"][name] == sum(p.numel() for p in parameters)
        assert sum(counts["buckets"][name]) == sum(p.numel() * p.element_size() for p in parameters)
        parameters.reverse()
        assigned, _ = dist._compute_bucket_assignment_by_size(parameters, [2**20, 25 * 2**20])
        assert counts["buckets"][name] == [sum(parameters[i].numel() * 4 for i in b) for b in assigned]


def test_a_bucket_ends_with_the_parameter_that_fills_it():
    sizes = [3, 2**22, 5, 2**24, 7, 2**18, 11]  # floats, from the first layer to the last
    parameters = [nn.Parameter(nn.Parameter().new_empty(n)) for n in sizes]
    assert bucket_bytes(parameters) == [4 * (11 + 2**18), 4 * (7 + 2**24), 4 * (5 + 2**22 + 3)]


def test_batch_norm_is_reduced_once_in_each_forward_and_backward_of_the_preset_of_the_paper():
    counts, config = counts_of("configs/mnist.yaml"), read_config(["configs/mnist.yaml"])
    networks = build_networks(
        config.networks, LatentSpec(config.noise, config.codes), communication.PRESET_SHAPE, 0
    )
    layers = [[len(b) for n, b in network.named_buffers() if n.endswith("mean")] for network in networks]
    # G runs forward and backward. So does D on real images, on fakes, and on fakes in G's update, and Q on
    # fakes in both updates; on real images it runs forward only, for the code usage.
    times = (1 + 1, 3 + 3, 3 + 2)
    assert counts["norm_exchanges"] == sum(n * len(norms) for n, norms in zip(times, layers, strict=True))
    # A mean and a mean square of each channel, in fp64.
    norm_bytes = [sum(2 * 8 * channels for channels in norms) for norms in layers]
    assert counts["norm_bytes"] == sum(n * size for n, size in zip(times, norm_bytes, strict=True))
    # The gradient of D with respect to the real images is a backward, and is itself differentiated.
    assert counts["r1_norm_exchanges"] == 2 * len(layers[1])
    assert counts["r1_norm_bytes"] == 2 * norm_bytes[1]


def test_a_ring_of_two_sends_the_gradients_once_and_a_long_one_twice():
    counts = {
        "buckets": {"d": [3_000_000, 1_000_000], "g": [2_000_000]},
        "reductions": {"d": 2, "g": 1},
        "norm_exchanges": 10,
        "norm_bytes": 6000,
        "flops_per_image": 1e9,
    }
    speeds = Speeds(bandwidth=1.0, latency=20.0, tflops=0.1)
    two = exchange_times(counts, 2, speeds)
    times = [two[name] for name in ("d_gradients", "g_gradients", "batch_norm", "latency")]
    # At 1 GB/s a megabyte takes a millisecond; 5 buckets and 10 exchanges have a latency.
    assert times == pytest.approx([8, 2, 6e-3, 0.3], rel=1e-9)
    assert two["equivalent_images"] == pytest.approx(sum(times) / 10, rel=1e-9)  # an image takes 10 ms
    long = exchange_times(counts, 1001, speeds)
    names = ("d_gradients", "g_gradients", "batch_norm")
    # (n - 1) / n differs from 1 by a thousandth.
    assert [long[name] for name in names] == pytest.approx([2 * two[name] for name in names], rel=2e-3)
    assert long["latency"] == two["latency"]


def test_the_command_line_prints_and_writes_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reading, "FAR_STEP", 100)
    monkeypatch.setattr(communication, "PRESETS", ("configs/mnist5k.yaml",))
    small = ["--processes=4", "--samples=800", "--shards=10", "--batch=16", "--epochs=2"]
    simulate_scale.main([*small, f"--json={tmp_path}/scale.json"])
    written = json.loads((tmp_path / "scale.json").read_text())
    expected = simulate(Scale(4, 8, 800, 10, 4, 16, 2, 3 * 64 * 64))
    assert (written["scale"], written["epochs"]) == (expected["scale"], expected["epochs"])
    assert list(written["communication"]) == ["configs/mnist5k.yaml"]
    output = capsys.readouterr().out
    assert "| samples per process | 200 to 200 (ratio 1.0000) | 200 to 200 (ratio 1.0000) |" in output
    assert "steps_per_epoch: 50, " in output


@pytest.mark.parametrize(
    ("option", "message"), [("--lanes=6", "data.lanes=4 or 8"), ("--batch=26", "batch_size=24 or 28")]
)
def test_an_impossible_batch_is_refused_with_one_line(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit_info:
        simulate_scale.main(["--processes=4", "--batch=24", option])
    assert exit_info.value.code == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
