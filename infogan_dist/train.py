"""Trains an InfoGAN.

    accelerate launch -m infogan_dist.train configs/mnist.yaml [key=value ...]
    python -m infogan_dist.train configs/mnist.yaml train.steps=20000 codes.digit.size=20

YAML files are merged, later ones win, then key=value overrides. Started again in the same run folder, a
run goes on from its newest checkpoint. SIGTERM, SIGUSR1 or Ctrl-C: it saves a checkpoint and exits with 75.
"""

import sys

from infogan_dist.config import Config
from infogan_dist.engine import is_first
from infogan_dist.errors import STOPPED, one_line_errors
from infogan_dist.settings import help_text, presets, read_config
from infogan_dist.trainer import Outcome, train


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or {"-h", "--help"} & set(arguments):
        print(
            f"{__doc__}\nPresets: {', '.join(f'configs/{p.name}' for p in presets())}\n\nKeys:\n{help_text()}"
        )
        return
    with one_line_errors():
        config = read_config(arguments)
        outcome = train(config)
    if is_first():
        print(_summary(config, outcome))
    if outcome.stopped:
        sys.exit(STOPPED)


def _summary(config: Config, outcome: Outcome) -> str:
    how = "stopped" if outcome.stopped else "done"
    lines = [f"{config.run}: {how} at step {outcome.step:,}, {outcome.images_per_second:,.0f} images/s"]
    for name in config.codes:
        if f"bound/{name}" in outcome.metrics:
            bound, entropy = outcome.metrics[f"bound/{name}"], outcome.metrics[f"entropy/{name}"]
            lines.append(f"  bound of {name}: {bound:.3f} nats, H(c) = {entropy:.3f}")
    lines.append(f"  metrics: {config.run}/metrics.jsonl, pictures: {config.run}/pictures")
    lines.append(f"  draw more: python -m infogan_dist.generate {config.run}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
