"""The sample schema as Arrow types, for readers that would otherwise guess them.

Hugging Face `datasets` takes the types of a WebDataset from its first five samples. A list that is empty in all of them
(`objects` of images without any) becomes a list of nulls, and the first sample that fills it ends the reading. With the
types given, every shard is read:

    features = datasets.Features.from_arrow_schema(webdataset_arrow_schema())
    features["jpg"] = datasets.Image()
    datasets.load_dataset("webdataset", data_files={"train": "shards/*.tar"}, features=features)
"""

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from pam_aug.schema import Sample
from pam_aug.shards.images import Suffix

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["sample_arrow_type", "webdataset_arrow_schema"]


def sample_arrow_type() -> "pa.DataType":
    """The struct of a sample's JSON, its fields in the schema's order; numbers are float32, as they were written."""
    return _arrow_type(Sample)


def webdataset_arrow_schema(suffix: Suffix = "jpg", extras: tuple[str, ...] = ()) -> "pa.Schema":
    """What a plain WebDataset reader finds per sample: the image's bytes, the `json` struct, `extras`, key and URL.

    `suffix` is the images' format, `extras` those of "depth.png" and "seg.png" that the build has.
    """
    import pyarrow as pa

    columns: list[tuple[str, Any]] = [(suffix, pa.binary()), ("json", sample_arrow_type())]
    columns += [(name, pa.binary()) for name in sorted(extras)]
    return pa.schema([*columns, ("__key__", pa.string()), ("__url__", pa.string())])


def _arrow_type(hint: Any) -> "pa.DataType":
    import pyarrow as pa

    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return pa.struct(
            [
                (f.name, _array_type(f.metadata["array"]) if "array" in f.metadata else _arrow_type(hints[f.name]))
                for f in fields(hint)
            ]
        )
    if get_origin(hint) is tuple:
        return pa.list_(_arrow_type(get_args(hint)[0]))
    if get_origin(hint) is Literal:
        return pa.string()
    return {str: pa.string(), int: pa.int64(), float: pa.float32(), bool: pa.bool_()}[hint]


def _array_type(marker: Any) -> "pa.DataType":
    import pyarrow as pa

    kind = pa.bool_() if marker.dtype is np.bool_ else pa.float32()
    for _ in marker.shape:
        kind = pa.list_(kind)
    return kind
