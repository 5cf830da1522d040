"""Write the bundled file anew, beside the hand package's modules."""

from pathlib import Path

from pam_aug.hand.make_open_hand import make_open_hand, write_npz

path = Path(__file__).parents[1] / "open_hand.npz"
write_npz(path, make_open_hand())
print(f"{path}: {path.stat().st_size} bytes")
