"""Train an InfoGAN.

    accelerate launch -m infogan_dist.train configs/mnist.yaml [key=value ...]
    python -m infogan_dist.train configs/mnist.yaml train.steps=20000 codes.digit.size=20

YAML files are merged, later ones win, then key=value overrides. Started again in the same run folder, a run
continues from its newest checkpoint. On SIGTERM, SIGUSR1 or Ctrl-C it saves a checkpoint and exits with 75.

  -h, --help      this text
  --print-config  print the resolved config, with the origin of each value, and do not train
  --quiet         print warnings and errors only, and no progress
"""

import sys
from typing import TYPE_CHECKING

from infogan_dist.config.help import help_text
from infogan_dist.config.load import presets, read_config
from infogan_dist.config.origin import config_with_origins
from infogan_dist.config.schema import Config
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import EXIT_STOPPED
from infogan_dist.launcher import check_launcher, process_place

if TYPE_CHECKING:
    from infogan_dist.training.loop import Outcome


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or {"-h", "--help"} & set(arguments):
        names = ", ".join(f"configs/{p.name}" for p in presets())
        print(f"{__doc__}\nPresets: {names}\n\nKeys:\n{help_text()}")
        return
    set_up_logging(quiet="--quiet" in arguments)
    words = [a for a in arguments if a not in ("--quiet", "--print-config")]
    with exit_on_user_error():
        if "--print-config" in arguments:
            print(config_with_origins(words))
            return
        config = read_config(words)
        check_launcher()
        # Imported only now, so that --help and refusals are answered at once: torch takes seconds.
        from infogan_dist.training.loop import train

        outcome = train(config)
    if process_place().is_first:
        print(_summary(config, outcome))
    if outcome.stopped:
        sys.exit(EXIT_STOPPED)


def _summary(config: Config, outcome: "Outcome") -> str:
    end = "stopped" if outcome.stopped else "done"
    lines = [f"{config.run}: {end} at step {outcome.step:,}, {outcome.images_per_second:,.0f} images/s"]
    for name in config.codes:
        if f"bound/{name}" in outcome.metrics:
            bound, entropy = outcome.metrics[f"bound/{name}"], outcome.metrics[f"entropy/{name}"]
            lines.append(f"  bound of {name}: {bound:.3f} nats, H(c) = {entropy:.3f}")
    lines.append(f"  metrics: {config.run}/metrics.jsonl, pictures: {config.run}/pictures")
    lines.append(f"  draw more: python -m infogan_dist.generate {config.run}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
