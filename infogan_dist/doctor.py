"""Check a machine, and a run on it, before the run starts.

    python -m infogan_dist.doctor                                       the machine only
    python -m infogan_dist.doctor configs/mnist.yaml [key=value ...]    the machine and a run
    accelerate launch -m infogan_dist.doctor configs/mnist.yaml         with as many processes as the run

Prints one line per result: ok, WARN or FAIL, and the remedy. Writes nothing to the run folder. If something
failed, the exit status is 2 on every process.

  -h, --help   this text
  --quiet      print the lines with WARN and FAIL only, and no progress
"""

import sys

from infogan_dist.console import set_up_logging
from infogan_dist.credentials import redact_text
from infogan_dist.errors import UserError
from infogan_dist.preflight.examine import examine
from infogan_dist.preflight.finding import PreflightContext


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    quiet = "--quiet" in arguments
    set_up_logging(quiet)
    context = PreflightContext([argument for argument in arguments if argument != "--quiet"])
    if examine(context, output=lambda line: print(redact_text(line), flush=True), quiet=quiet):
        sys.exit(UserError.status)


if __name__ == "__main__":
    main()
