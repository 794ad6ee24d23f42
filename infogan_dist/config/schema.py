"""The schema of a run's configuration: every key with its type, default, meaning and range.

`load.py` reads YAML files and overrides into it, `validate.py` refuses what cannot work.
"""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from infogan_dist.config.clustering import ClusteringConfig
from infogan_dist.config.codes import CodeConfig
from infogan_dist.config.fields import Effect, field

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp64")
LOSSES = (
    "nonsaturating",
    "hinge",
    "least_squares",
    "relativistic",
)  # `model.losses.LOSSES` has an entry for each
EQUIVARIANCES = ("shear", "dilation")
# `scores.evaluation.SCORES` has a function for each.
SCORES = ("recovery", "information", "control", "fidelity", "conditional", "disentanglement")


@dataclass
class LayerConfig:
    kind: str = field(MISSING, "layer", choices=("dense", "conv", "deconv"))
    out: int | None = field(None, "units or channels; null: the image's channels", minimum=1)
    kernel: int = field(4, "side of the kernel in pixels; padding preserves the size at stride 1", minimum=1)
    stride: int = field(1, "a conv divides the image's sides by it, a deconv multiplies them", minimum=1)
    grid: bool = field(
        False, "dense: `out` channels on the grid from which the later strides reach the image's size"
    )
    then: list[str] = field(
        [],
        "layers that follow, in this order; unit_batchnorm normalises each unit of a grid by itself, as the "
        "paper's code does after dense layers, where batchnorm normalises each channel",
        choices=("batchnorm", "unit_batchnorm", "relu", "lrelu", "tanh", "maxpool"),
    )


@dataclass
class NetworksConfig:
    generator: list[LayerConfig] = field([], "G: latents to an image in [-1, 1]")
    discriminator: list[LayerConfig] = field(
        [], "D's trunk, shared with Q; D's logit is one dense unit on it"
    )
    recognition: list[LayerConfig] = field(
        [], "Q, on the trunk's features; its output layer follows from the codes"
    )
    classifier: list[LayerConfig] = field(
        [], "the network that clustering trains; its output, one number per category, is added"
    )
    slope: float = field(0.1, "slope of lrelu below 0 (paper, appendix C)", minimum=0)
    init_std: float | None = field(
        0.02,
        "standard deviation of the initial weights, N(0, std); biases start at 0; null: torch's uniform "
        "weights, whose size depends on the layer",
        above=0,
    )


@dataclass
class ObjectiveConfig:
    loss: str = field("nonsaturating", "adversarial loss", choices=LOSSES)
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
    r1: float = field(0.0, "gamma of gamma/2 |grad D(x)|^2 on real images; 0: none", minimum=0)
    r2: float = field(0.0, "the same on generated images; 0: none", minimum=0)
    penalty_every: int = field(
        1, "steps between those with r1 and r2, which then weigh as many times more, to save time", minimum=1
    )
    equivariance: dict[str, str] = field(
        {},
        "continuous variables and what changes them, such as {style.0: shear, style.1: dilation}: the code "
        "that Q infers must move with the image",
    )
    equivariance_range: float = field(0.5, "largest such change, in units of the code", above=0)

    @property
    def q_with_discriminator(self) -> bool:
        """Whether the discriminator's step trains Q, else the generator's."""
        return self.q_step == "discriminator"

    @property
    def split_updates(self) -> bool:
        """Whether D takes one step on real and one on generated images, each on half a batch."""
        return self.d_updates == "split"


@dataclass
class AdamConfig:
    lr: float = field(2e-4, "learning rate (paper, appendix C: 2e-4 for D)", above=0)
    beta1: float = field(0.5, "decay of the mean gradient (paper, appendix C)", minimum=0)
    beta2: float = field(0.999, "decay of the mean squared gradient", minimum=0)
    eps: float = field(1e-8, "added to the root of the mean square", above=0)
    clip: float | None = field(None, "largest norm of all its gradients together; null: no limit", above=0)


@dataclass
class GeneratorAdamConfig(AdamConfig):
    lr: float = field(1e-3, "learning rate (paper, appendix C: 1e-3 for G)", above=0)


