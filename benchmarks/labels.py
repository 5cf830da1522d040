"""Do the labels of generated images lie on the hand? Every joint inside an image against what the image shows.

    python benchmarks/labels.py [--quick] [--json]

Scenes of the bundled rollouts as the bundled generator draws them, all view directions, both hands. There is no peer.
"""

from rows import parser, print_rows, row

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
    options = parser(__doc__).parse_args()
    images = 150 if options.quick else 500
    found = measure(images)
    rows = [
        row("joints_on_scene_share", found.on_scene / found.inside, f"of {found.inside} joints in {images} images"),
        row("visible_joints_depth_true_share", found.depth_true / found.visible, f"of {found.visible} joints"),
    ]
    print_rows(rows, options.json, ("pam_aug", "numpy", "numba"))


if __name__ == "__main__":
    main()
