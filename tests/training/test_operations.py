"""The device operations of a training step: none of them makes the host wait, and there are not more of them.

Most steps here run on torch's meta device, on which tensors have a shape but no data: reading a number on
the host, or copying to the host, raises an error, so a step that ends did neither. Autocast and batch norm
over several processes do not support meta tensors; small steps with them run on the CPU.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infogan_dist.config.load import presets, read_config
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.losses import LOSSES
from infogan_dist.model.networks import build_classifier, build_networks
from infogan_dist.model.views import VIEW_UNIFORMS
from infogan_dist.runtime.batch_norm import GlobalBatchNorm, convert_to_global
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.metrics import MetricAccumulator, Terms
from infogan_dist.training.clustering import ClusteringStep
from infogan_dist.training.graph import GraphedStep
from infogan_dist.training.schedule import Schedule
from infogan_dist.training.state import initial_clustering, initial_state
from infogan_dist.training.step import StepResult, TrainStep
from tests.conftest import ROOT
from tests.training.steps import NORMED, inputs

MNIST, BEST = "configs/mnist.yaml", "configs/mnist_best.yaml"
IMAGE_SHAPE, SAMPLES = (1, 28, 28), 64

# Operations of a step in fp32, by the config: measured with torch 2.13, and repeated in docs/testing.md. With
# `penalty_every=4` of the recipe they are those of a step without penalties, which is the second one.
STEP_OPERATIONS = {
    MNIST: 358,
    "configs/mnist5k.yaml": 358,
    "configs/mnist_tutorial.yaml": 434,
    BEST: 700,
    "configs/quickstart.yaml": 700,
    f"{BEST} objective.penalty_every=1": 786,
    f"{MNIST} objective.r1=1": 543,
    f"{MNIST} train.accumulation=4": 1535,
}
# Operations of a step of the first stage: with balanced targets, and later.
CLUSTERING_OPERATIONS = {"balanced": 192, "consistent": 197}
# Operations of a layer of batch norm in training: forward, and forward and backward.
NORM_OPERATIONS = {nn.BatchNorm2d: (2, 3), GlobalBatchNorm: (24, 61)}
# Versions of torch differ in how they divide a function into operations: with 2.6 these steps have up to 0.9%
# more. A loop over parameters or layers exceeds the upper limit; a step without forward and backward of G is
# below the lower one.
LOWER_LIMIT, UPPER_LIMIT = 0.9, 1.01

WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Those that copy from the host wait for the copy, and on the meta device the copy is left out.
HOST_FUNCTIONS = (torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.tolist, Tensor.numpy, Tensor.cpu)
# Neither these nor views launch work on a device: a view of a copy, allocations, and marks for the profiler.
WITHOUT_WORK = ("aten::_unsafe_view", "aten::empty", "profiler::")


class DeviceOperations(TorchDispatchMode):
    """Counts the operations that launch work on a device, and refuses those for which the host waits.

    Operations whose result or its shape depends on data are refused, as are tensors on another device: a
    tensor of the host's would be copied, whether or not the host waits for the copy.

    Args:
        device: type of the device on which all tensors must be.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        assert not WAITS & set(func.tags), f"the host waits for {func}"
        # This variant of Adam, which writes in place, has no kernel for meta tensors.
        result = None if func is torch.ops.aten._fused_adam_.tensor_lr else func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        assert devices <= {self.device}, f"{func} has tensors on {devices}"
        self.count += not func.is_view and not func.name().startswith(WITHOUT_WORK)
        return result


