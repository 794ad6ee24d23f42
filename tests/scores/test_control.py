"""Slant and stroke width of drawn shapes that have them."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from infogan_dist.scores.control import control, slants, stroke_widths
from infogan_dist.scores.scored_model import NotMeasurable


def stroke(degrees: float, width: float, side: int = 28, fine: int = 8) -> Tensor:
    """A straight stroke 18 pixels high, leaning right by so many degrees, [side, side] in [0, 1]."""
    canvas = Image.new("L", (side * fine, side * fine))
    middle, high = side * fine / 2, 9 * fine
    reach = high * math.tan(math.radians(degrees))
    across = width * fine / math.cos(math.radians(degrees)) / 2  # horizontally
    top, bottom = middle + reach, middle - reach
    corners = [
        (top - across, middle - high),
        (top + across, middle - high),
        (bottom + across, middle + high),
        (bottom - across, middle + high),
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return torch.from_numpy(np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255.0)


@pytest.mark.parametrize("degrees", [-30.0, -10.0, 0.0, 15.0, 35.0])
def test_a_stroke_s_slant_is_the_angle_it_was_drawn_at(degrees: float):
    # Half a degree: edges are blurred over a pixel, and the ends are cut level.
    assert slants(stroke(degrees, 3.0)[None])[0] == pytest.approx(degrees, abs=0.5)


@pytest.mark.parametrize("degrees", [0.0, 20.0, 40.0])
@pytest.mark.parametrize("width", [2.0, 3.0, 4.0, 5.0])
def test_a_stroke_s_width_is_the_one_it_was_drawn_with(degrees: float, width: float):
    # Points near its ends are nearer to an edge: in a w x L rectangle the mean distance is w/4 - w^2/(12 L).
    length = 18 / math.cos(math.radians(degrees))
    expected = width - width**2 / (3 * length)
    # An edge through the middle of a pixel leaves open to which side it belongs: a quarter pixel either way.
    assert stroke_widths(stroke(degrees, width)[None])[0] == pytest.approx(expected, abs=0.3)


def test_brightness_and_place_change_neither():
    image = stroke(20.0, 3.0)
    moved = torch.roll(image, (2, -3), (0, 1)) * 0.4
    both = torch.stack([image, moved])
    assert slants(both)[0] == pytest.approx(slants(both)[1], abs=1e-9)
    assert stroke_widths(both)[0] == pytest.approx(stroke_widths(both)[1], rel=1e-6)


def test_images_without_a_stroke_have_neither():
    blank = torch.zeros(2, 28, 28)
    blank[1] = 1.0
    assert slants(blank[:1]).tolist() == [0.0]
    assert stroke_widths(blank).tolist() == [0.0, 0.0]


class Strokes(nn.Module):
    """A generator whose first style is the slant, in part, and whose second is the width."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, latents: Tensor) -> Tensor:
        noise, styles = latents[:, 0], latents[:, -2:]
        slant = 20 * (self.share * styles[:, 0] + (1 - self.share) * noise)
        width = 3 + styles[:, 1]
        drawn = [stroke(float(s), float(w)) for s, w in zip(slant, width, strict=True)]
        return torch.stack(drawn)[:, None].float() * 2 - 1


def scores_of(make_subject, share: float) -> dict[str, float]:
    subject = make_subject("scores.images=300", "codes.digit.size=2")
    subject.generator = Strokes(share)
    return {s.name: s.value for s in control(subject)}


def test_codes_that_turn_and_thicken_are_told_so(make_subject):
    full = scores_of(make_subject, 1.0)
    assert full["control_slant_style.0"] > 0.99
    assert full["control_width_style.1"] > 0.97  # what a pixel blurs
    # Of 150 draws by chance: |rho| has the mean 0.065 there; thrice that is met less than once in 10,000.
    assert full["control_slant_style.1"] < 0.2
    assert full["control_width_style.0"] < 0.2
    assert full["control_slant_and_width"] == pytest.approx(
        (full["control_slant_style.0"] + full["control_width_style.1"]) / 2, abs=1e-12
    )
    half = scores_of(make_subject, 0.5)  # the noise turns them as much
    assert 0.3 < half["control_slant_style.0"] < 0.7


def test_a_generator_that_shows_nothing_has_no_control(make_subject):
    subject = make_subject("scores.images=50")
    layer = nn.Linear(subject.spec.width, 64)
    nn.init.zeros_(layer.weight)
    subject.generator = nn.Sequential(layer, nn.Unflatten(1, (1, 8, 8)))
    assert {s.value for s in control(subject)} == {0.0}


def test_it_needs_a_continuous_code(make_subject):
    with pytest.raises(NotMeasurable, match="continuous"):
        list(control(make_subject("codes.style=null")))
