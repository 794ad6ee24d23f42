"""Draws pictures with a trained generator.

    python -m infogan_dist.generate runs/mnist                           10x10 random samples
    python -m infogan_dist.generate runs/mnist codes.digit=1 grid=5x5    with a code fixed
    python -m infogan_dist.generate runs/mnist traverse=style.0          a code's values across, noise down
    python -m infogan_dist.generate runs/mnist step=20000 seed=3 --out grid.npz

RUN is a run folder (its newest checkpoint, or that of step=) or a checkpoint folder.
"""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from infogan_dist.checkpoint import CONFIG, Checkpoint, load_network, require
from infogan_dist.codes import Latents, LatentSpec
from infogan_dist.errors import ConfigError, one_line_errors
from infogan_dist.networks import Generator
from infogan_dist.pictures import draw, fixed_latents, grid, sample_latents, traversal_latents
from infogan_dist.settings import load_config

LARGEST_GRID = 100  # rows or columns


@dataclass
class Request:
    """What is to be drawn: `codes` are values by variable, as the user wrote them."""

    codes: dict[str, str] = field(default_factory=dict)
    rows: int = 10
    columns: int = 10
    traverse: str | None = None
    step: int | None = None
    seed: int = 0


def load_generator(checkpoint: Checkpoint) -> tuple[Generator, LatentSpec]:
    """The averaged generator of a checkpoint, and its latents. Raises `ConfigError`, `DataError`."""
    config = load_config(checkpoint.path / CONFIG)
    spec = LatentSpec(config.noise, config.codes)
    channels, height, width = checkpoint.about["image_shape"]
    generator = Generator(config.networks, spec, (channels, height, width))
    load_network(checkpoint, "generator_ema", generator)
    return generator, spec


def generate(generator: Generator, spec: LatentSpec, request: Request) -> tuple[Tensor, Latents, int]:
    """The images [N, C, H, W] in [-1, 1] that a request asks for, their latents, and the grid's columns.

    Raises:
        ConfigError: an unknown code, or a value outside its prior's range.
    """
    if request.traverse is None:
        latents, columns = sample_latents(spec, request.seed, request.rows * request.columns), request.columns
    else:
        latents, columns = traversal_latents(
            spec, request.seed, request.traverse, request.rows, request.columns
        )
        if spec.variable(request.traverse) in [spec.variable(name) for name in request.codes]:
            raise ConfigError(
                f"traverse={request.traverse}: codes.{request.traverse} is fixed too; leave one out"
            )
    latents = fixed_latents(spec, latents, request.codes)
    return draw(generator, latents), latents, columns


def parse_request(words: list[str]) -> Request:
    """Reads `codes.NAME=VALUE`, `grid=RxC`, `traverse=NAME`, `step=N`, `seed=N`. Raises `ConfigError`."""
    request = Request()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: not key=value; there are codes.NAME, grid, traverse, step, seed")
        if key.startswith("codes."):
            request.codes[key.removeprefix("codes.")] = value
        elif key == "grid":
            match = re.fullmatch(r"(\d+)x(\d+)", value)
            rows, columns = (int(n) for n in match.groups()) if match else (0, 0)
            if not (1 <= rows <= LARGEST_GRID and 1 <= columns <= LARGEST_GRID):
                raise ConfigError(
                    f"{word}: give rows x columns from 1x1 to {LARGEST_GRID}x{LARGEST_GRID}, such as grid=5x5"
                )
            request.rows, request.columns = rows, columns
        elif key == "traverse":
            request.traverse = value
        elif key in ("step", "seed"):
            if not value.isdecimal():
                raise ConfigError(f"{word}: give a whole number")
            setattr(request, key, int(value))
        else:
            raise ConfigError(f"{key}: unknown; there are codes.NAME, grid, traverse, step, seed")
    return request


def save(path: Path, images: Tensor, latents: Latents, columns: int) -> None:
    """Writes a PNG grid, or an NPZ of the images (uint8 [N, H, W, C]) and the codes they were made from."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(grid(images, columns)).save(path)
        else:
            pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            codes = {f"codes.{name}": values.numpy() for name, values in latents.codes.items()}
            np.savez_compressed(path, images=pixels, **codes)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror})") from None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint folder")
    parser.add_argument(
        "words", metavar="key=value", nargs="*", help="codes.NAME, grid, traverse, step, seed"
    )
    parser.add_argument("--out", type=Path, help="PNG grid, or NPZ of images and codes [RUN/samples.png]")
    arguments = parser.parse_intermixed_args(argv)
    with one_line_errors():
        request = parse_request(arguments.words)
        out = arguments.out or arguments.run / (
            f"traverse_{request.traverse}.png" if request.traverse else "samples.png"
        )
        if out.suffix not in (".png", ".npz"):
            raise ConfigError(f"--out {out}: the name must end in .png or .npz")
        checkpoint = require(arguments.run, request.step)
        generator, spec = load_generator(checkpoint)
        images, latents, columns = generate(generator, spec, request)
        save(out, images, latents, columns)
        print(f"{out}: {len(images)} images of step {checkpoint.step:,}")


if __name__ == "__main__":
    main()