@dataclass
class OptimConfig:
    discriminator: AdamConfig = field(AdamConfig, "Adam of D (and of Q under q_step=discriminator)")
    generator: GeneratorAdamConfig = field(GeneratorAdamConfig, "Adam of G (and of Q under q_step=generator)")
    decay: float = field(0.0, "last part of the run in which both rates fall to 2%; 0: none", minimum=0)


@dataclass
class AugmentConfig:
    flip: bool = field(False, "flip each real image from left to right with probability 1/2, in training")
    shift: int = field(
        0,
        "largest random shift of each real image in training, in pixels, down or up and right or left",
        minimum=0,
    )


@dataclass
class DataConfig:
    shards: str = field(
        "shards/mnist",
        "folder or URL (https, hf, s3, gs, ...) of a shard set; create one with infogan_dist.make_shards",
        effect=Effect.NONE,  # the images are compared by their fingerprint, wherever they lie
    )
    test: str | None = field(
        None,
        "folder or URL of a shard set of held-out, labelled images, for scores; null: none",
        effect=Effect.NONE,
    )
    on_error: str = field(
        "fail",
        "a broken shard or image ends the run, or another takes its place and is counted",
        choices=("fail", "skip"),
    )
    lanes: int = field(
        8,
        "streams that a global batch is drawn from; a multiple of the processes, divides the batch",
        minimum=1,
    )
    augment: AugmentConfig = field(AugmentConfig, "random changes of real images, which G learns as well")
    workers: int = field(
        1,
        "loading subprocesses of each process; 0: load in the process itself",
        minimum=0,
        effect=Effect.NONE,
    )
    cache_mib: int = field(
        1024,
        "MiB of decoded images that each process holds in memory, to decode them once",
        minimum=0,
        effect=Effect.NONE,
    )
    device: str = field(
        "auto",
        "where decoded images stay: all on the device, or on the host up to data.cache_mib; auto: on a GPU, "
        "if they take at most a quarter of its free memory",
        choices=("auto", "device", "host"),
        effect=Effect.NONE,
    )
    disk_cache: str | None = field(
        None, "folder for a cache of remote shards, shared by all processes; null: none", effect=Effect.NONE
    )
    disk_cache_gib: float = field(
        10.0,
        "GiB that the cache may take; the least recently used files go first",
        above=0,
        effect=Effect.NONE,
    )


@dataclass
class TrainConfig:
    steps: int | None = field(
        None,
        "length in steps of D and G each, after clustering.steps, which count too; set this or epochs",
        minimum=0,
        effect=Effect.LENGTH,
    )
    epochs: float | None = field(
        None,
        "length in epochs over the data, after clustering.steps; set this or steps",
        above=0,
        effect=Effect.LENGTH,
    )
    batch_size: int = field(128, "global batch: fake images of a step, over all processes", minimum=1)
    accumulation: int = field(1, "micro-batches whose gradients a step adds up, to save memory", minimum=1)
    device: str = field(
        "auto",
        "auto: a GPU if there is one, which must work if Slurm or CUDA_VISIBLE_DEVICES names it; cuda: GPUs "
        "must work; cpu: also where there are GPUs",
        choices=("auto", "cuda", "cpu"),
        effect=Effect.NONE,
    )
    precision: str | None = field(
        None,
        "null: that of `accelerate launch --mixed_precision`, else fp32 (IEEE); fp64 is to check exactness",
        choices=PRECISIONS,
    )
    compile: bool = field(False, "torch.compile the networks: slower to start, faster on a GPU")
    cuda_graph: bool = field(
        False, "replay each step as one CUDA graph: fewer launches, for small networks on a single GPU"
    )
    processes: int | None = field(
        None,
        "required number of processes; another number is refused; null: any",
        minimum=1,
        effect=Effect.NONE,
    )
    collective_timeout_s: int = field(
        1800, "seconds that processes wait for one that saves or compiles", minimum=1, effect=Effect.NONE
    )
    ema_decay: float = field(
        0.999, "decay per step of the averaged generator, which draws the pictures", minimum=0
    )
    init_from: str | None = field(None, "run or checkpoint folder whose weights this run starts from")
    on_nonfinite: str = field(
        "fail",
        "a step whose loss or gradient is not finite changes nothing; then the run ends, or counts it",
        choices=("fail", "skip"),
    )
    warm_up: int = field(1000, "steps before a code with next to no gain is reported as dead", minimum=0)
    log_every: int = field(50, "steps whose metrics are averaged into one line", minimum=1)
    evaluate_every: int | None = field(
        None,
        "steps between scores of the run so far; also at the end; null: no scores",
        minimum=1,
        effect=Effect.NONE,
    )


