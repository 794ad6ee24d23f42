"""Train and score a setting with several seeds.

    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0..4 data.test=shards/mnist-test
    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0,3,7 train.steps=2000 --out results/mnist.json
    python -m infogan_dist.scorecard compare RUN_OR_FILE ... [--out TABLE.md]

Each seed is a run in RUN/seed_N, on all GPUs of this machine, or on the CPU. On SIGTERM, SIGUSR1 or Ctrl-C
the current run saves a checkpoint, and the exit status is 75. Started again, the scorecard continues where it
was stopped; the stored scores of seeds are used again, so that a scorecard may take several days.

Writes OUT.json with each score's mean, 95% interval, standard deviation, worst value and value by seed, the
same as a page (OUT.md), and each seed's scores with their protocol (OUT/seed_N.json). The scorecard covers
all seeds of the setting that have a file there, also those that are not named.

`compare` prints the scores of several runs side by side, without training anything.
"""

import argparse
import logging
import sys
from pathlib import Path

from infogan_dist.config.load import read_config
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import ConfigError
from infogan_dist.scores.compare import (
    format_csv_table,
    format_markdown_table,
    protocol_warnings,
    read_columns,
)
from infogan_dist.scores.output import write_output
from infogan_dist.scores.page import format_markdown

logger = logging.getLogger(__name__)


def parse_seeds(text: str) -> list[int]:
    """Parse a range, `0..4` (both ends are included), or a list, `0,3,7`. Raises `ConfigError`."""
    first, dots, last = text.partition("..")
    words = [first, last] if dots else text.split(",")
    if not all(w.isdecimal() for w in words) or (dots and int(last) < int(first)):
        raise ConfigError(f"seeds={text}: give a range such as seeds=0..4, or a list such as seeds=0,3,7")
    return list(range(int(first), int(last) + 1)) if dots else list(dict.fromkeys(map(int, words)))


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["compare"]:
        compare(words[1:])
    else:
        train_and_score(words)


def train_and_score(argv: list[str]) -> None:
    """Run the command that trains and scores seeds, with its arguments."""
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
        from infogan_dist.scores.command_runner import CommandFailedError
        from infogan_dist.scores.seed_runs import score_seeds

        try:
            card = score_seeds(setting, numbers, out, arguments.quiet)
        except CommandFailedError as failure:
            sys.exit(failure.status)
    print(format_markdown(card))
    print(f"written: {out}, {out.with_suffix('.md')}, {out.with_suffix('')}/")


def compare(argv: list[str]) -> None:
    """Run the command that compares scores, with its arguments."""
    parser = argparse.ArgumentParser(
        prog="scorecard compare",
        description="Print a table of the scores of several runs: a row per score, a column per run.",
    )
    parser.add_argument(
        "paths", metavar="RUN_OR_FILE", nargs="+", type=Path, help="run folders, score files or scorecards"
    )
    parser.add_argument("--out", type=Path, help="write the table there, as CSV if the name ends in .csv")
    arguments = parser.parse_args(argv)
    set_up_logging()
    with exit_on_user_error():
        columns = read_columns(arguments.paths)
        is_csv = arguments.out is not None and arguments.out.suffix == ".csv"
        table = format_csv_table(columns) if is_csv else format_markdown_table(columns)
        for warning in protocol_warnings(columns):
            logger.warning(warning)
        if arguments.out is not None:
            write_output(arguments.out, table)
    print(table if arguments.out is None else f"written: {arguments.out}")


if __name__ == "__main__":
    main()
