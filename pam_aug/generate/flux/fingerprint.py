"""Names for the content of the files that FLUX's images depend on: what a build and a cache are recognised by."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pam_aug.errors import ConfigError

__all__ = ["FLUX_FILES", "TEXT_FILES", "VAE_FILES", "captions_digest", "fingerprint"]

VAE_FILES = ("vae", "ae.safetensors")
TEXT_FILES = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
FLUX_FILES = ("transformer", "flux1-dev.safetensors", *VAE_FILES, *TEXT_FILES)
_EDGE_BYTES = 1 << 20


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """A name for models on disk: sha256 over each file's path, size, first and last MiB. Ten gigabytes of weights are
    not read whole for it; files of equal sizes and ends are taken for equal."""
    whole = hashlib.sha256()
    roots = (folder / name for name in names)
    for path in sorted(p for root in roots for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as file:
            ends = file.read(_EDGE_BYTES)
            file.seek(max(size - _EDGE_BYTES, 0))
            ends += file.read(_EDGE_BYTES)
        whole.update(f"{path.relative_to(folder)}\0{size}\0".encode() + ends)
    return whole.hexdigest()


def captions_digest(path: Path) -> str:
    """sha256 of a file, or of a folder's descriptions.json files by name."""
    files = sorted(path.rglob("descriptions.json")) if path.is_dir() else [path]
    whole = hashlib.sha256()
    try:
        for file in files:
            whole.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: the captions cannot be read ({error.strerror})", path=str(path)) from error
    return whole.hexdigest()
