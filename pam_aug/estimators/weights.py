"""The files that users bring: what each is, its licence, where to get it, where to put it, and whether it is intact.

Nothing here downloads. Their licences do not allow us to ship these files, and some ask for a registration.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pam_aug.checkpoint import weights_dir
from pam_aug.errors import AssetMissing, ConfigError, SchemaError, UnsafeInput

__all__ = ["WEIGHTS", "State", "WeightFile", "WeightReport", "file_sha256", "inspect_weights", "weights_dir"]

State = Literal["missing", "intact", "fits", "unchecked", "differs"]
"""What is known of a file: not there; of the published hash; of the published names and shapes, with no published hash;
there, with nothing to hold it against; other bytes, names or shapes than the published ones."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file or folder that the user supplies. `size_bytes` -1 and `sha256` "" mean that neither is known; `size_note`
    then says about how much it is. `structure` names the check of its names and shapes, "" where there is none.

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
    size_note: str = ""
    structure: str = ""

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
        size = size or (f", {self.size_note}" if self.size_note else "")
        return f"{path or self.path}: {self.what}{size}. {self.get}. Licence: {self.licence}."


_MANO_GET = "Register at https://mano.is.tue.mpg.de and download 'Models & Code' (mano_v1_2.zip, folder models/)"
_MANO_LICENCE = "MANO (Max Planck): non-commercial research, registration, no redistribution"
_FLUX_GET = (
    "Accept the licence on https://huggingface.co/black-forest-labs/FLUX.1-dev and download the repository's folders "
    "transformer, vae, text_encoder, text_encoder_2, tokenizer and tokenizer_2"
)
_FLUX_LICENCE = "FLUX.1 [dev] Non-Commercial License (Black Forest Labs), gated"

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
    WeightFile(
        name="flux",
        file="FLUX.1-dev",
        what="FLUX.1-dev as a folder of diffusers, or its files flux1-dev.safetensors and ae.safetensors beside both "
        "text encoders and tokenizers",
        needed_by="the generator `flux`, together with pam-controlnet (generate.options.base names another place)",
        licence=_FLUX_LICENCE,
        get=f"{_FLUX_GET} (flux1-dev.safetensors and ae.safetensors there repeat the first two)",
        folder="weights",
        size_note="about 34 GB in bfloat16: transformer 23.8, T5 9.5, CLIP 0.25, VAE 0.17",
        structure="flux",
    ),
    WeightFile(
        name="flux-t5",
        file="FLUX.1-dev/text_encoder_2",
        what="T5 v1.1 XXL's encoder, 512 tokens (a part of `flux`; its tokenizer lies beside it in tokenizer_2)",
        needed_by="the generator `flux` beside the original single files",
        licence="Apache-2.0 (Google's T5 v1.1); XLabs' copy: see its page",
        get="It comes with FLUX.1-dev's folder. PAM's code loads the same encoder from "
        "https://huggingface.co/xlabs-ai/xflux_text_encoders",
        folder="weights",
        size_note="about 9.5 GB in bfloat16",
        structure="flux-t5",
    ),
    WeightFile(
        name="flux-clip",
        file="FLUX.1-dev/text_encoder",
        what="CLIP ViT-L/14's text encoder, 77 tokens (a part of `flux`; its tokenizer lies beside it in tokenizer)",
        needed_by="the generator `flux` beside the original single files",
        licence="MIT (OpenAI's CLIP)",
        get="It comes with FLUX.1-dev's folder. PAM's code loads it from "
        "https://huggingface.co/openai/clip-vit-large-patch14",
        folder="weights",
        size_note="about 0.25 GB in bfloat16",
        structure="flux-clip",
    ),
    WeightFile(
        name="pam-controlnet",
        file="controlnet.bin",
        what="PAM's two ControlNets for FLUX.1-dev (stage II): 172 tensors, 1,487,615,424 numbers",
        needed_by="the generator `flux` (generate.options.control names another place)",
        licence=f"PAM's repository is Apache-2.0; the weights started from FLUX.1-dev's, whose licence covers "
        f"derivatives: {_FLUX_LICENCE}",
        get="Download controlnet.bin from the authors' models, https://huggingface.co/GasaiYU/PAM",
        folder="weights",
        size_note="about 3.0 GB in bfloat16, twice that in float32",
        structure="pam-controlnet",
    ),
)


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
        size = f"{weight.size_bytes:,} bytes" if weight.size_bytes >= 0 else weight.size_note or "size not published"
        state = {
            "missing": "MISSING",
            "intact": "there, sha256 as published",
            "fits": "there, names and shapes as published; no published sha256 to check its values",
            "unchecked": "there; no published sha256 to check it against" + (f" ({self.found})" if self.found else ""),
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
    if not (path.is_dir() if weight.structure.startswith("flux") else path.is_file()):
        return WeightReport(weight, str(path), "missing", "")
    if weight.structure:
        return _inspect_structure(weight, path)
    size = path.stat().st_size
    if weight.size_bytes >= 0 and size != weight.size_bytes:
        return WeightReport(weight, str(path), "differs", f"{size:,} bytes instead of {weight.size_bytes:,}")
    if not weight.sha256:
        return WeightReport(weight, str(path), "unchecked", "")
    digest = file_sha256(path)
    if digest != weight.sha256:
        return WeightReport(weight, str(path), "differs", f"sha256 {digest}")
    return WeightReport(weight, str(path), "intact", "")


def _inspect_structure(weight: WeightFile, path: Path) -> WeightReport:
    try:
        from pam_aug.generate.flux import structure
    except ModuleNotFoundError as error:
        return WeightReport(weight, str(path), "unchecked", f"pip install 'pam_aug[diffusion]' to check it: {error}")
    checks = {
        "flux": structure.check_flux,
        "flux-t5": structure.check_t5,
        "flux-clip": structure.check_clip,
        "pam-controlnet": structure.check_control,
    }
    try:
        checks[weight.structure](path)
    except (AssetMissing, SchemaError, UnsafeInput) as error:
        return WeightReport(weight, str(path), "differs", str(error))
    return WeightReport(weight, str(path), "fits", "")
