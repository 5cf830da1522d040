"""The files that users bring: what each is, its licence, where to get it, where to put it, and whether it is intact.

Nothing here downloads. Their licences do not allow us to ship these files, and some ask for a registration.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pam_aug.errors import ConfigError

__all__ = ["WEIGHTS", "State", "WeightFile", "WeightReport", "file_sha256", "inspect_weights", "weights_dir"]

State = Literal["missing", "intact", "unchecked", "differs"]
"""What is known of a file: not there; of the published hash; there, with no published hash to hold it against; other
bytes than the published ones."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file that the user supplies. `size_bytes` -1 and `sha256` "" mean that neither is known.

    `folder` names where it belongs: "weights" (`weights_dir`) or "mano" (`$MANO_DIR`, else the same folder's mano/).
    """

    name: str
    file: str
    what: str
    needed_by: str
    licence: str
    get: str
    folder: Literal["weights", "mano"]
    size_bytes: int = -1
    sha256: str = ""

    @property
    def path(self) -> Path:
        """Where this library looks for it."""
        mano = os.environ.get("MANO_DIR")
        if self.folder == "mano":
            return (Path(mano) if mano else weights_dir() / "mano") / self.file
        return weights_dir() / self.file

    def instruction(self, path: Path | None = None) -> str:
        """One line for a missing file: what, where to get it, where to put it, under which licence."""
        size = f", {self.size_bytes / 1e6:,.1f} MB" if self.size_bytes >= 0 else ""
        return f"{path or self.path}: {self.what}{size}. {self.get}. Licence: {self.licence}."


_MANO_GET = "Register at https://mano.is.tue.mpg.de and download 'Models & Code' (mano_v1_2.zip, folder models/)"
_MANO_LICENCE = "MANO (Max Planck): non-commercial research, registration, no redistribution"

WEIGHTS: Final = (
    WeightFile(
        name="hamer",
        file="hamer.ckpt",
        what="HaMeR's published checkpoint, with MANO's right hand inside",
        needed_by="the estimator `hamer`",
        licence=f"MIT for code and weights; the MANO arrays inside: {_MANO_LICENCE}",
        get="Download hamer.ckpt from https://huggingface.co/spaces/geopavlakos/HaMeR (that file alone), or "
        "hamer_demo_data.tar.gz (5.8 GB) from https://www.cs.utexas.edu/~pavlakos/hamer/data, which holds it",
        folder="weights",
        size_bytes=2_689_536_166,
        sha256="e5cc06f294d88a92dee24e603480aab04de532b49f0e08200804ee7d90e16f53",
    ),
    WeightFile(
        name="mano-right",
        file="MANO_RIGHT.pkl",
        what="MANO's right hand, version 1.2",
        needed_by="labels relative to MANO's mean pose, MANO meshes, `hamer` on a checkpoint without MANO",
        licence=_MANO_LICENCE,
        get=_MANO_GET,
        folder="mano",
        size_bytes=3_821_356,
        sha256="45d60aa3b27ef9107a7afd4e00808f307fd91111e1cfa35afd5c4a62de264767",
    ),
    WeightFile(
        name="mano-left",
        file="MANO_LEFT.pkl",
        what="MANO's left hand, version 1.2",
        needed_by="labels of left hands relative to MANO's mean pose, MANO meshes",
        licence=_MANO_LICENCE,
        get=_MANO_GET,
        folder="mano",
    ),
    WeightFile(
        name="simplehand-fastvit",
        file="epoch_200_rerun1",
        what="SimpleHand's released weights (FastViT-MA36, trained on FreiHAND)",
        needed_by="the estimator `simplehand-fastvit`, together with mano-right and timm",
        licence="MIT (code); trained on FreiHAND (research only) from Apple's FastViT weights (own licence)",
        get="Follow the link to the authors' Google Drive on https://github.com/patienceFromZhou/simpleHand",
        folder="weights",
    ),
)


def weights_dir() -> Path:
    """The folder of weight files: `$PAM_AUG_WEIGHTS`, else `~/.cache/pam_aug/weights`."""
    return Path(os.environ.get("PAM_AUG_WEIGHTS") or Path.home() / ".cache" / "pam_aug" / "weights")


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class WeightReport:
    """A file's entry, where it was looked for, and what was found."""

    weight: WeightFile
    path: str
    state: State
    found: str  # what differs; "" where nothing does

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self.weight), "path": self.path, "state": self.state, "found": self.found}

    def as_text(self) -> str:
        """A paragraph for people."""
        weight = self.weight
        size = f"{weight.size_bytes:,} bytes" if weight.size_bytes >= 0 else "size not published"
        state = {
            "missing": "MISSING",
            "intact": "there, sha256 as published",
            "unchecked": "there; no published sha256 to check it against",
            "differs": f"DIFFERS from the published file: {self.found}",
        }[self.state]
        return "\n".join(
            (
                f"{weight.name}: {state}",
                f"  what      {weight.what} ({size})",
                f"  for       {weight.needed_by}",
                f"  licence   {weight.licence}",
                f"  get       {weight.get}",
                f"  put       {self.path}",
                f"  sha256    {weight.sha256 or 'not published'}",
            )
        )


def inspect_weights(names: Iterable[str] = ()) -> list[WeightReport]:
    """Look at the files of `names` (none: all) where they belong, hashing those that are there; nothing is written.

    A wrong size is reported without hashing. Raises ConfigError for an unknown name.
    """
    known = {weight.name: weight for weight in WEIGHTS}
    chosen = list(names) or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no weight file of that name; there are {', '.join(known)}")
    return [_inspect(known[name]) for name in chosen]


def _inspect(weight: WeightFile) -> WeightReport:
    path = weight.path
    if not path.is_file():
        return WeightReport(weight, str(path), "missing", "")
    size = path.stat().st_size
    if weight.size_bytes >= 0 and size != weight.size_bytes:
        return WeightReport(weight, str(path), "differs", f"{size:,} bytes instead of {weight.size_bytes:,}")
    if not weight.sha256:
        return WeightReport(weight, str(path), "unchecked", "")
    digest = file_sha256(path)
    if digest != weight.sha256:
        return WeightReport(weight, str(path), "differs", f"sha256 {digest}")
    return WeightReport(weight, str(path), "intact", "")
