"""What a user gives a rollout in JSON: a grasp to begin with, a target for the object; checked before it is used."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pam_aug.errors import SourceError
from pam_aug.rollouts.simulate import GivenGrasp

__all__ = ["read_grasp", "read_target"]


def read_grasp(path: str) -> GivenGrasp:
    """A file with T_world_obj, T_world_wrist and hand_pose. Raises SourceError with what is wrong."""
    given = _read_json(path, ("T_world_obj", "T_world_wrist", "hand_pose"))
    pose = np.asarray(given.get("hand_pose", []), np.float64).ravel()
    if pose.shape != (45,) or not np.isfinite(pose).all():
        raise SourceError(f"{path}: hand_pose should be 45 finite numbers (absolute axis-angle, MANO's order)")
    return GivenGrasp(_matrix(path, given, "T_world_obj"), _matrix(path, given, "T_world_wrist"), pose)


def read_target(path: str) -> np.ndarray:
    """The T_world_obj of a file. Raises SourceError with what is wrong."""
    return _matrix(path, _read_json(path, ("T_world_obj",)), "T_world_obj")


def _read_json(path: str, known: Sequence[str]) -> dict[str, Any]:
    try:
        given = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not a readable JSON file ({error})", path=path) from error
    if not isinstance(given, dict):
        raise SourceError(f"{path}: should hold one JSON object", path=path)
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise SourceError(
            f"{path}: unknown key {name!r}; did you mean {near!r}? (known: {', '.join(known)})", path=path
        )
    return given


def _matrix(path: str, given: dict[str, Any], name: str) -> np.ndarray:
    try:
        T = np.asarray(given[name], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(f"{path}: {name} should be a 4x4 matrix in metres", path=path) from error
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise SourceError(f"{path}: {name} should be a finite 4x4 matrix in metres", path=path)
    R = T[:3, :3]
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-3 or np.linalg.det(R) < 0:
        raise SourceError(f"{path}: the upper left of {name} is no rotation", path=path)
    if np.abs(T[:3, 3]).max() > 5.0:
        raise SourceError(
            f"{path}: {name} is {np.abs(T[:3, 3]).max():.0f} m away; are its units millimetres?", path=path
        )
    return T