class HostFunctions(TorchFunctionMode):
    """Refuses the functions that copy numbers between Python and a device."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func not in HOST_FUNCTIONS, f"the host waits in {func.__name__}"
        return func(*args, **(kwargs or {}))


class AdamOnMeta(torch.optim.Adam):
    """Adam, which compares a rate on the device with 0 when it is created, as meta tensors do not allow."""

    def __init__(self, params: Any, lr: Any, *args: Any, **kwargs: Any):
        super().__init__(params, 1.0, *args, **kwargs)
        for group in self.param_groups:
            group["lr"] = lr


class CalledGraph:
    """A `Graph` whose replays call the recorded function again."""

    def record(self, function: Callable[[], StepResult]) -> StepResult:
        self._function = function
        return function()

    def replay(self) -> None:
        self._function()


@pytest.fixture
def create_step_on_meta(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainStep]:
    """Return `create_meta_step`; torch takes the same path on the meta device as on a GPU.

    On a GPU and on a CPU one operation updates all parameters, or computes the norms of all gradients.
    """
    optimizer = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(torch.optim, "Adam", AdamOnMeta)
    return create_meta_step


def create_meta_step(*words: str, fp16: bool = False, graphed: bool = False) -> TrainStep:
    """Return a step on the meta device, the next of which follows the first stage.

    Args:
        words: name of a preset, and overrides of it.
        fp16: scale gradients as under fp16; the networks are not autocast.
        graphed: prepare the optimizers for a CUDA graph.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    config = read_config(list(words))
    spec = LatentSpec(config.noise, config.codes)
    engine: Any = Engine(config)
    engine.device, engine.fp16, engine.graphed = torch.device("meta"), fp16, graphed
    engine.accelerator.prepare_model = lambda module: module  # would move it to the CPU
    categories = spec.clustered_categories(config.clustering)
    with engine.device:
        networks = build_networks(config.networks, spec, IMAGE_SHAPE, config.seed, categories)
        classifier = build_classifier(config.networks, categories, IMAGE_SHAPE, config.seed)
    clustering = initial_clustering(config, engine, classifier, SAMPLES) if classifier else None
    state = initial_state(config, engine, networks, clustering)
    state.step = config.clustering.steps
    return TrainStep(config, spec, engine, state)


def meta_inputs(train_step: TrainStep) -> tuple[Tensor, Latents]:
    """Return real images and latents of a step on the meta device."""
    share, dtype = train_step.share, train_step.engine.dtype
    latents = train_step.spec.sample(0, "latents", 0, share.latents, dtype)
    latents = dataclasses.replace(latents, distortion=train_step.losses.draw_distortions(0, share.latents))
    real = torch.empty(share.real_images, *IMAGE_SHAPE, dtype=dtype, device="meta")
    return real, latents.map(lambda tensor: tensor.to("meta"))


def do_steps(engine: Engine, run: Callable[..., StepResult], arguments: Any) -> list[int]:
    """Do two steps, the first of which creates the state of Adam, with their metrics and their flags.

    Returns:
        The number of operations of each step, without those of metrics and flags.
    """
    accumulator, device, counts = MetricAccumulator(engine), engine.device.type, []
    for _ in range(2):
        with DeviceOperations(device) as operations:
            with HostFunctions():
                result = run(*arguments)
                counts.append(operations.count)
                flags = Terms()
                flags.add_vector(("nonfinite/d", "nonfinite/g"), result.nonfinite)
                accumulator.add(result.terms, flags)
            engine.exchange(result.nonfinite)
        if device == "meta":
            # What the next step reads is, on a GPU, the copy on the host that was started here.
            engine._flags = torch.zeros(3)
    return counts


def assert_within_limits(count: int, expected: int) -> None:
    assert LOWER_LIMIT * expected <= count <= UPPER_LIMIT * expected, (count, expected)


@pytest.mark.parametrize("words", STEP_OPERATIONS)
def test_a_step_has_no_more_operations(create_step_on_meta, words: str):
    train_step = create_step_on_meta(*words.split())
    counts = do_steps(train_step.engine, train_step.run, meta_inputs(train_step))
    assert_within_limits(counts[1], STEP_OPERATIONS[words])


@pytest.mark.parametrize("kind", CLUSTERING_OPERATIONS)
def test_a_step_of_the_first_stage_has_no_more_operations(create_step_on_meta, kind: str):
    """Between two searches for neighbours."""
    train_step = create_step_on_meta(BEST)
    config, engine, state = train_step.config, train_step.engine, train_step.state
    state.clustering.graphs.pixels.zero_()  # they would be searched in the images
    images = torch.zeros(SAMPLES, *IMAGE_SHAPE, dtype=torch.uint8)
    step: Any = ClusteringStep(config, engine, state, Schedule(config, SAMPLES), images)
    rows = 2 * config.clustering.batch_size
    # Random numbers are copied to a GPU from page-locked memory, without waiting.
    step._view_uniforms = lambda _: torch.empty(rows, VIEW_UNIFORMS, dtype=torch.float64, device="meta")
    state.step = 0 if kind == "balanced" else config.clustering.balanced_steps
    batch = torch.empty(rows, *IMAGE_SHAPE, dtype=torch.uint8, device="meta")
    assert_within_limits(do_steps(engine, step.run, [batch])[1], CLUSTERING_OPERATIONS[kind])


