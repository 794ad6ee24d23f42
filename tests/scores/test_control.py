"""Slant and stroke width of shapes whose slant and width are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from infogan_dist.scores.control import (
    PERMUTATIONS,
    PROPERTIES,
    control,
    heights,
    measure,
    slants,
    stroke_widths,
)
from infogan_dist.scores.score import Score, ScoreUnavailableError


def draw_stroke(degrees: float, width: float, side: int = 28, scale: int = 8) -> Tensor:
    """Return a straight stroke, 18 pixels high, inclined to the right by an angle, [side, side] in [0, 1]."""
    canvas = Image.new("L", (side * scale, side * scale))
    middle, half_height = side * scale / 2, 9 * scale
    shift = half_height * math.tan(math.radians(degrees))
    half_width = width * scale / math.cos(math.radians(degrees)) / 2  # horizontally
    top, bottom = middle + shift, middle - shift
    corners = [
        (top - half_width, middle - half_height),
        (top + half_width, middle - half_height),
        (bottom + half_width, middle + half_height),
        (bottom - half_width, middle + half_height),
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return torch.from_numpy(np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255.0)


@pytest.mark.parametrize("degrees", [-30.0, -10.0, 0.0, 15.0, 35.0])
def test_the_slant_of_a_stroke_is_its_angle(degrees: float):
    # The tolerance is half a degree, because edges are blurred over a pixel, and the ends are horizontal.
    assert slants(draw_stroke(degrees, 3.0)[None])[0] == pytest.approx(degrees, abs=0.5)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 40.0])
@pytest.mark.parametrize("width", [2.0, 3.0, 4.0, 5.0])
def test_the_width_of_a_stroke_is_measured(degrees: float, width: float):
    # Points near the ends are closer to an edge: in a w x L rectangle the mean distance is w/4 - w^2/(12 L).
    length = 18 / math.cos(math.radians(degrees))
    expected = width - width**2 / (3 * length)
    # A pixel that an edge cuts in half may count on either side, which is a quarter of a pixel.
    assert stroke_widths(draw_stroke(degrees, width)[None])[0] == pytest.approx(expected, abs=0.3)


def test_brightness_and_position_do_not_matter():
    image = draw_stroke(20.0, 3.0)
    moved = torch.roll(image, (2, -3), (0, 1)) * 0.4
    both = torch.stack([image, moved])
    assert slants(both)[0] == pytest.approx(slants(both)[1], abs=1e-9)
    assert stroke_widths(both)[0] == pytest.approx(stroke_widths(both)[1], rel=1e-6)


def test_images_without_a_stroke_score_0():
    blank = torch.zeros(2, 28, 28)
    blank[1] = 1.0
    assert slants(blank[:1]).tolist() == [0.0]
    assert stroke_widths(blank).tolist() == [0.0, 0.0]
    assert heights(blank[:1]).tolist() == [0.0]
    assert measure(blank)[0].tolist() == [0.0] * len(PROPERTIES)


def test_the_height_of_a_stroke_is_measured():
    # Strokes are 18 pixels high; a pixel that an edge cuts may count on either side, at both ends.
    strokes = torch.stack([draw_stroke(degrees, 3.0) for degrees in (0.0, 20.0)])
    assert heights(strokes) == pytest.approx([18, 18], abs=0.5)


def test_enlarging_a_digit_changes_its_width_but_not_its_relative_width():
    small, thick = draw_stroke(10.0, 2.0), draw_stroke(10.0, 4.0)
    large = torch.zeros(56, 56)
    large[:, :] = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    (_, width, relative), (_, large_width, large_relative) = measure(small[None])[0], measure(large[None])[0]
    assert large_width == pytest.approx(2 * width, rel=0.1)
    assert large_relative == pytest.approx(relative, rel=0.05)
    assert measure(thick[None])[0, 2] > 1.5 * relative


class Strokes(nn.Module):
    """A generator whose first style code determines a share of the slant, and whose second one the width."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, latents: Tensor) -> Tensor:
        noise, styles = latents[:, 0], latents[:, -2:]
        slant = 20 * (self.share * styles[:, 0] + (1 - self.share) * noise)
        width = 3 + styles[:, 1]
        images = [draw_stroke(float(s), float(w)) for s, w in zip(slant, width, strict=True)]
        return torch.stack(images)[:, None].float() * 2 - 1


class OppositeStrokes(nn.Module):
    """A generator whose first style code slants category 0 to the right and category 1 to the left."""

    def forward(self, latents: Tensor) -> Tensor:
        digits, styles = latents[:, -4:-2], latents[:, -2:]
        slant = 20 * styles[:, 0] * (digits[:, 0] - digits[:, 1])
        width = 3 - styles[:, 1]
        images = [draw_stroke(float(s), float(w)) for s, w in zip(slant, width, strict=True)]
        return torch.stack(images)[:, None].float() * 2 - 1


