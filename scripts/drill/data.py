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

from drill.bench import IMAGES, STEPS, Drill, Fault, NotSurvived, seen_by
from drill.disks import cut, flip
from infogan_dist.data.images import encode_png


def damaged_shard(
    drill: Drill, run: Path, damage: Callable[[Path], object], word: str, processes: int = 1
) -> str:
    """A shard is damaged: the run names it; restored, the run goes on."""
    shards = run.with_name(run.name + ".set")
    subprocess.run(["cp", "-a", drill.folder / "set", shards], check=True)
    damage(shards / "000003.tar")
    status = 2 if processes == 1 else None
    said = drill.refused(
        drill.start(run, f"data.shards={shards}", processes=processes), "000003.tar", word, status=status
    )
    (shards / "000003.tar").write_bytes((drill.folder / "set" / "000003.tar").read_bytes())
    drill.finish(run, f"data.shards={shards}", processes=processes)
    return said


def swapped(path: Path) -> None:
    path.write_bytes(path.with_name("000004.tar").read_bytes())


def skipped(drill: Drill, run: Path, damage: Callable[[Path], object], count: int, processes: int = 1) -> str:
    """Under data.on_error=skip: what is broken is replaced, said and counted, and the run completes."""
    shards = run.with_name(run.name + ".set")
    subprocess.run(["cp", "-a", drill.folder / "set", shards], check=True)
    damage(shards / "000003.tar")
    options = (f"data.shards={shards}", "data.on_error=skip")
    said = drill.finish(run, *options, processes=processes)
    if "warning: skipped" not in said:
        raise NotSurvived("nothing was said")
    passes = STEPS * 32 / IMAGES
    replaced = sum(numbers.count(-1) for numbers in seen_by(run).values())
    if Path("pickle-ran").exists():
        raise NotSurvived("a pickle was read")
    if replaced != count * passes:
        raise NotSurvived(f"{replaced} images replaced where {count} a pass are broken")
    logged = [
        json.loads(line)["data/substituted"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    if round(np.mean(logged) * STEPS * 32) != replaced:
        raise NotSurvived("data/substituted does not count them")
    return f"{count} of {IMAGES} images replaced in each of {passes:.0f} passes, counted"


def rewritten(change: Callable[[dict[str, bytes]], None]) -> Callable[[Path], object]:
    """Damages members of a tar and renews its entry in the manifest: only decoding can tell."""

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
        manifest["shards"][3] |= {"sha256": digest, "bytes": len(content)}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    return damage


def garbled(members: dict[str, bytes]) -> None:
    for name in list(members)[2:4]:
        members[name] = b"no picture"


def other_size(members: dict[str, bytes]) -> None:
    members[list(members)[5]] = encode_png(np.zeros((1, 9, 9), np.uint8))


def other_mode(members: dict[str, bytes]) -> None:
    members[list(members)[5]] = encode_png(np.zeros((3, 8, 8), np.uint8))


def renamed(members: dict[str, bytes], ending: str, content: bytes) -> None:
    """Another member in the place of a picture."""
    old, items = list(members)[5], list(members.items())
    members.clear()
    for name, picture in items:
        members[name.replace(".png", ending) if name == old else name] = content if name == old else picture


def without_picture(members: dict[str, bytes]) -> None:
    renamed(members, ".json", b"{}")


def pickled(members: dict[str, bytes]) -> None:
    renamed(members, ".pyd", b"cos\nsystem\n(S'touch pickle-ran'\ntR.")


def piped(drill: Drill, run: Path) -> str:
    """A manifest that asks for a command: it is not run."""
    shards, ran = run.with_name(run.name + ".set"), run.with_name(run.name + ".ran")
    subprocess.run(["cp", "-a", drill.folder / "set", shards], check=True)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][3]["url"] = f"pipe:touch {ran}"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    said = drill.refused(drill.start(run, f"data.shards={shards}"), "only files")
    if ran.exists():
        raise NotSurvived("the command was run")
    drill.finish(run)
    return said


def faults() -> list[Fault]:
    """What may happen to a shard set."""

    def shard(
        damage: Callable[[Path], object], word: str, processes: int = 1
    ) -> Callable[[Drill, Path], str]:
        return partial(damaged_shard, damage=damage, word=word, processes=processes)

    def skip(
        damage: Callable[[Path], object], count: int, processes: int = 1
    ) -> Callable[[Drill, Path], str]:
        return partial(skipped, damage=damage, count=count, processes=processes)

    per_shard = IMAGES // 8
    return [
        Fault("shard-cut", "a shard cut short", shard(cut, "bytes")),
        Fault("shard-cut-two", "the same, two processes", shard(cut, "bytes", 2), 2),
        Fault("shard-flip", "a bit of a shard flipped", shard(partial(flip, at=700), "SHA-256")),
        Fault("shard-missing", "a shard missing", shard(Path.unlink, "missing")),
        Fault("shard-swapped", "a shard that is another's copy", shard(swapped, "SHA-256")),
        Fault("shard-missing-skip", "a shard missing, skipped", skip(Path.unlink, per_shard), 1, False),
        Fault("shard-cut-skip-two", "a shard cut, skipped, two processes", skip(cut, per_shard, 2), 2, False),
        Fault("image-garbled-skip", "two images that do not decode", skip(rewritten(garbled), 2), 1, False),
        Fault("image-size-skip", "an image of another size", skip(rewritten(other_size), 1), 1, False),
        Fault("image-mode-skip", "an image in colour", skip(rewritten(other_mode), 1, 2), 2, False),
        Fault(
            "image-missing-skip", "a sample without an image", skip(rewritten(without_picture), 1), 1, False
        ),
        Fault("pickle", "a sample that is a pickle", skip(rewritten(pickled), 1), 1, False),
        Fault("pipe", "a manifest that asks for a command", piped),
    ]
