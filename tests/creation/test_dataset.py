"""Data sets of torchvision and of the library datasets become shard sets through one Python function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.creation import write
from infogan_dist.creation.dataset import dataset_source
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import make_shards
from tests.conftest import images_source, number_of

# From Python 3.12 on, a fork beside other threads, such as those of torch, is reported.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
PIXELS = np.stack([images_source(20, (3, 8, 8)).read(i)[0] for i in range(20)])
LABELS = [i % 3 for i in range(20)]
NAMES = ["a", "b", "c"]


class Pairs(Sequence[Any]):
    """Samples in memory, as of a data set of torchvision."""

    def __init__(self, samples: list[Any], classes: list[str] | None = None):
        self.samples = samples
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.transpose(1, 2, 0))


# The same image in every form in which a data set may return it.
FORMS = {
    "PIL": picture,
    "HWC": lambda image: image.transpose(1, 2, 0),
    "CHW": lambda image: image,
    "tensor": torch.from_numpy,
    "ToTensor": lambda image: torch.from_numpy(image).float().div(255),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["pair", "mapping"])
def test_a_data_set_becomes_a_shard_set(tmp_path: Path, form: str, kind: str):
    images = [FORMS[form](image) for image in PIXELS]
    labels = [torch.tensor(k) if form == "tensor" else k for k in LABELS]
    samples: list[Any] = list(zip(images, labels, strict=True))
    if kind == "mapping":
        samples = [{"img": image, "fine": label, "id": 1} for image, label in samples]
    manifest = make_shards(Pairs(samples, NAMES), tmp_path, name="mine", image="img", label="fine", shards=2)
    assert (manifest.name, manifest.label_names) == ("mine", NAMES)
    assert load_manifest(str(tmp_path)) == manifest
    for shard in (read_shard(manifest, 0), read_shard(manifest, 1)):
        for image, label in zip(shard.images, shard.labels, strict=True):
            i = number_of(image)
            assert np.array_equal(image, PIXELS[i])
            assert label == LABELS[i]


def test_a_second_call_accepts_the_same_data_set_only(tmp_path: Path):
    samples = [(image, label) for image, label in zip(PIXELS, LABELS, strict=True)]
    first = make_shards(Pairs(samples, NAMES), tmp_path, shards=2)
    assert make_shards(Pairs(samples, NAMES), tmp_path, shards=2) == first
    with pytest.raises(DataError, match="images: 20 -> 19"):
        make_shards(Pairs(samples[1:], NAMES), tmp_path, shards=2)


def test_a_source_is_written_as_it_is(tmp_path: Path):
    assert make_shards(images_source(16), str(tmp_path), shards=1).name == "images"


def test_labels_and_names_may_be_missing():
    images = list(PIXELS)
    assert dataset_source(Pairs(images)).label_names == []
    assert dataset_source(Pairs([(image,) for image in images])).read(3)[1] == -1
    numbered = dataset_source(Pairs([(image, 2 * i) for i, image in enumerate(images[:3])]))
    assert (numbered.name, numbered.label_names) == ("pairs", ["0", "1", "2", "3", "4"])


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_without_a_class_is_refused(label: int):
    source = dataset_source(Pairs([(PIXELS[0], label)], NAMES))
    with pytest.raises(DataError, match=f"pairs, sample 0: its label {label} is none of 3 classes"):
        source.read(0)


def test_a_data_set_that_uses_torch_is_read_by_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Noise(Sequence[Any]):
        """Images large enough that torch divides its operations among threads."""

        classes = ("a", "b")

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: Any) -> Any:
            return torch.full((3, 256, 256), index).float().div(255), index % 2

    monkeypatch.setattr(write, "usable_processes", lambda seconds: 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Noise()[0]  # starts the threads of this process
        manifest = make_shards(Noise(), tmp_path, shards=1)
    finally:
        torch.set_num_threads(threads)
    assert sorted(read_shard(manifest, 0).images[:, 0, 0, 0]) == list(range(6))


def test_pil_images_are_fitted():
    source = dataset_source(Pairs([picture(image) for image in PIXELS]), shape=(1, 4, 5))
    assert source.read(0)[0].shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "pairs: contains no samples"),
        ([{"picture": 1}], "sample 0: has no key image; choose among picture"),
        ([(PIXELS[0], "cat")], "sample 0: its label 'cat' is no integer"),
        ([PIXELS[0] * 1.0], r"sample 0: values from \d\.0 to \d+\.0; leave the scaling out"),
        ([PIXELS[0] - 0.5], "sample 0: values from -0.5"),
        ([PIXELS[0, :2]], r"sample 0: images of type uint8 and shape \[1, 2, 8, 8\]"),
        ([PIXELS[0].astype(int)], "sample 0: images of type int64"),
        ([Image.new("F", (8, 8))], "sample 0: its pixels are floating-point numbers"),
        ([PIXELS[0], PIXELS[1, :, :7]], r"sample 1: shape \[3, 7, 8\]"),
    ],
)
def test_wrong_samples_are_named(samples: list[Any], message: str):

    def read_all() -> None:
        source = dataset_source(Pairs(samples))
        for i in range(source.count):
            source.read(i)

    with pytest.raises(DataError, match=message):
        read_all()


# The libraries are not among the package's own, and their warnings do not concern it.
@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_torchvision(tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    for name in NAMES:
        (tmp_path / "in" / name).mkdir(parents=True)
    for i, image in enumerate(PIXELS):
        picture(image).save(tmp_path / "in" / NAMES[LABELS[i]] / f"{i}.png")
    dataset = torchvision.datasets.ImageFolder(tmp_path / "in")
    manifest = make_shards(dataset, tmp_path / "set", shards=1)
    shard = read_shard(manifest, 0)
    assert manifest.label_names == NAMES
    assert [LABELS[number_of(image)] for image in shard.images] == shard.labels.tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_hugging_face_library(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    columns = {"image": [picture(image) for image in PIXELS], "label": LABELS}
    manifest = make_shards(datasets.Dataset.from_dict(columns, features), tmp_path, shards=1)
    shard = read_shard(manifest, 0)
    assert (manifest.name, manifest.label_names) == ("dataset", NAMES)
    assert [LABELS[number_of(image)] for image in shard.images] == shard.labels.tolist()
