"""Do the labels of generated images lie on the hand? Every joint inside an image against what the image shows.

    python benchmarks/labels.py [--quick] [--json]

Scenes of the bundled rollouts as the bundled generator draws them, all view directions, both hands. There is no peer.
"""

import argparse
import json
import platform
from importlib import metadata

from pam_aug import registry
from pam_aug.evaluate.label_check import LabelCheck, check_labels
from pam_aug.rollouts.scene import build_scene


def measure(images: int) -> LabelCheck:
    """The check summed over `images` scenes that no training has seen."""
    converter = registry.load("converters", "demo-rollouts")
    source = converter(converter.Options(count=images, split="test", seed=11))
    generator = registry.load("generators", "rendered")()
    total = LabelCheck(0, 0, 0, 0)
    for i in range(images):
        item = source.item(i)
        scene = build_scene(item, source.hand_assets())
        total = total.plus(check_labels(scene, generator.conditions(scene)))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    images = 150 if arguments.quick else 500
    found = measure(images)
    none = {"spread": 0.0, "peer": None, "peer_value": None, "ratio": None}
    rows = [
        {"name": "joints_on_scene_share", "value": found.on_scene / found.inside, "unit": "share", **none},
        {"name": "visible_joints_depth_true_share", "value": found.depth_true / found.visible, "unit": "share", **none},
        {"name": "joints_inside", "value": found.inside, "unit": f"joints of {images} images", **none},
    ]
    versions = {name: metadata.version(name) for name in ("pam_aug", "numpy", "numba")}
    result = {"machine": f"{platform.machine()}, {platform.processor()}", "versions": versions, "rows": rows}
    print(
        json.dumps(result)
        if arguments.json
        else "\n".join(f"{r['name']:34} {r['value']:.5f} {r['unit']}" for r in rows)
    )


if __name__ == "__main__":
    main()
