"""Checks of a run's config. This module imports nothing heavy, so that a mistake is reported at once."""

from infogan_dist.config.batch_share import launched_share
from infogan_dist.config.load import read_config
from infogan_dist.credentials import redact_url
from infogan_dist.preflight.finding import OK, Finding, Findings, PreflightContext


def check_config(context: PreflightContext) -> Findings:
    """Read the config files and overrides as training reads them."""
    context.config = read_config(context.arguments)
    train = context.config.train
    length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:g} epochs"
    images = redact_url(context.config.data.shards)
    yield Finding(OK, f"{context.config.run}: {length}, images from {images}", uniform=True)


def check_processes(context: PreflightContext) -> Findings:
    """Check the number of processes, and that they can share the global batch evenly."""
    assert context.config
    share, train = launched_share(context.config), context.config.train
    if context.place.is_first:
        parts = (
            f"{share.world} process(es) x {train.accumulation} micro-batch(es) "
            f"x {share.latents // train.accumulation} images"
        )
        message = f"a global batch of {train.batch_size} is {parts}; {len(share.lanes)} lane(s) per process"
        yield Finding(OK, message)
