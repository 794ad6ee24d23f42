"""Damages tars and images at random, reads them, and prints what became of them as JSON.

`python -m tests.rigs.damaged_data tars|images COUNT SEED FOLDER`
"""

import gzip
import io
import json
import re
import sys
import tarfile
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from infogan_dist.creation.folder import FORMATS, open_folder
from infogan_dist.creation.index import index_tars
from infogan_dist.creation.tar_index import TarIndex, TarOptions
from infogan_dist.data.images import read_image
from infogan_dist.data.shards import read_shard
from infogan_dist.errors import DataError
from tests.data.test_tars import tar_of

SAMPLES, GROUP = 6, 20
Rng = np.random.Generator


def damage(content: bytes, rng: Rng) -> bytes:
    """Return a file with one kind of damage; no whole members of a tar are removed, which leaves no trace."""
    data, size = bytearray(content), len(content)
    first, last = sorted(int(i) for i in rng.integers(0, size, 2))
    kind = int(rng.integers(8))
    if kind == 0:  # single bytes
        for i in rng.integers(0, size, rng.integers(1, 9)):
            data[i] ^= int(rng.integers(1, 256))
    elif kind == 1:  # single bits near the start, where headers are
        for i in rng.integers(0, min(size, 600), rng.integers(1, 4)):
            data[i] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data = data[:first]
    elif kind == 3:
        data = data[: first // 512 * 512]
    elif kind == 4:  # random bytes over a part
        data[first : first + 700] = rng.bytes(len(data[first : first + 700]))
    elif kind == 5:  # zeros over a part that does not reach the end
        data[first : min(last, first + 2000)] = bytes(min(last, first + 2000) - first)
    elif kind == 6:  # a part is missing
        del data[first : first + int(rng.integers(1, 512))]
    else:  # a part, or everything, comes twice
        data = data + data if rng.integers(2) else data[:last] + data[first:]
    return bytes(data)


def some_image(rng: Rng, kind: str) -> bytes:
    """An image file of random size, mode and pixels."""
    height, width = (int(n) for n in rng.integers(4, 40, 2))
    modes = {
        "png": ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"],
        "gif": ["L", "P"],
        "tiff": ["L", "RGB", "I;16"],
    }
    mode = str(rng.choice(modes.get(kind, ["L", "RGB"])))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
    options: dict[str, object] = {}
    if kind in ("jpeg", "png", "webp"):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = int(rng.integers(1, 9)), "camera"
        options["exif"] = exif
    if kind in ("gif", "tiff") and rng.integers(2):
        options |= {"save_all": True, "append_images": [image]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def some_tar(rng: Rng) -> bytes:
    """A tar of `SAMPLES` samples in one of the formats, sometimes with long names, links or compression."""
    prefix = str(rng.choice(["", "d/", "d" * 60 + "/" + "e" * 60 + "/"]))
    members: list[tuple[str, bytes | str | tuple[bytes, str]]] = []
    for i in range(SAMPLES):
        image: bytes | tuple[bytes, str] = some_image(rng, "png")
        if i == 3 and rng.integers(2):
            image = (tarfile.LNKTYPE, f"{prefix}1.png")
        members += [(f"{prefix}{i}.cls", b"%d" % i), (f"{prefix}{i}.png", image)]
    content = tar_of(*members, format=int(rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])))
    return gzip.compress(content) if rng.integers(4) == 0 else content


def read_tar(rng: Rng, folder: Path) -> str:
    """Damage a tar, read it with and without `skip_broken`, and return what became of it."""
    path = folder / "x.tar"
    path.write_bytes(damage(some_tar(rng), rng))
    options = TarOptions((1, 8, 8))
    outcome = "whole"
    try:
        manifest = index_tars([str(path)], fresh(folder / "strict"), "x", options)
        assert manifest.samples == SAMPLES, f"{manifest.samples} samples without an error"
        assert len(read_shard(manifest, 0).images) == SAMPLES
    except DataError as error:
        outcome = refusal(error)
    try:
        index = TarIndex("x", skipping := TarOptions((1, 8, 8), skip_broken=True))
        index.add(str(path))
        manifest = index_tars([str(path)], fresh(folder / "skip"), "x", skipping)
    except DataError:
        assert outcome == "refused"
        return outcome
    (tar,) = index.tars
    assert manifest.samples + tar.left_out >= SAMPLES, f"{manifest.samples} samples, {tar.left_out} left out"
    assert read_shard(manifest, 0, skip=True).substituted.sum() == tar.broken
    return outcome if outcome == "whole" else "counted"


def refusal(error: DataError) -> str:
    """Return the outcome of a file that is refused, in one line."""
    assert "\n" not in str(error), error
    return "refused"


def fresh(folder: Path) -> Path:
    """Return the folder without a manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


def read_group(rng: Rng, folder: Path) -> Counter[str]:
    """Damage `GROUP` images, read each, and all together from a tar and from a folder."""
    outcomes, readable = Counter(), {}
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for old in images.iterdir():
        old.unlink()
    for i in range(GROUP):
        kind = str(rng.choice(["png", "jpeg", "webp", "bmp", "gif", "tiff"]))
        content = damage(some_image(rng, kind), rng)
        path = images / f"{i:02d}.{kind}"
        path.write_bytes(content)
        try:
            assert read_image(path, path.name, FORMATS, (1, 8, 8)).shape == (1, 8, 8)
            readable[path.name] = True
            outcomes["whole"] += 1
        except DataError as error:
            readable[path.name] = False
            outcomes[refusal(error)] += 1
    (images / "intact.png").write_bytes(some_image(rng, "png"))
    files = open_folder(images, (1, 8, 8), None, skip_broken=True).files
    assert [p.name for p in files] == [*(name for name in sorted(readable) if readable[name]), "intact.png"]
    in_tar = sorted(p for p in images.iterdir() if p.suffix not in (".gif", ".tiff"))
    (folder / "x.tar").write_bytes(tar_of(*((p.name, p.read_bytes()) for p in in_tar)))
    options = TarOptions((1, 8, 8), skip_broken=True)
    manifest = index_tars([str(folder / "x.tar")], fresh(folder / "set"), "x", options)
    substituted = read_shard(manifest, 0, skip=True).substituted
    assert manifest.samples == len(in_tar)
    # A tar accepts fewer formats than a folder.
    broken = np.array([not readable.get(p.name, True) for p in in_tar])
    assert (substituted >= broken).all()
    return outcomes


def main(kind: str, count: int, seed: int, folder: Path) -> None:
    """Read `count` damaged files; number i depends on (seed, i) alone."""
    outcomes: Counter[str] = Counter()
    failures = []
    step = 1 if kind == "tars" else GROUP
    for i in range(0, count, step):
        rng = np.random.default_rng((seed, i))
        try:
            if kind == "tars":
                outcomes[read_tar(rng, folder)] += 1
            else:
                outcomes += read_group(rng, folder)
        except Exception:
            failures.append(f"seed ({seed}, {i}): {traceback.format_exc(limit=-2)}")
    # Unlike `ru_maxrss`, this does not include the memory of the process that started this one.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"outcomes": outcomes, "failures": failures, "peak_mib": int(peak) / 1024}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
