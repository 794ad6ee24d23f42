"""Control: how strongly a continuous code determines a measured property of the generated digits.

The paper infers from its pictures that "c2 captures rotation" and "c3 the width" (Chen et al. 2016, figure
2). Here both properties are measured on each generated digit, and correlated with the code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata, spearmanr
from torch import Tensor
from torch.nn.functional import interpolate

from infogan_dist.rng import permutation
from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import CodeVariable, ScoredModel

SCALE = 4  # strokes are 2 to 4 pixels wide, so images are enlarged by this factor to measure them
MIN_GROUP = 3  # images of a category, for a rank correlation
PERMUTATIONS = 20  # of a code within each category, for the level of a code without influence
PROPERTIES = ("slant", "width", "width_relative")
PAIR = (0, 1)  # the properties of `control_slant_and_width`


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


def heights(ink: Tensor) -> np.ndarray:
    """Return the height of each image's stroke in pixels, float64 [N]; 0 for an image without a stroke.

    It is the height of the smallest upright rectangle around all points of the stroke.

    Args:
        ink: [N, H, W] in [0, 1]; pixels above half of an image's maximum belong to the stroke.
    """
    enlarged = interpolate(ink[:, None].float(), scale_factor=SCALE, mode="bilinear")[:, 0]
    rows = (enlarged > enlarged.amax((1, 2), keepdim=True) / 2).any(2).numpy()
    first, last = rows.argmax(1), rows.shape[1] - 1 - rows[:, ::-1].argmax(1)
    return np.where(rows.any(1), last - first + 1, 0) / SCALE


def measure(ink: Tensor) -> np.ndarray:
    """Return the `PROPERTIES` of each image, float64 [N, 3].

    They are `slants`, `stroke_widths`, and the latter divided by `heights`: a digit that is enlarged as a
    unit has a greater width, but the same relative width.

    Args:
        ink: [N, H, W] in [0, 1].
    """
    widths, sizes = stroke_widths(ink), heights(ink)
    relative = np.divide(widths, sizes, out=np.zeros(len(ink)), where=sizes > 0)
    return np.stack([slants(ink), widths, relative], axis=1)


@dataclass(frozen=True)
class _Strength:
    """How strongly each variable determines each property.

    Attributes:
        values: float64 [P, V].
        chance: the same for codes without influence: codes that are permuted within each category, float64
            [`PERMUTATIONS`, P, V].
    """

    values: np.ndarray
    chance: np.ndarray

    def best_pair(self) -> tuple[float, np.ndarray, float]:
        """Return the mean strength of the `PAIR` under the best choice of a variable for each of them.

        Returns:
            The mean, the columns of the variables, and the level of codes without influence.
        """

        def best(strengths: np.ndarray) -> tuple[float, np.ndarray]:
            rows, columns = linear_sum_assignment(strengths[list(PAIR)], maximize=True)
            return float(strengths[rows, columns].mean()), columns

        value, columns = best(self.values)
        return value, columns, float(np.mean([best(strengths)[0] for strengths in self.chance]))


def control(model: ScoredModel) -> Iterator[Score]:
    """Compute the rank correlation of each continuous variable with each property of the generated digits.

    Yields:
        `control_PROPERTY_VARIABLE`, in [0, 1]: the mean over categories of |Spearman's rho| among the digits
        of one category. `control_signed_PROPERTY_VARIABLE`: the absolute value of the mean of rho, which is
        lower if the code changes the property in one direction in some categories and in the other direction
        in others. Then `control_slant_and_width` and `control_signed_slant_and_width`: the mean of the two
        strengths under the best choice of one variable for slant and another one for width. In the protocol,
        `useless_code` is the mean of the same statistic for codes without influence.

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
    properties = model.per_image(
        model.generated_sizes,
        len(PROPERTIES),
        lambda i: measure(((model.generated_chunk(i)[:, 0] + 1) / 2).cpu()),
    )
    groups = _groups(model)
    rho = np.array([[list(_correlations(model, properties[:, k], v, groups)) for v in variables]
                    for k in range(len(PROPERTIES))])  # fmt: skip
    chance = _chance_correlations(model, properties, variables, groups)
    signed = _Strength(np.abs(rho.mean(2)), np.abs(chance.mean(3)))
    unsigned = _Strength(np.abs(rho).mean(2), np.abs(chance).mean(3))
    protocol = {
        "samples": len(properties),
        "images": "drawn afresh from the prior",
        "generator": model.generator_weights,
        "permutations": PERMUTATIONS,
    }
    for kind, statistic, strength in (
        ("", "mean over categories of |Spearman's rho|", unsigned),
        ("signed_", "|mean over categories of Spearman's rho|", signed),
    ):
        details = {**protocol, "statistic": statistic}
        yield from _scores(kind, details, strength, rho, variables, list(groups))
        if len(variables) >= len(PAIR):
            value, columns, level = strength.best_pair()
            choice = {PROPERTIES[k]: variables[c].name for k, c in zip(PAIR, columns, strict=True)}
            details = {**details, "variables": choice, "measured": {"useless_code": level}}
            yield Score(f"control_{kind}slant_and_width", value, details)


