"""Sample grids and code traversals as arrays."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from infogan_dist.codes import Latents, LatentSpec

GAP = 2  # pixels between pictures
CELL = (44, 26)  # width and height in pixels, of a confusion matrix
DARKEST = (8, 48, 107)  # the colour of a cell that holds all of its row
BATCH = 256  # images drawn at a time
PURPOSE = "pictures"  # of the random stream: the same latents through the whole run


@torch.no_grad()
def draw(generator: nn.Module, latents: Latents) -> Tensor:
    """G's images [N, C, H, W] in [-1, 1] on the CPU, with batch norm's running statistics."""
    weight = next(generator.parameters())
    training = generator.training
    generator.eval()
    try:
        chunks = latents.vector.to(weight.device, weight.dtype).split(BATCH)
        return torch.cat([generator(chunk).float().cpu() for chunk in chunks])
    finally:
        generator.train(training)


def sample_latents(spec: LatentSpec, seed: int, count: int) -> Latents:
    """`count` draws from the prior, fixed by the seed."""
    return spec.sample(seed, PURPOSE, 0, count)


def traversal_latents(
    spec: LatentSpec, seed: int, variable: str, rows: int, columns: int = 10
) -> tuple[Latents, int]:
    """Latents of a traversal grid, row by row: a row's noise and other codes stay, the variable runs.

    Returns:
        The latents [rows * columns] and the columns there are: all values of a discrete code, else `columns`.
    """
    name, index = spec.variable(variable)
    values = spec.codes[name].traversal(columns)
    base = sample_latents(spec, seed, rows)
    noise = base.vector[:, : spec.noise].repeat_interleave(len(values), 0)
    codes = {n: c.repeat_interleave(len(values), 0) for n, c in base.codes.items()}
    codes[name][:, index] = values.to(codes[name].dtype).repeat(rows)
    return spec.assemble(noise, codes, torch.float32), len(values)


def fixed_latents(spec: LatentSpec, latents: Latents, fixed: dict[str, str]) -> Latents:
    """The latents with some variables set to the values that a user named. Raises `ConfigError`."""
    codes = {n: c.clone() for n, c in latents.codes.items()}
    for variable, text in fixed.items():
        name, index, value = spec.parse(variable, text)
        codes[name][:, index] = value
    return spec.assemble(latents.vector[:, : spec.noise], codes, torch.float32)


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1], row by row, as one picture, uint8 [height, width, 3].

    Small images are enlarged by a whole factor, so that a person sees them.
    """
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    scale = max(1, 56 // pixels.shape[-1])
    pixels = np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:]))
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    height, width = pixels.shape[2] + GAP, pixels.shape[3] + GAP
    rows = math.ceil(len(pixels) / columns)
    picture = np.full((rows * height + GAP, columns * width + GAP, 3), 128, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * height + GAP, i % columns * width + GAP
        picture[top : top + height - GAP, left : left + width - GAP] = image.transpose(1, 2, 0)
    return picture


def run_pictures(generator: nn.Module, spec: LatentSpec, seed: int) -> dict[str, np.ndarray]:
    """What a run draws of itself at fixed latents: 10x10 random samples, and each variable's traversal."""
    drawn = {"samples": grid(draw(generator, sample_latents(spec, seed, 100)), 10)}
    for variable in spec.variables():
        latents, columns = traversal_latents(spec, seed, variable, rows=10)
        drawn[f"traversal/{variable}"] = grid(draw(generator, latents), columns)
    return drawn


def confusion(table: np.ndarray, rows: list[str], columns: list[str]) -> np.ndarray:
    """A confusion matrix as a picture, uint8 [height, width, 3].

    Args:
        table: counts [R, C]. A cell is as dark as its share of its row, and says its count.
        rows, columns: what stands beside and above.
    """
    height, width = len(rows) + 1, len(columns) + 1
    picture = Image.new("RGB", (width * CELL[0], height * CELL[1]), "white")
    pen = ImageDraw.Draw(picture)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    for r in range(height):
        for c in range(width):
            left, top = c * CELL[0], r * CELL[1]
            dark = shares[r - 1, c - 1] if r and c else 0.0
            text = (
                f"{table[r - 1, c - 1]}" if r and c else (columns[c - 1] if c else rows[r - 1] if r else "")
            )
            fill = tuple(round(255 - dark * (255 - end)) for end in DARKEST)
            pen.rectangle((left, top, left + CELL[0] - 1, top + CELL[1] - 1), fill)
            middle = (left + CELL[0] // 2, top + CELL[1] // 2)
            pen.text(middle, text[:7], "white" if dark > 0.5 else "black", anchor="mm")
    return np.asarray(picture)
