"""The features of real images, cached in a folder of the user."""

import contextlib
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from infogan_dist.files import atomic_write
from infogan_dist.scores.features import Features
from infogan_dist.scores.scored_model import ScoredModel

logger = logging.getLogger(__name__)


def real_features(model: ScoredModel, split: str, features: Features) -> np.ndarray:
    """Return the features of a split's images, from a file where they were computed before.

    The file's name depends on what determines the features: the data, the sample of images and the network. A
    damaged file is named in a warning, and written again.

    Args:
        model: the model with its images.
        split: `train` or `test`.
        features: the network.

    Returns:
        float64 [N, d].
    """
    dataset = model.datasets[split]
    origin: list[object] = [model.manifests[split].fingerprint(), len(dataset), features.fingerprint]
    if not dataset.is_complete:
        origin.append("random sample")
    key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
    path = Path(pooch.os_cache("infogan_dist")) / "features" / f"{key}.safetensors"
    cached = _read_features(path, (len(dataset), features.width))
    # Either all processes use their file or none does, because they compute the features together.
    if model.distributed_map(model.engine.world, 1, lambda rank: [cached is not None]).all():
        assert cached is not None
        return cached.astype(np.float64)
    result = model.per_image(
        dataset.sizes,
        features.width,
        lambda i: features(torch.from_numpy(dataset.read(i).images)).double().cpu(),
    )
    _write_features(path, result)
    return result


def _read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return cached features, or None where there is no file or a damaged one."""
    if not path.is_file():
        return None
    try:
        features = load_file(path)["features"]
        if features.shape != shape or not np.isfinite(features).all():
            raise ValueError(f"shape {list(features.shape)}, or numbers that are not finite")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        logger.warning("%s: damaged (%s); the features are computed again", path, error)
        return None
    return features


def _write_features(path: Path, features: np.ndarray) -> None:
    """Write features for later calls; if the folder cannot be written, they are computed again each time."""
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            save_file({"features": features.astype(np.float32)}, partial)