def controls(make_model, generator: nn.Module, *options: str) -> dict[str, Score]:
    model = make_model("scores.images=300", "codes.digit.size=2", *options)
    model.generator = generator
    return {s.name: s for s in control(model)}


def control_scores(make_model, share: float) -> dict[str, float]:
    return {name: s.value for name, s in controls(make_model, Strokes(share)).items()}


def test_codes_that_determine_slant_and_width_are_recognised(make_model):
    full = control_scores(make_model, 1.0)
    assert full["control_slant_style.0"] > 0.99
    assert full["control_width_style.1"] > 0.97  # not 1, because edges are blurred over a pixel
    # Chance with 150 images: the mean of |rho| is 0.065, and three times that occurs less than once in
    # 10,000.
    assert full["control_slant_style.1"] < 0.2
    assert full["control_width_style.0"] < 0.2
    assert full["control_slant_and_width"] == pytest.approx(
        (full["control_slant_style.0"] + full["control_width_style.1"]) / 2, abs=1e-12
    )
    half = control_scores(make_model, 0.5)  # the noise changes the slant as much
    assert 0.3 < half["control_slant_style.0"] < 0.7


def test_opposite_directions_are_no_signed_control(make_model):
    result = controls(make_model, OppositeStrokes())
    assert result["control_slant_style.0"].value > 0.99
    rho = result["control_slant_style.0"].protocol["rho"]
    assert rho["digit=0"] > 0.99
    assert rho["digit=1"] < -0.99
    signed = result["control_signed_slant_style.0"]
    assert signed.value == pytest.approx(abs(np.mean(list(rho.values()))), abs=1e-12)
    assert signed.value < 0.01
    # The width has one direction, which is negative.
    assert result["control_signed_width_style.1"].value > 0.97
    assert result["control_signed_width_style.1"].protocol["measured"]["sign"] == "negative"
    assert result["control_signed_width_relative_style.1"].value > 0.97
    pair = result["control_signed_slant_and_width"]
    choice = pair.protocol["variables"]
    strengths = [result[f"control_signed_{k}_{v}"].value for k, v in choice.items()]
    assert pair.value == pytest.approx(np.mean(strengths), abs=1e-12)
    assert choice["width"] == "style.1"
    assert pair.value < 0.6 < 0.97 < result["control_slant_and_width"].value


def test_one_direction_is_signed_control(make_model):
    result = controls(make_model, Strokes(1.0))
    for name in ("slant_style.0", "width_style.1", "slant_and_width"):
        assert result[f"control_signed_{name}"].value == pytest.approx(
            result[f"control_{name}"].value, abs=1e-12
        )
    assert result["control_signed_slant_style.0"].protocol["measured"]["sign"] == "positive"


def test_protocols_have_the_level_of_a_useless_code(make_model):
    result = controls(make_model, Strokes(1.0))
    # Without influence rho is normal with deviation 1 / sqrt(n - 1) in each of two categories of 150 images;
    # the mean of |rho| is sqrt(2 / pi) deviations, that of |mean rho| is smaller by sqrt(2). The tolerance is
    # 5 standard errors of a mean over 20 permutations and two categories.
    deviation = 1 / np.sqrt(149)
    for kind, factor, count in (("", 1.0, 2 * PERMUTATIONS), ("signed_", np.sqrt(0.5), PERMUTATIONS)):
        for name in ("slant_style.0", "width_style.0", "width_relative_style.1"):
            protocol = result[f"control_{kind}{name}"].protocol
            expected = factor * np.sqrt(2 / np.pi) * deviation
            error = factor * deviation * np.sqrt((1 - 2 / np.pi) / count)
            assert protocol["measured"]["useless_code"] == pytest.approx(expected, abs=5 * error)
            assert protocol["permutations"] == PERMUTATIONS
        # The best of two choices is above the level of each.
        levels = {name: score.protocol["measured"]["useless_code"] for name, score in result.items()}
        single = [levels[f"control_{kind}{k}_style.{i}"] for k in ("slant", "width") for i in (0, 1)]
        assert levels[f"control_{kind}slant_and_width"] > np.mean(single)
    again = controls(make_model, Strokes(1.0))
    assert again == result


def test_a_generator_of_constant_images_scores_0(make_model):
    model = make_model("scores.images=50")
    layer = nn.Linear(model.spec.width, 64)
    nn.init.zeros_(layer.weight)
    model.generator = nn.Sequential(layer, nn.Unflatten(1, (1, 8, 8)))
    assert {s.value for s in control(model)} == {0.0}


def test_control_needs_a_continuous_code(make_model):
    with pytest.raises(ScoreUnavailableError, match="continuous"):
        list(control(make_model("codes.style=null")))
