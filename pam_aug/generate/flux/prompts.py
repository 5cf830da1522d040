"""Prompts of candidates: PAM's fixed one, or sentences drawn from templates."""

from collections.abc import Sequence

import numpy as np

from pam_aug.rollouts.scene import Scene
from pam_aug.seeds import derived_seed

__all__ = ["OFFICIAL_PROMPT", "drawn_prompt", "object_words"]

OFFICIAL_PROMPT = "A hand is trying to grasp something"
"""What PAM's script gives every simulated rollout."""

_SKIN = ("pale", "light", "olive", "tan", "brown", "dark brown", "freckled", "wrinkled")
_SLEEVE = (
    "a bare forearm",
    "a rolled-up sleeve",
    "a knitted sleeve",
    "a white shirt cuff",
    "a dark jacket sleeve",
    "a denim sleeve",
    "a wrist watch",
)
_PLACE = (
    "on a wooden kitchen table",
    "over a cluttered office desk",
    "in a laboratory with shelves behind",
    "on a steel workbench",
    "in a living room, a sofa out of focus",
    "on a stone counter with tiles",
    "before a plain grey wall",
    "in a workshop with tools on the wall",
    "on a checked tablecloth",
    "in a classroom",
)
_LIGHT = (
    "soft daylight from a window",
    "warm lamp light in the evening",
    "harsh overhead neon light",
    "bright sunlight with hard shadows",
    "dim indoor light",
    "even studio light",
)
_CAMERA = ("a sharp photograph", "a phone snapshot", "a frame of a video", "a photograph with shallow focus")
_ACTION = {True: ("grasps", "holds", "picks up", "lifts"), False: ("reaches for", "moves towards", "is beside")}
_NEAR_M = 0.02


def drawn_prompt(scene: Scene, seed: int) -> str:
    """A sentence about the scene: its object and what the hand does are true, skin, sleeve, place and light drawn.

    A pure function of the scene and the candidate's seed.
    """
    rng = np.random.Generator(np.random.PCG64(derived_seed("prompt", seed)))

    def draw(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    hands = "Two hands" if len(scene.hands) > 1 else f"A {scene.hands[0].side} hand" if scene.hands else "A hand"
    action = draw(_ACTION[_touches(scene)])
    if len(scene.hands) > 1:
        action = {"grasps": "grasp", "holds": "hold", "picks up": "pick up", "lifts": "lift"}.get(action, action)
        action = {"reaches for": "reach for", "moves towards": "move towards", "is beside": "are beside"}.get(
            action, action
        )
    thing = object_words(scene.objects[0].mesh.name) if scene.objects else "nothing in particular"
    return (
        f"{draw(_CAMERA).capitalize()}: {hands[0].lower() + hands[1:]} with {draw(_SKIN)} skin and {draw(_SLEEVE)} "
        f"{action} {thing}, {draw(_PLACE)}, {draw(_LIGHT)}."
    )


def object_words(name: str) -> str:
    """An object's name as words: "ycb/003_cracker_box" becomes "a cracker box"; a name without words "an object"."""
    parts = name.rsplit("/", 1)[-1].replace("-", "_").split("_")
    words = [w for w in parts if w.isalpha() and len(w) > 1]
    if not words:
        return "an object"
    return f"{'an' if words[0][0].lower() in 'aeiou' else 'a'} {' '.join(words).lower()}"


def _touches(scene: Scene) -> bool:
    from scipy.spatial import KDTree

    if not (scene.hands and scene.objects):
        return False
    tree = KDTree(np.concatenate([o.verts_cam_m for o in scene.objects]))
    return min(float(tree.query(hand.verts_cam_m)[0].min()) for hand in scene.hands) < _NEAR_M
