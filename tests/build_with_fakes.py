"""A build with the tests' backends, slowed down, as a process of its own that a test can kill."""

import sys
from pathlib import Path

import fakes

from pam_aug.build.config import BuildConfig
from pam_aug.build.run import run_build
from pam_aug.config import resolve

fakes.install()
fakes.FakeGenerator.seconds = 0.02
print("ready", flush=True)
run_build(resolve(BuildConfig, fakes.CONFIG), Path(sys.argv[1]), workers=0)