@dataclass
class CheckpointConfig:
    every: int = field(1000, "steps between checkpoints; one is always saved at the end", minimum=1)
    keep: int = field(2, "newest checkpoints to keep", minimum=1)
    keep_every: int | None = field(
        None, "checkpoints at multiples of this many steps are saved and never removed", minimum=1
    )
    best: str | None = field(
        None, "logged metric whose best checkpoint is never removed, such as bound/digit"
    )
    best_mode: str = field("max", "which value of it is best", choices=("max", "min"))


@dataclass
class TrackingConfig:
    trackers: list[str] = field(["wandb"], "mirrors of metrics.jsonl: wandb, tensorboard, ...")
    project: str = field("infogan_dist", "project that the run is logged under")
    name: str | None = field(None, "the run's name; null: its folder's")
    group: str | None = field(None, "W&B: group of runs, such as the seeds of one setting")
    tags: list[str] = field([], "W&B: tags")
    notes: str | None = field(None, "W&B: a sentence on the run")
    artifacts: bool = field(False, "W&B: upload each checkpoint as a version of an artifact")
    wandb_mode: str = field(
        "auto", "auto: online if logged in, else offline", choices=("auto", "online", "offline", "disabled")
    )
    pictures_every: int = field(
        500, "steps between grids of samples and traversals; also at the end", minimum=1
    )
    progress: bool = field(True, "show progress on stderr")


@dataclass
class ScoresConfig:
    names: list[str] | None = field(None, "scores to compute; null: all that the data allows", choices=SCORES)
    images: int = field(
        10000, "images generated for a score; FID falls with more, so compare equal numbers only", minimum=2
    )
    limit: int | None = field(
        None, "images of each real split to use, drawn at random over all shards; null: all", minimum=2
    )
    ema: bool = field(True, "score the averaged generator, else the last step's")
    features: str | None = field(
        None,
        "TorchScript file of the network whose features fidelity compares; null: the package's, for digits",
    )


@dataclass
class Config:
    run: str = field(
        "runs/infogan", "folder of the run: config, metrics, pictures, checkpoints", effect=Effect.NONE
    )
    seed: int = field(0, "seed of all random numbers")
    noise: int = field(62, "incompressible noise variables z ~ N(0, 1)", minimum=0)
    codes: dict[str, CodeConfig | None] = field({}, "latent codes c by name; null removes one")
    networks: NetworksConfig = field(NetworksConfig, "layer tables")
    objective: ObjectiveConfig = field(ObjectiveConfig, "what is minimised")
    optim: OptimConfig = field(OptimConfig, "Adam")
    clustering: ClusteringConfig = field(
        ClusteringConfig, "a first stage, which finds the categories of a code in the real images"
    )
    data: DataConfig = field(DataConfig, "where images come from")
    train: TrainConfig = field(TrainConfig, "the loop")
    checkpoint: CheckpointConfig = field(CheckpointConfig, "what is saved", effect=Effect.NONE)
    tracking: TrackingConfig = field(TrackingConfig, "what is logged where", effect=Effect.NONE)
    scores: ScoresConfig = field(ScoresConfig, "how a trained model is scored", effect=Effect.SCORES)

    @property
    def real_batch(self) -> int:
        """Real images of a step, over all processes: half the batch where D learns from half batches."""
        return self.train.batch_size // 2 if self.objective.split_updates else self.train.batch_size

    def length(self, samples: int) -> int:
        """Return the number of steps of the whole run on a set of `samples` images."""
        if self.train.steps is not None:
            return self.train.steps
        return self.clustering.steps + math.ceil((self.train.epochs or 0) * samples / self.real_batch)
