"""`python -m pam_aug.train RECIPE.yaml --out DIR [--set name=value ...]`: a training run, without the command line."""

import argparse
import json
from pathlib import Path

from pam_aug.config import read_yaml
from pam_aug.train import run


def main() -> None:
    """Read the arguments, train, print the held-out figures."""
    parser = argparse.ArgumentParser(prog="python -m pam_aug.train", description="Train an estimator from a recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    print(json.dumps(run(read_yaml(arguments.recipe), arguments.out, arguments.set), indent=2))


if __name__ == "__main__":  # loaders and renderers may be started by spawning
    main()
