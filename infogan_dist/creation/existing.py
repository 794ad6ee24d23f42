"""Shard sets that exist already: what a command would make different."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from infogan_dist.creation.folder import natural_key
from infogan_dist.creation.index import expand, index_tars
from infogan_dist.creation.source import Source
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.creation.write import JPEG_ENCODING, num_shards, source_origin, write_shard_set
from infogan_dist.credentials import redact_url
from infogan_dist.data.shards import MANIFEST, Manifest, load_manifest, resolve
from infogan_dist.data.urls import is_remote
from infogan_dist.errors import DataError

MAX_NAMED = 10  # items of a list in a message


def create_once(
    out: Path, create: Callable[[], Manifest], differences: Callable[[Manifest], list[str]]
) -> tuple[Manifest, bool]:
    """Return the manifest of a folder, and whether the shard set was created now.

    Args:
        out: folder of the shard set.
        create: function that creates it; called only if the folder has no manifest.
        differences: function from an existing manifest to what would be different in a new one.

    Raises:
        DataError: the folder has a shard set that `create` would not create.
    """
    if not (out / MANIFEST).exists():
        return create(), True
    manifest = load_manifest(os.fspath(out))
    changed = differences(manifest)
    if changed:
        raise DataError(
            f"{out}: already another shard set ({'; '.join(changed)}); choose another folder with --out, or "
            "remove it"
        )
    return manifest, False


def create_source_set(source: Source, out: Path, shards: int | None, seed: int) -> tuple[Manifest, bool]:
    """Return `create_once` of `write_shard_set` with these arguments."""
    return create_once(
        out,
        lambda: write_shard_set(source, out, shards, seed),
        lambda manifest: source_differences(manifest, source, shards, seed),
    )


def create_index(urls: list[str], out: Path, name: str, options: TarOptions) -> tuple[Manifest, bool]:
    """Return `create_once` of `index_tars` with these arguments."""
    return create_once(
        out,
        lambda: index_tars(urls, out, name, options),
        lambda manifest: index_differences(manifest, urls, name, options),
    )


def source_differences(manifest: Manifest, source: Source, shards: int | None, seed: int) -> list[str]:
    """Return what `write_shard_set` would make different, as `NAME: EXISTING -> NEW`, with its arguments."""
    new = {
        "source": source.name,
        "images": source.count,
        "shape": list(source.read(0)[0].shape),
        "classes": source.label_names,
        "factors": source.factors,
        "shards": num_shards(source, shards),
    }
    existing = {
        "source": manifest.name,
        "images": manifest.samples,
        "shape": list(manifest.image_shape),
        "classes": manifest.label_names,
        "factors": manifest.factors,
        "shards": len(manifest.shards),
    }
    if "sample" in manifest.origin:
        new["seed"], existing["seed"] = seed, manifest.origin["seed"]
        new["encoding"] = "PNG" if source.file_of is None else JPEG_ENCODING
        existing["encoding"] = manifest.origin.get("encoding", "PNG")
    changed = [_difference(name, existing[name], new[name]) for name in new if existing[name] != new[name]]
    if not changed and "sample" in manifest.origin and manifest.origin != source_origin(source, seed):
        changed.append("pixels or labels")
    return changed


def index_differences(manifest: Manifest, urls: list[str], name: str, options: TarOptions) -> list[str]:
    """Return what `index_tars` would make different, as `NAME: EXISTING -> NEW`, with its arguments."""

    def shape_name(shape: Sequence[int] | None) -> str:
        return "not fitted" if shape is None else f"fitted to {list(shape)}"

    existing = [resolve(manifest, shard) for shard in manifest.shards]
    fitted = shape_name(manifest.image_shape if manifest.fit else None)
    compared = (
        ("name", manifest.name, name),
        ("shape", fitted, shape_name(options.shape)),
        ("background", manifest.background, options.background),
        ("image", manifest.image, options.image),
        ("label", manifest.label, options.label),
        ("classes", manifest.label_names, _class_names(manifest, options)),
    )
    changed = [_difference(field, old, new) for field, old, new in compared if old != new]
    absolute = [path if is_remote(path) else str(Path(path).resolve()) for path in existing]
    left_out = manifest.origin.get("left_out", [])
    tars = expand(urls)
    if absolute != [tar for tar in tars if tar not in left_out] or not {*left_out} <= {*tars}:
        others = sorted({*tars} ^ {*absolute, *left_out})[:3]
        changed.append(f"tars: {', '.join(map(redact_url, others)) or 'another order'}")
    return changed


def _class_names(manifest: Manifest, options: TarOptions) -> list[str]:
    """Return the names of the classes that the options give to those of an existing set."""
    if options.classes is not None:
        return list(options.classes)
    if options.label is None:
        return [str(i) for i in range(len(manifest.label_names))]
    return sorted(manifest.label_names, key=natural_key)


def _difference(name: str, old: object, new: object) -> str:
    """Return a difference for a message; of long lists, such as class names, the first different item."""
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > MAX_NAMED:
        if len(old) != len(new):
            return f"{name}: {len(old)} -> {len(new)}"
        old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
    return f"{name}: {old} -> {new}"
