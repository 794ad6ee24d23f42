"""Control: how strongly a continuous code determines a measured property of the generated digits.

The paper infers from its pictures that "c2 captures rotation" and "c3 the width" (Chen et al. 2016, figure
2). Here both properties are measured on each generated digit, and correlated with the code.
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

from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel

SCALE = 4  # strokes are 2 to 4 pixels wide, so images are enlarged by this factor to measure them
MIN_GROUP = 3  # images of a category, for a rank correlation


def slants(ink: Tensor) -> np.ndarray:
    """Return each image's slant in degrees, float64 [N], positive where it leans to the right.

    It is the angle of the shear mu_11 / mu_02 (second moments) that makes the digit upright; 0 for an image
    without ink, or with ink in one row only.

    Args:
        ink: [N, H, W] in [0, 1].
    """
    ink = ink.double()
    y = torch.arange(ink.shape[1], dtype=torch.float64)[:, None]
    x = torch.arange(ink.shape[2], dtype=torch.float64)[None, :]
    total = ink.sum((1, 2)).clamp_min(1e-9)
    dy = y - (ink * y).sum((1, 2))[:, None, None] / total[:, None, None]
    dx = x - (ink * x).sum((1, 2))[:, None, None] / total[:, None, None]
    mixed, vertical = (ink * dx * dy).sum((1, 2)), (ink * dy * dy).sum((1, 2))
    # The sign is changed because rows are counted downwards.
    shear = torch.where(vertical > 1e-9, -mixed / vertical.clamp_min(1e-9), 0.0)
    return torch.rad2deg(torch.atan(shear)).numpy()


def stroke_widths(ink: Tensor) -> np.ndarray:
    """Return each image's mean stroke width in pixels, float64 [N]; 0 for an image without a stroke.

    The mean distance of the points of a stroke of width w to the nearer edge is w / 4. At both ends of a
    stroke of length L the distance is smaller, w / 4 - w^2 / (12 L) in all, so that short strokes are
    measured a little too thin.

    Args:
        ink: [N, H, W] in [0, 1]; pixels above half of an image's maximum belong to the stroke.
    """
    enlarged = interpolate(ink[:, None].float(), scale_factor=SCALE, mode="bilinear")[:, 0].numpy()
    widths = np.zeros(len(enlarged))
    for i, image in enumerate(enlarged):
        stroke = image > image.max() / 2
        if stroke.any() and not stroke.all():
            distance = distance_transform_edt(stroke)
            assert isinstance(distance, np.ndarray)
            # The distance is to the centre of the nearest outer pixel, half a pixel beyond the edge.
            widths[i] = 4 * (distance[stroke].mean() - 0.5) / SCALE
    return widths


PROPERTIES = {"slant": slants, "width": stroke_widths}


def control(model: ScoredModel) -> Iterator[Score]:
    """Compute the rank correlation of each continuous variable with each property of the generated digits.

    Yields:
        `control_PROPERTY_VARIABLE`, in [0, 1]: the mean over categories of |Spearman's rho| among the digits
        of one category (the direction of a code is arbitrary; the protocol has the signed values). Then
        `control_slant_and_width`: the mean of the two correlations under the best choice of one variable for
        slant and another one for width.

    Raises:
        ScoreUnavailableError: there is no continuous code, or the images have several channels.
    """
    variables = model.continuous_variables()
    if not variables:
        raise ScoreUnavailableError("needs a continuous code")
    channels = model.manifests["train"].image_shape[0]
    if channels != 1:
        raise ScoreUnavailableError(
            f"needs grey images with bright strokes on a dark background, but these have {channels} channels"
        )

    def measure(i: int) -> np.ndarray:
        ink = ((model.generated_chunk(i)[:, 0] + 1) / 2).cpu()
        return np.stack([measure_property(ink) for measure_property in PROPERTIES.values()], axis=1)

    properties = model.per_image(model.generated_sizes, len(PROPERTIES), measure)
    codes = {name: values.numpy() for name, values in model.generated_codes.items()}
    groups = _groups(model, codes)
    protocol = {
        "samples": len(properties),
        "images": "drawn afresh from the prior",
        "generator": model.generator_weights,
        "statistic": "mean over categories of |Spearman's rho|",
    }
    strengths = np.zeros((len(PROPERTIES), len(variables)))
    for k, name in enumerate(PROPERTIES):
        for j, variable in enumerate(variables):
            values = codes[variable.code][:, variable.index]
            rho = {group: _rho(values[rows], properties[rows, k]) for group, rows in groups.items()}
            strengths[k, j] = np.mean([abs(r) for r in rho.values()])
            yield Score(f"control_{name}_{variable.name}", float(strengths[k, j]), {**protocol, "rho": rho})
    if len(variables) >= len(PROPERTIES):
        rows, columns = linear_sum_assignment(strengths, maximize=True)
        choice = {list(PROPERTIES)[r]: variables[c].name for r, c in zip(rows, columns, strict=True)}
        value = float(strengths[rows, columns].mean())
        yield Score("control_slant_and_width", value, {**protocol, "variables": choice})


def _groups(model: ScoredModel, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return masks [N] of the images of each category of each categorical variable, else of all images."""
    groups = {
        f"{variable.name}={category}": codes[variable.code][:, variable.index] == category
        for variable in model.categorical_variables()
        for category in range(model.spec.codes[variable.code].categories or 0)
    }
    groups = {name: rows for name, rows in groups.items() if rows.sum() >= MIN_GROUP}
    return groups or {"all": np.ones(model.config.scores.images, bool)}


def _rho(code: np.ndarray, values: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where the property does not vary."""
    if np.ptp(values) == 0:
        return 0.0
    rho = float(spearmanr(code, values).statistic)  # type: ignore[attr-defined]
    return 0.0 if math.isnan(rho) else rho
