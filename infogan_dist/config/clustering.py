"""The schema of the first stage of a run, in which a classifier divides the real images into clusters.

The defaults were chosen on the last 10,000 training images of MNIST.
"""

from dataclasses import dataclass

from infogan_dist.config.fields import field


@dataclass
class ViewsConfig:
    rotation: float = field(12.0, "largest rotation, in degrees", minimum=0)
    shear: float = field(0.18, "largest shear, in widths per height", minimum=0)
    scale: float = field(0.12, "largest change of size, as a logarithm, along each axis", minimum=0)
    shift: float = field(0.12, "largest shift, in half sides of the image (1.7 of 28 pixels)", minimum=0)
    bend: float = field(
        0.07,
        "standard deviation of the displacements of a grid of 5x5 points, in half sides (one pixel of 28)",
        minimum=0,
    )


@dataclass
class ClusteringConfig:
    steps: int = field(
        0,
        "first steps of the run, which train the classifier alone, on real images; 0: no classifier",
        minimum=0,
    )
    code: str = field("digit", "categorical code whose values the clusters are")
    batch_size: int = field(
        128, "real images of a step, each with a neighbour, over all processes", minimum=1
    )
    lr: float = field(1e-3, "learning rate of the classifier's Adam", above=0)
    decay: float = field(0.3, "last part of the steps in which the rate falls to 2%", minimum=0)
    balanced_steps: int = field(
        312, "steps with balanced targets; later ones compare the two views themselves", minimum=0
    )
    balance: float = field(
        2.0, "weight of the entropy of the mean category, which prevents empty clusters", minimum=0
    )
    neighbours: int = field(5, "nearest images of each image that may be its partner", minimum=1)
    rebuild_every: int = field(
        312, "steps between searches for neighbours by the classifier's features", minimum=1
    )
    pixel_share: float = field(
        0.4, "share of the partners that are neighbours by pixels after the first search", minimum=0
    )
    ema_decay: float = field(0.99, "decay per step of the averaged classifier", minimum=0)
    views: ViewsConfig = field(
        ViewsConfig, "distortions of real images, and of generated ones that the classifier reads"
    )
