"""Pictures as uint8 arrays [height, width, 3]: grids of images, traversals, confusion matrices."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from infogan_dist.data.images import to_uint8
from infogan_dist.files import atomic_write
from infogan_dist.model.latents import Latents, LatentSpec

GAP = 2  # pixels between the images of a grid
MIN_SIDE = 56  # pixels; smaller images are enlarged by a whole factor
CELL = (44, 26)  # width and height in pixels of a cell of a confusion matrix
DARKEST = (8, 48, 107)  # colour of a cell that contains its whole row
BATCH = 256  # images generated at a time
PURPOSE = "pictures"  # name of the random sequence: the same latents through the whole run


@torch.no_grad()
def generate_images(generator: nn.Module, latents: Latents) -> Tensor:
    """Return G's images [N, C, H, W] in [-1, 1] on the CPU, computed with running statistics."""
    weight = next(generator.parameters())
    training = generator.training
    generator.eval()
    try:
        chunks = latents.vector.to(weight.device, weight.dtype).split(BATCH)
        return torch.cat([generator(chunk).float().cpu() for chunk in chunks])
    finally:
        generator.train(training)


def picture_latents(spec: LatentSpec, seed: int, count: int) -> Latents:
    """Return `count` draws from the prior for pictures, the same for the same seed."""
    return spec.sample(seed, PURPOSE, 0, count)


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Return images [N, C, H, W] in [-1, 1], row by row, as one picture, uint8 [height, width, 3]."""
    pixels = to_uint8(images).numpy()
    scale = max(1, MIN_SIDE // pixels.shape[-1])
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
    """Return the pictures of a run: 10x10 random samples, and a traversal of each variable, by name.

    Args:
        generator: the averaged one.
        spec: the latent codes.
        seed: the run's, so that the latents are the same at each step.
    """
    pictures = {"samples": image_grid(generate_images(generator, picture_latents(spec, seed, 100)), 10)}
    for variable in spec.variables():
        latents, columns = spec.traversal(picture_latents(spec, seed, 10), variable)
        pictures[f"traversal/{variable}"] = image_grid(generate_images(generator, latents), columns)
    return pictures


def confusion_matrix(table: np.ndarray, rows: list[str], columns: list[str]) -> np.ndarray:
    """Return a confusion matrix as a picture, uint8 [height, width, 3].

    Args:
        table: counts [R, C], printed in the cells; a cell is the darker, the larger its share of its row.
        rows, columns: names beside the rows and above the columns.
    """
    height, width = len(rows) + 1, len(columns) + 1
    picture = Image.new("RGB", (width * CELL[0], height * CELL[1]), "white")
    draw = ImageDraw.Draw(picture)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    for r in range(height):
        for c in range(width):
            left, top = c * CELL[0], r * CELL[1]
            dark = shares[r - 1, c - 1] if r and c else 0.0
            text = (
                f"{table[r - 1, c - 1]}" if r and c else (columns[c - 1] if c else rows[r - 1] if r else "")
            )
            fill = tuple(round(255 - dark * (255 - end)) for end in DARKEST)
            draw.rectangle((left, top, left + CELL[0] - 1, top + CELL[1] - 1), fill)
            middle = (left + CELL[0] // 2, top + CELL[1] // 2)
            draw.text(middle, text[:7], "white" if dark > 0.5 else "black", anchor="mm")
    return np.asarray(picture)


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture as a PNG file, atomically. Raises `OSError`."""
    with atomic_write(path) as partial:
        Image.fromarray(picture).save(partial, "png")


def save_images(images: Tensor, latents: Latents, path: Path) -> None:
    """Write an NPZ file atomically: `images` uint8 [N, H, W, C], and the values of each code as `codes.NAME`.

    Args:
        images: [N, C, H, W] in [-1, 1].
        latents: those that the images were generated from.
        path: the file.
    """
    codes = {f"codes.{name}": values.numpy() for name, values in latents.codes.items()}
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, images=to_uint8(images).permute(0, 2, 3, 1).numpy(), **codes)  # type: ignore[arg-type]
