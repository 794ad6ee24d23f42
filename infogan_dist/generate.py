"""Generate images with a trained model.

    python -m infogan_dist.generate runs/mnist                           10x10 random samples
    python -m infogan_dist.generate runs/mnist codes.digit=1 grid=5x5    with a code fixed
    python -m infogan_dist.generate runs/mnist traverse=style.0          one code varies along each row
    python -m infogan_dist.generate runs/mnist step=20000 seed=3 --out grid.npz

RUN is a run folder (its newest checkpoint, or that of step=) or a checkpoint folder.
"""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import ConfigError

MAX_GRID = 100  # rows or columns
KEYS = "codes.NAME, grid, traverse, step, seed"


@dataclass
class Request:
    """What to generate.

    Attributes:
        codes: values of fixed variables by name, as the user wrote them.
        rows, columns: size of the grid.
        traverse: variable that varies along each row, or None.
        step: checkpoint's step, or None for the newest.
        seed: of noise and codes.
    """

    codes: dict[str, str] = field(default_factory=dict)
    rows: int = 10
    columns: int = 10
    traverse: str | None = None
    step: int | None = None
    seed: int = 0


def parse_request(words: list[str]) -> Request:
    """Parse `codes.NAME=VALUE`, `grid=RxC`, `traverse=NAME`, `step=N`, `seed=N`. Raises `ConfigError`."""
    request = Request()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: not key=value; there are {KEYS}")
        if key.startswith("codes."):
            request.codes[key.removeprefix("codes.")] = value
        elif key == "grid":
            match = re.fullmatch(r"(\d+)x(\d+)", value)
            rows, columns = (int(n) for n in match.groups()) if match else (0, 0)
            if not (1 <= rows <= MAX_GRID and 1 <= columns <= MAX_GRID):
                raise ConfigError(
                    f"{word}: give rows x columns from 1x1 to {MAX_GRID}x{MAX_GRID}, such as grid=5x5"
                )
            request.rows, request.columns = rows, columns
        elif key == "traverse":
            request.traverse = value
        elif key in ("step", "seed"):
            if not value.isdecimal():
                raise ConfigError(f"{word}: give a whole number")
            setattr(request, key, int(value))
        else:
            raise ConfigError(f"{key}: unknown; there are {KEYS}")
    return request


def generate(run: Path, request: Request, out: Path) -> str:
    """Write the requested images; return a line that describes them.

    Args:
        run: a run folder, or a checkpoint folder.
        request: what to generate.
        out: a PNG file for a grid, or an NPZ file for images and codes.

    Raises:
        ConfigError, DataError: the checkpoint is missing, a code is unknown, or `out` cannot be written.
    """
    # Imported only now, so that --help and a mistake on the command line are answered at once.
    from infogan_dist.files import report_unwritable
    from infogan_dist.inference import load_model
    from infogan_dist.runtime.pictures import image_grid, save_images, save_picture

    model = load_model(run, request.step)
    if request.traverse is None:
        columns = request.columns
        latents = model.sample(request.rows * columns, request.seed, request.codes)
    else:
        latents, columns = model.traverse(
            request.traverse, request.rows, request.columns, request.seed, request.codes
        )
    images = model.generate(latents)
    with report_unwritable(out, "set --out to another place"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".png":
            save_picture(image_grid(images, columns), out)
        else:
            save_images(images, latents, out)
    return f"{out}: {len(images)} images of step {model.step:,}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint folder")
    parser.add_argument("words", metavar="key=value", nargs="*", help=KEYS)
    parser.add_argument("--out", type=Path, help="PNG grid, or NPZ of images and codes [RUN/samples.png]")
    arguments = parser.parse_intermixed_args(argv)
    set_up_logging()
    with exit_on_user_error():
        request = parse_request(arguments.words)
        name = f"traverse_{request.traverse}.png" if request.traverse else "samples.png"
        out = arguments.out or arguments.run / name
        if out.suffix not in (".png", ".npz"):
            raise ConfigError(f"--out {out}: the name must end in .png or .npz")
        print(generate(arguments.run, request, out))


if __name__ == "__main__":
    main()
