"""Control: how much of a continuous code shows in a measured property of the digits that are drawn.

The paper reads off its pictures that "c2 captures rotation" and "c3 the width" (Chen et al. 2016, figure 2).
Here both are measured on each drawn digit, and correlated with the code.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import interpolate

from infogan_dist.model.codes import CategoricalCode, ContinuousCode
from infogan_dist.scores.scored_model import NotMeasurable, Score, ScoredModel

FINE = 4  # strokes are measured on images enlarged so many times: they are 2 to 4 pixels wide


def slants(ink: Tensor) -> np.ndarray:
    """Each image's slant in degrees, float64 [N], from its second moments: above 0 where it leans right.

    Args:
        ink: [N, H, W] in [0, 1]; the shear mu_11 / mu_02 that sets a digit upright gives the angle. An image
            without ink, or all in one row, has none: 0.
    """
    ink = ink.double()
    y = torch.arange(ink.shape[1], dtype=torch.float64)[:, None]
    x = torch.arange(ink.shape[2], dtype=torch.float64)[None, :]
    total = ink.sum((1, 2)).clamp_min(1e-9)
    dy = y - (ink * y).sum((1, 2))[:, None, None] / total[:, None, None]
    dx = x - (ink * x).sum((1, 2))[:, None, None] / total[:, None, None]
    mixed, vertical = (ink * dx * dy).sum((1, 2)), (ink * dy * dy).sum((1, 2))
    shear = torch.where(vertical > 1e-9, -mixed / vertical.clamp_min(1e-9), 0.0)  # rows count downwards
    return torch.rad2deg(torch.atan(shear)).numpy()


def stroke_widths(ink: Tensor) -> np.ndarray:
    """Each image's mean stroke width in pixels, float64 [N].

    A point of a stroke of width w is on average w / 4 away from its nearer edge; the two ends of a stroke of
    length L make that w / 4 - w^2 / (12 L), so that short strokes seem a little thin.

    Args:
        ink: [N, H, W] in [0, 1]; what is above half of an image's brightest is stroke.
    """
    fine = interpolate(ink[:, None].float(), scale_factor=FINE, mode="bilinear")[:, 0].numpy()
    widths = np.zeros(len(fine))
    for i, image in enumerate(fine):
        stroke = image > image.max() / 2
        if stroke.any() and not stroke.all():
            distance = distance_transform_edt(stroke)
            assert isinstance(distance, np.ndarray)
            # From the middle of a pixel to that of the nearest one outside: half a pixel beyond the edge.
            widths[i] = 4 * (distance[stroke].mean() - 0.5) / FINE
    return widths


PROPERTIES = {"slant": slants, "width": stroke_widths}


def control(subject: ScoredModel) -> Iterator[Score]:
    """Rank correlations between each continuous variable and each property of drawn digits.

    Yields `control_PROPERTY_VARIABLE`, the mean over categories of |Spearman's rho| among digits of one
    category (the sign is free; the signed values are in the protocol), and `control_slant_and_width`, the
    mean of the two under the best choice of one variable for slant and another for width.
    """
    variables = subject.variables(ContinuousCode)
    if not variables:
        raise NotMeasurable("needs a continuous code")
    if subject.manifests["train"].image_shape[0] != 1:
        raise NotMeasurable("needs grey images, strokes on a dark ground")

    def measure(i: int) -> np.ndarray:
        ink = ((subject.fakes(i)[:, 0] + 1) / 2).cpu()
        return np.stack([of(ink) for of in PROPERTIES.values()], axis=1)

    measured = subject.per_image(subject.fake_sizes, len(PROPERTIES), measure)
    codes = {name: values.numpy() for name, values in subject.fake_values.items()}
    groups = _groups(subject, codes)
    about = {
        "samples": len(measured),
        "images": "drawn afresh from the prior",
        "generator": subject.which_generator,
        "statistic": "mean over categories of |Spearman's rho|",
    }
    strength = np.zeros((len(PROPERTIES), len(variables)))
    for k, prop in enumerate(PROPERTIES):
        for j, (name, i, variable) in enumerate(variables):
            rho = {g: _rho(codes[name][rows, i], measured[rows, k]) for g, rows in groups.items()}
            strength[k, j] = np.mean([abs(r) for r in rho.values()])
            yield Score(f"control_{prop}_{variable}", float(strength[k, j]), {**about, "rho": rho})
    if len(variables) >= len(PROPERTIES):
        rows, columns = linear_sum_assignment(strength, maximize=True)
        chosen = {list(PROPERTIES)[r]: variables[c][2] for r, c in zip(rows, columns, strict=True)}
        value = float(strength[rows, columns].mean())
        yield Score("control_slant_and_width", value, {**about, "variables": chosen})


def _groups(subject: ScoredModel, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The drawn images [N] of each category of each categorical variable; all, where there is none."""
    groups = {
        f"{variable}={category}": codes[name][:, i] == category
        for name, i, variable in subject.variables(CategoricalCode)
        for category in range(len(subject.spec.codes[name].traversal(0)))
    }
    groups = {g: rows for g, rows in groups.items() if rows.sum() > 2}
    return groups or {"all": np.ones(subject.scores.images, bool)}


def _rho(code: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where a property does not vary at all."""
    if np.ptp(measured) == 0:
        return 0.0
    rho = float(spearmanr(code, measured).statistic)  # type: ignore[attr-defined]
    return 0.0 if math.isnan(rho) else rho
