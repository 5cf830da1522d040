"""Screening of inputs before any image is paid for: contact, depth, shared volume, stability; a row with a reason.

PAM's paper says that hands inside objects and hands that touch nothing spoil everything after them. What is refused and
why is decided here; `pam-aug screen` prints and stores the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from pam_aug.errors import ConfigError, SourceError
from pam_aug.hand import HandAssets
from pam_aug.rollouts.contact import Contact, hand_parts, measure_contact
from pam_aug.rollouts.convex_parts import MAX_FACES, check_mesh, convex_parts, too_fine
from pam_aug.rollouts.hand_bodies import hand_capsules, hand_hulls
from pam_aug.rollouts.object_masses import WATER_KG_M3, YCB_MASSES_KG
from pam_aug.rollouts.physics import intersection_volume_m3
from pam_aug.rollouts.scene import HandMesh, Mesh, ObjectMesh, Scene
from pam_aug.rollouts.stability import GRIP, PRESETS, ObjectModel, Stability, engine_version, preset_named

__all__ = ["NO_SIMULATION", "ScreenConfig", "ScreenRow", "Screener", "failed_row"]

NO_SIMULATION: Final = "none"
"""The preset that measures meshes only."""

_NEAR_M: Final = 0.05  # an object whose box is farther than this from the hand's is not the one that is held
_MODELS: Final = 64  # compiled objects kept per process


@dataclass(frozen=True)
class ScreenConfig:
    """What an input must pass; a limit of -1 is no limit.

    `preset` is "grip", "deepsimho" or "none" (no simulation). `masses_kg` names masses by object id; those of the YCB
    objects are known, and other objects weigh `density_kg_m3` times the volume of their convex parts.
    """

    preset: str = GRIP.name
    needs_contact: bool = True
    max_penetration_mm: float = 10.0
    max_volume_cm3: float = -1.0
    max_displacement_mm: float = 10.0
    density_kg_m3: float = WATER_KG_M3
    masses_kg: dict[str, float] = field(default_factory=dict)
    cache: str = ""  # folder of convex parts; "" is `convex_parts.parts_folder()`

    def check(self, where: str = "screen") -> None:
        """Raises ConfigError with what is wrong, AssetMissing where the preset needs MuJoCo and it is not there."""
        if self.preset != NO_SIMULATION:
            if self.preset not in PRESETS:
                raise ConfigError(
                    f"{where}.preset: {self.preset!r} is none of {', '.join((*PRESETS, NO_SIMULATION))}", field=where
                )
            engine_version()
        if self.density_kg_m3 <= 0 or any(mass <= 0 for mass in self.masses_kg.values()):
            raise ConfigError(f"{where}: densities and masses are above 0", field=where)


@dataclass(frozen=True, slots=True)
class ScreenRow:
    """One input's measures. -1 where something was not measured; `reason` is "" for what passes.

    `displacement_mm` is the largest of the `directions` that were simulated: the first that the object falls in is the
    last. `contacts` are the engine's own at the start, for comparison only.
    """

    key: str
    object_id: str
    kept: bool
    reason: str
    in_contact: bool = False
    touching: str = ""  # "right thumb", … joined by ", "
    nearest_mm: float = -1.0
    penetration_mm: float = -1.0
    volume_cm3: float = -1.0
    displacement_mm: float = -1.0
    directions: int = 0
    contacts: int = -1
    mass_kg: float = -1.0
    preset: str = ""
    engine: str = ""


class _Held(NamedTuple):
    object_id: str
    object: ObjectMesh
    contacts: tuple[Contact, ...]  # one per hand


class Screener:
    """Screens scenes one after another; objects that come again are not compiled again."""

    def __init__(self, config: ScreenConfig) -> None:
        config.check()
        self.config = config
        self._parts: dict[HandAssets, np.ndarray] = {}
        self._models: dict[tuple[str, float], ObjectModel] = {}

    def screen(self, scene: Scene) -> ScreenRow:
        """The row of a scene. A mesh that cannot be simulated is a refused row that says why."""
        key = scene.sample.key
        try:
            held = self._held(scene)
        except SourceError as error:
            return ScreenRow(key, "", kept=False, reason=f"mesh: {error}")
        if held is None:
            return ScreenRow(key, "", kept=False, reason="no object: the input has no valid object or no hand")
        touching = [
            f"{hand.side} {part}" for hand, contact in zip(scene.hands, held.contacts) for part in contact.parts
        ]
        row = {
            "key": key,
            "object_id": held.object_id,
            "in_contact": any(c.in_contact for c in held.contacts),
            "touching": ", ".join(touching),
            "nearest_mm": min(c.nearest_mm for c in held.contacts),
            "penetration_mm": max(c.depth_max_mm for c in held.contacts),
        }
        try:
            check_mesh(held.object.mesh.vertices_m, held.object.mesh.faces)
            row["volume_cm3"] = sum(_shared_m3(hand, held.object) for hand in scene.hands) * 1e6
            row |= self._simulated(scene, held)
        except SourceError as error:
            return ScreenRow(**row, kept=False, reason=f"mesh: {held.object.mesh.name}: {error}")
        reason = self._reason(row)
        return ScreenRow(**row, kept=not reason, reason=reason)

    def _held(self, scene: Scene) -> _Held | None:
        """The object that lies nearest to any hand, and how each hand touches it.

        Raises SourceError for a mesh of too many faces, which it would take a quarter of a minute to measure.
        """
        named = [o.id for o in scene.sample.objects if o.valid]
        pairs = [(name, o, _box_gap_m(scene.hands, o)) for name, o in zip(named, scene.objects, strict=True)]
        if not pairs or not scene.hands:
            return None
        nearest = min(gap for _, _, gap in pairs)
        found: list[_Held] = []
        for name, placed, gap in pairs:
            if gap <= max(_NEAR_M, nearest):
                if len(placed.mesh.faces) > MAX_FACES:
                    raise SourceError(f"{placed.mesh.name}: {too_fine(len(placed.mesh.faces))}")
                verts = placed.verts_cam_m
                contacts = tuple(
                    measure_contact(h.verts_cam_m, self._parts_of(h.assets), verts, placed.mesh.faces)
                    for h in scene.hands
                )
                found.append(_Held(name, placed, contacts))
        return min(found, key=lambda h: min(c.nearest_mm for c in h.contacts))

    def _parts_of(self, assets: HandAssets) -> np.ndarray:
        if assets not in self._parts:
            self._parts[assets] = hand_parts(assets)
        return self._parts[assets]

    def _simulated(self, scene: Scene, held: _Held) -> dict[str, object]:
        config = self.config
        if config.preset == NO_SIMULATION:
            return {}
        model = self._model(held.object_id, held.object.mesh)
        if model.preset.hand == "capsules":
            hands = [hand_capsules(h.verts_cam_m, h.joints_cam_m, h.assets) for h in scene.hands]
        else:
            hands = [hand_hulls(h.verts_cam_m, h.assets) for h in scene.hands]
        result: Stability = model.hold(hands, held.object.T_cam_obj)
        return {
            "displacement_mm": result.worst_m * 1e3,
            "directions": len(result.displacements_m),
            "contacts": result.contacts,
            "mass_kg": model.mass_kg,
            "preset": result.preset,
            "engine": result.engine,
        }

    def _model(self, object_id: str, mesh: Mesh) -> ObjectModel:
        config = self.config
        known: Mapping[str, float] = {**YCB_MASSES_KG, **config.masses_kg}
        preset = preset_named(config.preset)
        # The release knows no masses: everything is water, twice.
        mass = -1.0 if preset.visual_mass else known.get(object_id, -1.0)
        density = WATER_KG_M3 if preset.visual_mass else config.density_kg_m3
        name = (mesh.sha256, mass)
        if name not in self._models:
            if len(self._models) >= _MODELS:
                self._models.pop(next(iter(self._models)))
            parts = convex_parts(mesh.vertices_m, mesh.faces, Path(config.cache) if config.cache else None)
            whole = (mesh.vertices_m, mesh.faces)
            self._models[name] = ObjectModel(parts, preset, whole, mass_kg=mass, density_kg_m3=density)
        return self._models[name]

    def _reason(self, row: Mapping[str, object]) -> str:
        config = self.config

        def over(name: str, limit: float) -> bool:
            return limit >= 0 and float(str(row.get(name, -1.0))) > limit

        if config.needs_contact and not row["in_contact"]:
            return f"no contact: the hand is {row['nearest_mm']:.1f} mm away"
        if over("penetration_mm", config.max_penetration_mm):
            return f"penetration: {row['penetration_mm']:.1f} mm deep"
        if over("volume_cm3", config.max_volume_cm3):
            return f"volume: {row['volume_cm3']:.2f} cm3 inside the object"
        if over("displacement_mm", config.max_displacement_mm):
            return f"unstable: moves {row['displacement_mm']:.1f} mm ({row['preset']})"
        return ""


def failed_row(key: str, error: Exception) -> ScreenRow:
    """The row of an input that could not be read."""
    return ScreenRow(key, "", kept=False, reason=f"unreadable: {error}")


def _shared_m3(hand: HandMesh, placed: ObjectMesh) -> float:
    closed = np.concatenate([hand.assets.f, hand.assets.f_cap]).astype(np.int64)
    return intersection_volume_m3(hand.verts_cam_m, closed, placed.verts_cam_m, placed.mesh.faces)


def _box_gap_m(hands: tuple[HandMesh, ...], placed: ObjectMesh) -> float:
    verts = placed.verts_cam_m
    low, high = verts.min(0), verts.max(0)
    gaps = [
        np.linalg.norm(np.maximum(0.0, np.maximum(low - h.verts_cam_m.max(0), h.verts_cam_m.min(0) - high)))
        for h in hands
    ]
    return float(min(gaps, default=np.inf))
