from dataclasses import dataclass, field
from typing import Any

import pytest

from pam_aug.config import config_hash, read_yaml, resolve, to_dict
from pam_aug.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    steps: int = 28
    rate: float = 0.25


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    free: dict[str, Any] = field(default_factory=dict)


def test_yaml_and_overrides_make_a_frozen_dataclass():
    config = resolve(Outer, {"name": "a", "inner": {"steps": 4}}, ["inner.rate=0.5", "sizes=[3]"])
    assert config == Outer("a", Inner(4, 0.5), [3])
    assert to_dict(config) == {"name": "a", "inner": {"steps": 4, "rate": 0.5}, "sizes": [3], "free": {}}


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"inner\.stps; did you mean inner\.steps"):
        resolve(Outer, {"name": "a", "inner": {"stps": 4}})


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        resolve(Outer, {"name": "???"}, ["nonsense", "inner.stps=1"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="name is required"):
        resolve(Outer, {})
    with pytest.raises(ConfigError, match=r"free\.a is required.*free\.b is required"):
        resolve(Outer, {"name": "x", "free": {"a": "???", "b": "???", "c": 1}})


def test_a_wrong_type_names_the_field():
    with pytest.raises(ConfigError, match=r"inner\.steps"):
        resolve(Outer, {"name": "a", "inner": {"steps": "many"}})


def test_yaml_is_read_safely(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not YAML"):
        read_yaml(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="mapping"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_hash_does_not_depend_on_order():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})