def _scores(
    kind: str,
    protocol: dict[str, Any],
    strength: _Strength,
    rho: np.ndarray,
    variables: list[CodeVariable],
    groups: list[str],
) -> Iterator[Score]:
    """Return the score of each property and variable; rho is [P, V, groups]."""
    for k, name in enumerate(PROPERTIES):
        for j, variable in enumerate(variables):
            measured: dict[str, Any] = {"useless_code": float(strength.chance[:, k, j].mean())}
            if kind:
                mean = rho[k, j].mean()
                measured["sign"] = "positive" if mean > 0 else "negative" if mean < 0 else "none"
            table = dict(zip(groups, rho[k, j].tolist(), strict=True))
            details = {**protocol, "rho": table, "measured": measured}
            yield Score(f"control_{kind}{name}_{variable.name}", float(strength.values[k, j]), details)


def _groups(model: ScoredModel) -> dict[str, np.ndarray]:
    """Return masks [N] of the images of each category of each categorical variable, else of all images."""
    codes = model.generated_codes
    groups = {
        f"{variable.name}={category}": codes[variable.code][:, variable.index].numpy() == category
        for variable in model.categorical_variables()
        for category in range(model.spec.codes[variable.code].categories or 0)
    }
    groups = {name: rows for name, rows in groups.items() if rows.sum() >= MIN_GROUP}
    return groups or {"all": np.ones(model.config.scores.images, bool)}


def _correlations(
    model: ScoredModel, values: np.ndarray, variable: CodeVariable, groups: dict[str, np.ndarray]
) -> Iterator[float]:
    """Return Spearman's rho of a variable and a property [N] in each group."""
    code = model.generated_codes[variable.code][:, variable.index].numpy()
    for rows in groups.values():
        yield _rho(code[rows], values[rows])


def _chance_correlations(
    model: ScoredModel, properties: np.ndarray, variables: list[CodeVariable], groups: dict[str, np.ndarray]
) -> np.ndarray:
    """Return Spearman's rho of permuted codes, float64 [`PERMUTATIONS`, P, V, groups]."""
    result = np.zeros((PERMUTATIONS, properties.shape[1], len(variables), len(groups)))
    for g, (group, rows) in enumerate(groups.items()):
        ranks = _standard_ranks(properties[rows])
        for j, variable in enumerate(variables):
            values = model.generated_codes[variable.code][:, variable.index].numpy()[rows]
            code = _standard_ranks(values[:, None])[:, 0]
            purpose = f"scores/control/{variable.name}/{group}"
            orders = [permutation(model.config.seed, purpose, i, len(code)) for i in range(PERMUTATIONS)]
            result[:, :, j, g] = code[np.stack(orders)] @ ranks
    return result


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of each column [n, d], shifted and scaled to mean 0 and length 1; 0 if constant.

    The product of two such columns is Spearman's rho.
    """
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    lengths = np.sqrt(np.square(ranks).sum(axis=0))
    return np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)


def _rho(code: np.ndarray, values: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where the property does not vary."""
    if np.ptp(values) == 0:
        return 0.0
    rho = float(spearmanr(code, values).statistic)  # type: ignore[attr-defined]
    return 0.0 if math.isnan(rho) else rho
