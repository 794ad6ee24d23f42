"""Checks of a run's precision, trackers and networks."""

import os
import urllib.error
import urllib.request

from torch import nn

from infogan_dist.credentials import redact_url
from infogan_dist.data.shards import load_manifest
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_classifier, build_networks
from infogan_dist.preflight.finding import OK, WARN, Finding, Findings, PreflightContext, format_bytes
from infogan_dist.runtime import device, tracking

WANDB_TIMEOUT_S = 5
ADAM_MOMENTS = 2  # numbers that Adam stores per parameter


def check_precision(context: PreflightContext) -> Findings:
    """Check that the device computes in the run's precision."""
    assert context.config
    # Later checks compare the config with that of the run folder, which is resolved as well.
    config = context.config = device.launched_config(context.config)
    precision = str(config.train.precision)
    device.check_precision(precision)
    if context.place.is_first:
        yield Finding(OK, precision)


def check_trackers(context: PreflightContext) -> Findings:
    """Check that the trackers are installed, W&B's mode, and whether its server answers."""
    assert context.config
    config = context.config.tracking
    tracking.check_trackers(context.config)
    if not context.place.is_first:
        return
    if "wandb" not in config.trackers:
        yield Finding(OK, ", ".join(config.trackers) or "only the run folder")
        return
    mode = tracking.wandb_mode(config.wandb_mode)
    reason = _mode_reason(config.wandb_mode, mode)
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if mode == "online" and not _answers(server):
        message = (
            f"W&B {mode} ({reason}), but {redact_url(server)} does not answer within {WANDB_TIMEOUT_S} s"
        )
        remedy = "training continues and logs offline; run `wandb sync RUN/wandb/offline-*` later"
        yield Finding(WARN, message, remedy)
    else:
        yield Finding(OK, f"{', '.join(config.trackers)}; W&B {mode} ({reason})")


def _mode_reason(configured: str, mode: str) -> str:
    """Return why W&B logs in this mode."""
    if configured != "auto":
        return "set by tracking.wandb_mode"
    if os.environ.get("WANDB_MODE") == mode:
        return "set by WANDB_MODE"
    return "logged in" if mode == "online" else "not logged in; to log in, run `wandb login`"


def _answers(url: str) -> bool:
    """Return whether a server answers at all, through a proxy where the environment names one."""
    try:
        urllib.request.urlopen(url, timeout=WANDB_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError):
        return False
    return True


def check_cuda_graph(context: PreflightContext) -> Findings:
    """Check that steps can be recorded as a CUDA graph, where the config asks for it."""
    assert context.config
    device.check_cuda_graph(context.config)
    if context.place.is_first:
        yield Finding(OK, "used" if context.config.train.cuda_graph else "not used (train.cuda_graph)")


def check_networks(context: PreflightContext) -> Findings:
    """Check that the layer tables fit the codes and the images, and compute the size of a checkpoint."""
    assert context.config
    assert context.manifest
    config = context.config
    spec = LatentSpec(config.noise, config.codes)
    shape, categories = context.manifest.image_shape, spec.clustered_categories(config.clustering)
    built = build_networks(config.networks, spec, shape, config.seed, categories)
    networks: dict[str, nn.Module] = dict(
        zip(("generator", "discriminator", "recognition"), built, strict=True)
    )
    averaged: list[nn.Module] = [networks["generator"]]
    if classifier := build_classifier(config.networks, categories, shape, config.seed):
        networks["classifier"] = classifier
        averaged.append(classifier)
    counts = {n: sum(p.numel() for p in network.parameters()) for n, network in networks.items()}
    # A checkpoint contains averaged networks as well. Buffers are the statistics of batch norm.
    extra = sum(t.numel() for network in averaged for t in network.state_dict().values())
    buffers = sum(b.numel() for network in networks.values() for b in network.buffers())
    numbers = (1 + ADAM_MOMENTS) * sum(counts.values()) + extra + buffers
    if classifier:
        numbers += 2 * context.manifest.samples * config.clustering.neighbours
    context.checkpoint_bytes = numbers * (8 if config.train.precision == "fp64" else 4)
    if context.place.is_first:
        parameters = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        size = format_bytes(context.checkpoint_bytes)
        yield Finding(OK, f"parameters: {parameters}; a checkpoint takes {size}")


def check_run_scores(context: PreflightContext) -> Findings:
    """Check that the scores which the config names can be computed for this model and these images."""
    assert context.config
    assert context.manifest
    config = context.config
    if config.train.evaluate_every is None and config.scores.names is None:
        if context.place.is_first:
            yield Finding(OK, "none are named, and none are computed during training")
        return
    # scikit-learn and SciPy take a second to import, and most runs are not scored.
    from infogan_dist.scores.requirements import check_scores

    test = None if config.data.test is None else load_manifest(config.data.test)
    check_scores(config, context.manifest, test)
    if context.place.is_first:
        yield Finding(OK, ", ".join(config.scores.names or ["all that the data allows"]))
