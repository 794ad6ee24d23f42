"""Train and score a setting with several seeds.

    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0..4 data.test=shards/mnist-test
    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0,3,7 train.steps=2000 --out results/mnist.json

Each seed is a run in RUN/seed_N, on all GPUs of this machine, or on the CPU. On SIGTERM, SIGUSR1 or Ctrl-C
the current run saves a checkpoint, and the exit status is 75. Started again, the scorecard continues where it
was stopped; the stored scores of seeds are used again, so that a scorecard may take several days.

Writes OUT.json with each score's mean, standard deviation, worst value and value by seed, the same as a page
(OUT.md), and each seed's scores with their protocol (OUT/seed_N.json).
"""

import argparse
import sys
from pathlib import Path

from infogan_dist.config.load import read_config
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import ConfigError


def parse_seeds(text: str) -> list[int]:
    """Parse a range, `0..4` (both ends are included), or a list, `0,3,7`. Raises `ConfigError`."""
    first, dots, last = text.partition("..")
    words = [first, last] if dots else text.split(",")
    if not all(w.isdecimal() for w in words) or (dots and int(last) < int(first)):
        raise ConfigError(f"seeds={text}: give a range such as seeds=0..4, or a list such as seeds=0,3,7")
    return list(range(int(first), int(last) + 1)) if dots else list(dict.fromkeys(map(int, words)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="scorecard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", metavar="CONFIG or key=value", nargs="+", help="as of train, and seeds=")
    parser.add_argument("--out", type=Path, help="the scorecard's file, ending in .json [RUN/scorecard.json]")
    parser.add_argument(
        "--quiet", action="store_true", help="print warnings and errors only, and no progress"
    )
    arguments = parser.parse_intermixed_args(argv)
    set_up_logging(arguments.quiet)
    with exit_on_user_error():
        seeds = [w for w in arguments.words if w.startswith("seeds=")]
        setting = [w for w in arguments.words if not w.startswith("seeds=")]
        numbers = parse_seeds(seeds[-1].removeprefix("seeds=")) if seeds else [0]
        config = read_config(setting)
        out = arguments.out or Path(config.run) / "scorecard.json"
        if out.suffix != ".json":
            raise ConfigError(f"--out {out}: the name must end in .json")
        # Imported only now, so that --help and a refused config are answered at once: torch takes seconds.
        from infogan_dist.scores.card import format_markdown
        from infogan_dist.scores.seed_runs import CommandFailedError, score_seeds

        try:
            card = score_seeds(setting, numbers, out, arguments.quiet)
        except CommandFailedError as failure:
            sys.exit(failure.status)
    print(format_markdown(card))
    print(f"written: {out}, {out.with_suffix('.md')}, {out.with_suffix('')}/")


if __name__ == "__main__":
    main()
