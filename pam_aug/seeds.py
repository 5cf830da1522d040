"""Seeds that depend on what is made, never on who makes it: no worker, rank or time enters them."""

from hashlib import blake2b

__all__ = ["candidate_seed", "derived_seed"]


def derived_seed(*parts: str | int) -> int:
    """63-bit seed from the parts' text joined by NUL bytes: blake2b, 8-byte digest, little-endian, top bit dropped."""
    digest = blake2b("\0".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def candidate_seed(run_seed: int, input_key: str, index: int) -> int:
    """Seed of candidate `index` (0-based) of the input `input_key` in a run with seed `run_seed`."""
    return derived_seed(run_seed, input_key, index)