@pytest.mark.parametrize(
    "overrides",
    [
        *((f"objective.loss={loss}",) for loss in LOSSES),
        ("objective.d_updates=split", "objective.r1=1", "objective.r2=1"),
        ("objective.q_step=generator", "train.accumulation=2"),
        ("optim.discriminator.clip=1", "optim.generator.clip=1", "train.ema_decay=0", "train.precision=fp64"),
        ("codes={b: {kind: bernoulli, size: 2}, g: {kind: gaussian, size: 2}}", "codes.style.sigma=1"),
    ],
    ids=" ".join,
)
def test_the_host_waits_in_no_step(create_step_on_meta, overrides: tuple[str, ...]):
    train_step = create_step_on_meta(MNIST, *overrides)
    do_steps(train_step.engine, train_step.run, meta_inputs(train_step))


# Two updates of D in one step, and gradients that are scaled once more.
SPLIT_AND_CLIPPED = ("objective.d_updates=split", "optim.discriminator.clip=1", "optim.generator.clip=1")


def test_the_host_does_not_wait_for_the_scaling_of_gradients(create_step_on_meta):
    train_step = create_step_on_meta(MNIST, *SPLIT_AND_CLIPPED, fp16=True)
    do_steps(train_step.engine, train_step.run, meta_inputs(train_step))


def test_the_host_does_not_wait_in_a_graph(create_step_on_meta):
    train_step = create_step_on_meta(MNIST, *SPLIT_AND_CLIPPED, graphed=True)
    do_steps(train_step.engine, GraphedStep(train_step, CalledGraph()).run, meta_inputs(train_step))


@pytest.mark.parametrize("scaled", [False, True], ids=["bf16", "fp16"])
def test_the_host_does_not_wait_for_mixed_precision(create_step, scaled: bool):
    """A CPU multiplies in bf16 in both cases, since fp16 needs a GPU."""
    train_step = create_step(*NORMED, "objective.r1=1", "train.precision=bf16")
    if scaled:
        train_step.engine.fp16 = True
        for part in (train_step.state.d, train_step.state.g):
            part.scaler = torch.amp.GradScaler("cpu")
    do_steps(train_step.engine, train_step.run, inputs(train_step, 0))


@pytest.fixture
def two_processes() -> Iterator[None]:
    """A process group whose other process is not there: its collective operations do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def test_the_host_does_not_wait_in_a_step_of_two_processes(create_step, two_processes: None):
    """For batch norm and for flags; the wrapper that reduces gradients does not run on such a group."""
    train_step = create_step(*NORMED, "train.accumulation=2")
    train_step.engine.world = 2
    for network in train_step.state.trained_networks():
        convert_to_global(network)
    do_steps(train_step.engine, train_step.run, inputs(train_step, 0))


@pytest.mark.parametrize("kind", NORM_OPERATIONS)
def test_a_layer_of_batch_norm_has_no_more_operations(two_processes: None, kind: type[nn.Module]):
    layer, features, gradient = kind(3), torch.ones(4, 3, 2, 2, requires_grad=True), torch.ones(4, 3, 2, 2)
    with DeviceOperations("cpu") as operations:
        output = layer(features)
        forward = operations.count
        output.backward(gradient)
    for count, expected in zip((forward, operations.count), NORM_OPERATIONS[kind], strict=True):
        assert_within_limits(count, expected)


def test_every_preset_has_its_number():
    assert {f"configs/{path.name}" for path in presets()} <= set(STEP_OPERATIONS)


def test_the_documentation_states_the_same_numbers():
    text = (ROOT / "docs" / "testing.md").read_text()
    for words, count in STEP_OPERATIONS.items():
        assert f"| `{words}` | {count:,} |" in text
    for kind, count in CLUSTERING_OPERATIONS.items():
        assert f"| `{BEST}`, first stage, {kind} | {count:,} |" in text
    for kind, (forward, total) in NORM_OPERATIONS.items():
        assert f"| `{kind.__name__}` | {forward} | {total} |" in text
