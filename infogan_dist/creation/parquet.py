"""A source of Parquet files with a column of encoded images, as of the Hugging Face Hub."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infogan_dist.creation.folder import FORMATS, natural_key
from infogan_dist.creation.source import Source, numbered_names, require_shape
from infogan_dist.data.images import read_image
from infogan_dist.data.shards import NO_LABEL
from infogan_dist.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def parquet(
    path: Path,
    image: str,
    label: str | None,
    shape: tuple[int, int, int] | None,
    background: str | None,
    keep_encoding: bool = False,
) -> Source:
    """Return the images of a Parquet file, or of all in a folder. The encoded images must fit in memory.

    Args:
        path: of the file or folder.
        image: column of encoded images: binary, or with a field `bytes` as of the library datasets.
        label: column of integers or names; None: there are no labels.
        shape: (channels, height, width) to which images are fitted; None: all must have the same shape.
        background: colour under transparent pixels; None: transparency is ignored.
        keep_encoding: store JPEG files as they are, if their size and channels are those of the set.

    Raises:
        DataError: pyarrow is not installed, or files or columns are missing or damaged.
    """
    table = _read_table(path, image, label)
    images, where = table.column(0), f"{path}, {image}"

    def read_pixels(i: int) -> np.ndarray:
        content = images[i].as_py()
        if content is None:
            raise DataError(f"{where} {i}: no image; leave the row out")
        return read_image(io.BytesIO(content), f"{where} {i}", FORMATS, shape, background)

    labels, names = _labels(path, table, label) if label is not None else (None, [])
    first = read_pixels(0).shape

    def read(i: int) -> tuple[np.ndarray, int]:
        pixels = read_pixels(i)
        require_shape(pixels.shape, first, f"{where} {i}")
        return pixels, label_of(i)

    def label_of(i: int) -> int:
        return NO_LABEL if labels is None else int(labels[i])

    file_of = (lambda i: images[i].as_py()) if keep_encoding else None
    return Source(path.stem, table.num_rows, names, read, label_of=label_of, file_of=file_of)


def _read_table(path: Path, image: str, label: str | None) -> "pa.Table":
    """Return the table of both columns, of the image its bytes."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "parquet: the package pyarrow is not installed; run `pip install infogan_dist[parquet]`"
        ) from None
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"{path}: contains no Parquet files; check the folder")
    columns = [image] if label is None else [image, label]
    tables = []
    for file in paths:
        try:
            available = pq.read_schema(file).names
            missing = [name for name in columns if name not in available]
            if missing:
                raise DataError(
                    f"{file}: has no column {missing[0]}; choose among {', '.join(available)} with --image "
                    "and --label"
                )
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error}); replace it") from None
        tables.append(_with_bytes(table, image, file))
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        raise DataError(f"{path}: contains no rows; use other files")
    return table


def _with_bytes(table: "pa.Table", image: str, file: Path) -> "pa.Table":
    """Return the table with the images' bytes as its first column."""
    import pyarrow as pa

    column = table.column(image)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.flatten()[column.type.get_field_index("bytes")]
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"{file}: the column {image} is {column.type}, not the bytes of images; use another")
    return table.set_column(table.column_names.index(image), image, column.cast(pa.large_binary()))


def _labels(path: Path, table: "pa.Table", label: str) -> tuple[np.ndarray, list[str]]:
    """Return the labels, -1 where there is none, and the names of the classes."""
    values = table.column(label).to_pylist()
    if all(isinstance(value, str) for value in values if value is not None):
        names = sorted({value for value in values if value is not None}, key=natural_key)
        numbers: dict[Any, int] = {name: i for i, name in enumerate(names)}
    elif all(isinstance(value, int) for value in values if value is not None):
        names = _class_names(table, label)
        numbers = {value: value for value in values}
    else:
        raise DataError(f"{path}: the column {label} has neither integers nor names; choose another")
    labels = np.array([NO_LABEL if value is None else numbers[value] for value in values])
    names = names or numbered_names(f"{path}, {label}", labels)
    if not NO_LABEL <= labels.min() <= labels.max() < max(len(names), 1):
        raise DataError(
            f"{path}: labels from {labels.min()} to {labels.max()} of {len(names)} classes; correct them"
        )
    return labels, names


def _class_names(table: "pa.Table", label: str) -> list[str]:
    """Return the names of the classes, which the library datasets writes into the file; empty if unknown."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return list(json.loads(metadata)["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return []
