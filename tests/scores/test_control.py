"""Slant and stroke width of shapes whose slant and width are known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from infogan_dist.scores.control import control, slants, stroke_widths
from infogan_dist.scores.score import ScoreUnavailableError


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


def control_scores(make_model, share: float) -> dict[str, float]:
    model = make_model("scores.images=300", "codes.digit.size=2")
    model.generator = Strokes(share)
    return {s.name: s.value for s in control(model)}


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


def test_a_generator_of_constant_images_scores_0(make_model):
    model = make_model("scores.images=50")
    layer = nn.Linear(model.spec.width, 64)
    nn.init.zeros_(layer.weight)
    model.generator = nn.Sequential(layer, nn.Unflatten(1, (1, 8, 8)))
    assert {s.value for s in control(model)} == {0.0}


def test_control_needs_a_continuous_code(make_model):
    with pytest.raises(ScoreUnavailableError, match="continuous"):
        list(control(make_model("codes.style=null")))
