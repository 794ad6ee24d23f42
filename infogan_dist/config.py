"""What a run is: the schema of its configuration.

`checks.py` says what is refused; `settings.py` reads YAML files and overrides into it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

SCORES = ("recovery", "information", "control", "fidelity", "disentanglement")
PRECISIONS = ("fp32", "bf16", "fp16", "fp64")


def field(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    free: bool = False,
) -> Any:
    """A dataclass field with what `--help` says of it and what is refused.

    Args:
        default: the default; a list, a mapping or a dataclass is copied for each config.
        meaning: one line: what it is, its unit, why this default.
        choices: the words allowed (each element's, for a list).
        least, above: the closed or open lower end of a number's range.
        free: a resumed run may change it, since it does not change the result.
    """
    meta = {"meaning": meaning, "choices": choices, "least": least, "above": above, "free": free}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=meta)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclass
class CodeConfig:
    kind: str = field(MISSING, "prior p(c)", choices=("categorical", "uniform", "gaussian", "bernoulli"))
    size: int = field(1, "categories of a categorical code; independent variables of the others", least=1)
    count: int = field(1, "independent categorical variables of that many categories", least=1)
    weight: float = field(
        1.0, "lambda of this code's lower bound (paper, eq. 6); .1 suits continuous", least=0
    )
    sigma: float | None = field(
        None, "standard deviation of a continuous code's posterior; null: learned, as exp(s)", above=0
    )


@dataclass
class LayerConfig:
    kind: str = field(MISSING, "layer", choices=("dense", "conv", "deconv"))
    out: int | None = field(None, "units or channels; null: the image's channels", least=1)
    kernel: int = field(4, "pixels a side; padding keeps the size at stride 1", least=1)
    stride: int = field(1, "a conv divides the image's sides by it, a deconv multiplies them", least=1)
    grid: bool = field(
        False, "dense: `out` channels on the grid from which the later strides reach the image's size"
    )
    then: list[str] = field([], "what follows, in this order", choices=("batchnorm", "relu", "lrelu", "tanh"))


@dataclass
class NetworksConfig:
    generator: list[LayerConfig] = field([], "G: latents to an image in [-1, 1]")
    discriminator: list[LayerConfig] = field(
        [], "D's trunk, shared with Q; D's logit is one dense unit on it"
    )
    recognition: list[LayerConfig] = field(
        [], "Q, on the trunk's features; its output layer follows the codes"
    )
    slope: float = field(0.1, "of lrelu below 0 (paper, appendix C)", least=0)
    init_std: float = field(0.02, "of the normal the weights start from; biases start at 0", above=0)


@dataclass
class ObjectiveConfig:
    loss: str = field(
        "nonsaturating", "adversarial loss", choices=("nonsaturating", "hinge", "least_squares")
    )
    q_step: str = field(
        "discriminator",
        "the step that trains Q: with trunk and logit (the paper's code) or with G (the tutorial's)",
        choices=("discriminator", "generator"),
    )
    d_updates: str = field(
        "joint",
        "D learns from a whole batch of real and one of fake at once, or from a half batch of each in turn",
        choices=("joint", "split"),
    )
    r1: float = field(0.0, "gamma of gamma/2 |grad D(x)|^2 on real images; 0: none", least=0)


@dataclass
class AdamConfig:
    lr: float = field(2e-4, "learning rate", above=0)
    beta1: float = field(0.5, "decay of the mean gradient (paper, appendix C)", least=0)
    beta2: float = field(0.999, "decay of the mean squared gradient", least=0)
    eps: float = field(1e-8, "added to the root of the mean square", above=0)
    clip: float | None = field(None, "largest norm of all its gradients together; null: any", above=0)


@dataclass
class GeneratorAdamConfig(AdamConfig):
    lr: float = field(1e-3, "learning rate (paper, appendix C: 1e-3 for G)", above=0)


@dataclass
class OptimConfig:
    discriminator: AdamConfig = field(AdamConfig, "Adam of D (and of Q under q_step=discriminator)")
    generator: GeneratorAdamConfig = field(GeneratorAdamConfig, "Adam of G (and of Q under q_step=generator)")


@dataclass
class DataConfig:
    shards: str = field(
        "shards/mnist", "folder or URL of a shard set (make one with scripts/make_shards.py)", free=True
    )
    test: str | None = field(
        None, "folder or URL of a shard set of held-out, labelled images, for scores; null: none", free=True
    )
    on_error: str = field(
        "fail",
        "a broken shard or image ends the run, or another takes its place and is counted",
        choices=("fail", "skip"),
    )
    lanes: int = field(
        8,
        "streams that a global batch is drawn from; a multiple of the processes, divides the batch",
        least=1,
    )
    workers: int = field(
        1, "loading subprocesses of each process; 0: load in the process itself", least=0, free=True
    )
    cache_mib: int = field(
        1024, "MiB of decoded images that each process keeps, to decode them once", least=0, free=True
    )
    disk_cache: str | None = field(
        None, "folder in which shards fetched from afar are kept, for all processes; null: none", free=True
    )
    disk_cache_gib: float = field(
        10.0, "GiB that folder may take; the least used go first", above=0, free=True
    )


@dataclass
class TrainConfig:
    steps: int | None = field(
        None, "length in steps of D and G each; give this or epochs", least=0, free=True
    )
    epochs: float | None = field(
        None, "length in passes over the data; give this or steps", above=0, free=True
    )
    batch_size: int = field(128, "global batch: fake images of a step, over all processes", least=1)
    accumulation: int = field(1, "micro-batches whose gradients a step adds up, to save memory", least=1)
    precision: str | None = field(
        None,
        "null: as `accelerate launch --mixed_precision` says, else fp32; fp64 is for checking exactness",
        choices=PRECISIONS,
    )
    compile: bool = field(False, "torch.compile the networks: slower to start, faster on a GPU")
    processes: int | None = field(
        None, "processes there must be; another number is refused; null: any", least=1, free=True
    )
    ema_decay: float = field(0.999, "per step, of the averaged generator that draws the pictures", least=0)
    init_from: str | None = field(None, "run or checkpoint folder whose weights this run starts from")
    on_nonfinite: str = field(
        "fail",
        "after a step whose loss or gradient is not finite, which leaves no trace: end the run, or count it",
        choices=("fail", "skip"),
    )
    warm_up: int = field(1000, "steps after which a code that the images do not show is called dead", least=0)
    log_every: int = field(50, "steps whose metrics are averaged into one line", least=1)
    evaluate_every: int | None = field(
        None, "steps between scores of the run so far; also at the end; null: no scores", least=1, free=True
    )


@dataclass
class CheckpointConfig:
    every: int = field(1000, "steps between checkpoints; one is always saved at the end", least=1, free=True)
    keep: int = field(2, "newest checkpoints to keep", least=1, free=True)
    keep_every: int | None = field(
        None, "checkpoints at multiples of this many steps are saved and kept for good", least=1, free=True
    )
    best: str | None = field(
        None, "logged metric whose best checkpoint is kept, such as bound/digit", free=True
    )
    best_mode: str = field("max", "which value of it is best", choices=("max", "min"), free=True)


@dataclass
class TrackingConfig:
    trackers: list[str] = field(["wandb"], "mirrors of metrics.jsonl: wandb, tensorboard, ...", free=True)
    project: str = field("infogan_dist", "project the run is logged under", free=True)
    name: str | None = field(None, "the run's name; null: its folder's", free=True)
    group: str | None = field(None, "W&B: runs shown together, such as the seeds of one setting", free=True)
    tags: list[str] = field([], "W&B: words to find the run by", free=True)
    notes: str | None = field(None, "W&B: a sentence on the run", free=True)
    artifacts: bool = field(False, "W&B: upload each checkpoint as a version of an artifact", free=True)
    wandb_mode: str = field(
        "auto",
        "auto: online if logged in, else offline",
        choices=("auto", "online", "offline", "disabled"),
        free=True,
    )
    pictures_every: int = field(
        500, "steps between grids of samples and traversals; also at the end", least=1, free=True
    )
    progress: bool = field(True, "a progress bar on stderr", free=True)


@dataclass
class ScoresConfig:
    names: list[str] | None = field(
        None, "scores to compute; null: all that the data allows", choices=SCORES, free=True
    )
    images: int = field(
        10000, "images drawn for a score; FID falls with more, so compare like with like", least=2, free=True
    )
    limit: int | None = field(
        None, "images of each real split to use, from its start; null: all", least=2, free=True
    )
    ema: bool = field(True, "score the averaged generator, else the last step's", free=True)
    features: str | None = field(
        None,
        "TorchScript file of the network whose features fidelity compares; null: the package's, for digits",
        free=True,
    )


@dataclass
class Config:
    run: str = field("runs/infogan", "folder of the run: config, metrics, pictures, checkpoints", free=True)
    seed: int = field(0, "everything random follows from it")
    noise: int = field(62, "incompressible noise variables z ~ N(0, 1)", least=0)
    codes: dict[str, CodeConfig | None] = field({}, "latent codes c by name; null removes one")
    networks: NetworksConfig = field(NetworksConfig, "layer tables")
    objective: ObjectiveConfig = field(ObjectiveConfig, "what is minimised")
    optim: OptimConfig = field(OptimConfig, "Adam")
    data: DataConfig = field(DataConfig, "where images come from")
    train: TrainConfig = field(TrainConfig, "the loop")
    checkpoint: CheckpointConfig = field(CheckpointConfig, "what is saved")
    tracking: TrackingConfig = field(TrackingConfig, "what is logged where")
    scores: ScoresConfig = field(ScoresConfig, "how a trained model is scored")

    @property
    def real_batch(self) -> int:
        """Real images of a step, over all processes: half the batch where D learns from half batches."""
        return self.train.batch_size // 2 if self.objective.d_updates == "split" else self.train.batch_size

    def length(self, samples: int) -> int:
        """Steps of the whole run on a set of `samples` images."""
        if self.train.steps is not None:
            return self.train.steps
        return math.ceil((self.train.epochs or 0) * samples / self.real_batch)
