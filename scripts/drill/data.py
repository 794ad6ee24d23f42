"""Faults of shards and of the images in them."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from drill.bench import BATCH_SIZE, IMAGES, STEPS, Drill, DrillError, Fault, images_by_step
from drill.disks import flip_bit, truncate_file
from infogan_dist.data.images import encode_png

SHARD, OTHER_SHARD = "000003.tar", "000004.tar"
PICKLE_TRACE = Path("pickle-ran")  # exists once the pickle of `pickle_image` has been loaded

Damage = Callable[[Path], object]  # of a shard
Members = dict[str, bytes]  # of a tar, by name


def copy_shard_set(drill: Drill, run: Path) -> Path:
    """Copy the drill's shard set for one run, and return the copy."""
    shards = run.with_name(run.name + ".set")
    subprocess.run(["cp", "-a", drill.folder / "set", shards], check=True)
    return shards


def damage_shard(drill: Drill, run: Path, damage: Damage, word: str, processes: int = 1) -> str:
    """Damage a shard: the run ends and names it, and continues once it is restored.

    Args:
        drill, run: as of each fault.
        damage: is applied to the shard.
        word: must occur in the message.
        processes: number of processes.
    """
    shards = copy_shard_set(drill, run)
    damage(shards / SHARD)
    started = drill.start(run, f"data.shards={shards}", processes=processes)
    message = drill.expect_error(started, SHARD, word, status=2 if processes == 1 else None)
    (shards / SHARD).write_bytes((drill.folder / "set" / SHARD).read_bytes())
    drill.complete(run, f"data.shards={shards}", processes=processes)
    return message


def swap_shard(path: Path) -> None:
    """Replace a shard by a copy of another one."""
    path.write_bytes(path.with_name(OTHER_SHARD).read_bytes())


def skip_damage(drill: Drill, run: Path, damage: Damage, count: int, processes: int = 1) -> str:
    """Damage a shard under data.on_error=skip: broken images are replaced, reported and counted.

    Args:
        drill, run: as of each fault.
        damage: is applied to the shard.
        count: number of images that are broken then.
        processes: number of processes.
    """
    shards = copy_shard_set(drill, run)
    damage(shards / SHARD)
    output = drill.complete(run, f"data.shards={shards}", "data.on_error=skip", processes=processes)
    if "warning: skipped" not in output:
        raise DrillError("no warning was printed")
    if PICKLE_TRACE.exists():
        raise DrillError("a pickle was loaded")
    epochs = STEPS * BATCH_SIZE / IMAGES
    replaced = sum(numbers.count(-1) for numbers in images_by_step(run).values())
    if replaced != count * epochs:
        raise DrillError(f"{replaced} images replaced where {count} per epoch are broken")
    logged = [
        json.loads(line)["data/substituted"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    if round(np.mean(logged) * STEPS * BATCH_SIZE) != replaced:
        raise DrillError("data/substituted does not count them")
    return f"{count} of {IMAGES} images replaced in each of {epochs:.0f} epochs, counted"


def change_members(change: Callable[[Members], None]) -> Damage:
    """Return a damage that changes members of a tar and updates its checksum, so that only decoding fails."""

    def damage(path: Path) -> None:
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        change(members)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        manifest = json.loads((path.parent / "manifest.json").read_text())
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["shards"][int(path.stem)] |= {"sha256": digest, "bytes": len(content)}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    return damage


def garble_two_images(members: Members) -> None:
    for name in list(members)[2:4]:
        members[name] = b"no picture"


def resize_image(members: Members) -> None:
    members[list(members)[5]] = encode_png(np.zeros((1, 9, 9), np.uint8))


def colour_image(members: Members) -> None:
    members[list(members)[5]] = encode_png(np.zeros((3, 8, 8), np.uint8))


def replace_image(members: Members, suffix: str, content: bytes) -> None:
    """Replace an image by a member with another suffix, at the same place in the tar."""
    old, items = list(members)[5], list(members.items())
    members.clear()
    for name, image in items:
        members[name.replace(".png", suffix) if name == old else name] = content if name == old else image


def remove_image(members: Members) -> None:
    replace_image(members, ".json", b"{}")


def pickle_image(members: Members) -> None:
    replace_image(members, ".pyd", f"cos\nsystem\n(S'touch {PICKLE_TRACE}'\ntR.".encode())


def use_pipe_url(drill: Drill, run: Path) -> str:
    """Write a command as a URL into the manifest: it is refused and not executed."""
    shards, trace = copy_shard_set(drill, run), run.with_name(run.name + ".ran")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][3]["url"] = f"pipe:touch {trace}"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    message = drill.expect_error(drill.start(run, f"data.shards={shards}"), "only files")
    if trace.exists():
        raise DrillError("the command was executed")
    drill.complete(run)
    return message


def faults() -> list[Fault]:
    """Return the faults of a shard set."""

    def shard(damage: Damage, word: str, processes: int = 1) -> Callable[[Drill, Path], str]:
        return partial(damage_shard, damage=damage, word=word, processes=processes)

    def skip(damage: Damage, count: int, processes: int = 1) -> Callable[[Drill, Path], str]:
        return partial(skip_damage, damage=damage, count=count, processes=processes)

    size = IMAGES // 8  # of a shard
    cut, flip = truncate_file, partial(flip_bit, position=700)
    return [
        Fault("shard-cut", "a shard truncated", shard(cut, "bytes")),
        Fault("shard-cut-two", "the same, two processes", shard(cut, "bytes", 2), 2),
        Fault("shard-flip", "a bit of a shard flipped", shard(flip, "SHA-256")),
        Fault("shard-missing", "a shard missing", shard(Path.unlink, "missing")),
        Fault("shard-swapped", "a shard replaced by a copy of another", shard(swap_shard, "SHA-256")),
        Fault("shard-missing-skip", "a shard missing, skipped", skip(Path.unlink, size), 1, False),
        Fault(
            "shard-cut-skip-two",
            "a shard truncated, skipped, two processes",
            skip(cut, size, 2),
            2,
            False,
        ),
        Fault(
            "image-garbled-skip",
            "two images that do not decode",
            skip(change_members(garble_two_images), 2),
            1,
            False,
        ),
        Fault("image-size-skip", "an image of another size", skip(change_members(resize_image), 1), 1, False),
        Fault("image-mode-skip", "an image in colour", skip(change_members(colour_image), 1, 2), 2, False),
        Fault(
            "image-missing-skip", "a sample without an image", skip(change_members(remove_image), 1), 1, False
        ),
        Fault("pickle", "a sample that is a pickle", skip(change_members(pickle_image), 1), 1, False),
        Fault("pipe", "a manifest with a command as a URL", use_pipe_url),
    ]
