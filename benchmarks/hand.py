"""The MANO layer beside smplx 0.1.28, on the same model file, poses, machine and threads.

    python benchmarks/hand.py [--quick] [--json] [--threads N]

The model is the bundled open hand, written as the plain-numpy pickle that both read. smplx is no dependency of ours:
where it cannot be imported, it is installed into a virtual environment that is thrown away afterwards and that sees
this one's torch.
"""

import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from contextlib import redirect_stdout
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import parser, print_rows, row

from pam_aug.hand import HandAssets, HandLayer, load_mano, load_open_hand

SMPLX = "smplx==0.1.28"
_INSIDE = "PAM_AUG_BENCHMARK_VENV"


def rerun_with_smplx() -> int:
    """Run this script again where smplx can be imported."""
    if os.environ.get(_INSIDE):
        raise SystemExit(f"{SMPLX} was installed, yet cannot be imported. Install it by hand and run again.")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        # smplx imports nothing beyond numpy and torch for MANO, and those come from the environment that runs this.
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", SMPLX], check=True, stdout=sys.stderr)
        paths = [p for p in sys.path if p] + [str(Path(__file__).parents[1])]
        environment = {**os.environ, _INSIDE: "1", "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run([python, __file__, *sys.argv[1:]], env=environment, check=False).returncode


def write_model(assets: HandAssets, folder: Path) -> None:
    """`MANO_RIGHT.pkl` with the official fields, in plain numpy."""
    parents = assets.parents.astype(np.int64)
    fields = {
        "v_template": assets.v_template,
        "f": assets.f.astype(np.uint32),
        "shapedirs": assets.shapedirs,
        "posedirs": assets.posedirs,
        "J_regressor": assets.J_regressor,
        "weights": assets.weights,
        "kintree_table": np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(16)]),
        "hands_components": assets.hands_components,
        "hands_mean": assets.hands_mean,
    }
    (folder / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(fields, protocol=2))


def parameters(batch: int, layer: HandLayer) -> dict[str, torch.Tensor]:
    """Any orientation, poses of unit variance about the mean, a hand at arm's length."""
    rng = torch.Generator().manual_seed(0)
    return {
        "global_orient": torch.randn(batch, 3, generator=rng),
        "hand_pose": layer.pose_from_pca(torch.randn(batch, 45, generator=rng)),
        "betas": torch.randn(batch, 10, generator=rng),
        "transl": 0.1 * torch.randn(batch, 3, generator=rng) + torch.tensor([0.0, 0.0, 0.7]),
    }


def compare(ours: HandLayer, peer: Any, batch: int, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds per call of each, taken in turns, and the largest difference of a vertex or joint coordinate (metres)."""
    given = parameters(batch, ours)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        a, b = ours(**given), peer(**given)
        difference = max(float((a.verts - b.vertices).abs().max()), float((a.joints16 - b.joints).abs().max()))
        for _ in range(rounds):
            for model, times in zip((ours, peer), seconds, strict=True):
                start = time.perf_counter()
                model(**given)
                times.append(time.perf_counter() - start)
    return seconds[0], seconds[1], difference


def measure(quick: bool) -> list[dict[str, Any]]:
    import smplx

    with tempfile.TemporaryDirectory() as folder:
        write_model(load_open_hand("right"), Path(folder))
        ours = HandLayer(load_mano(folder, "right"))
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # smplx prints remarks while loading
            warnings.simplefilter("ignore")
            peer = smplx.MANO(folder, is_rhand=True, use_pca=False, flat_hand_mean=True, batch_size=1)
    rows, worst = [], 0.0
    for batch, rounds in ((1024, 9 if quick else 41), (30, 50 if quick else 300), (1, 100 if quick else 1000)):
        mine, theirs, difference = compare(ours, peer, batch, rounds)
        worst = max(worst, difference)
        name = "mano_forward_per_s" if batch == 1024 else f"mano_forward_per_s_batch_{batch}"
        rates = [batch / s for s in mine]
        rows.append(row(name, rates, "hands/s", SMPLX, batch / statistics.median(theirs)))
    rows.append(row("mano_max_abs_diff_m", worst, "m"))
    return rows


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=1, help="torch threads for both (default 1)")
    options = arguments.parse_args()
    if util.find_spec("smplx") is None:
        return rerun_with_smplx()
    torch.set_num_threads(options.threads)
    print_rows(measure(options.quick), options.json, ("pam_aug", "torch", "numpy", "smplx"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
