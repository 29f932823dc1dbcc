"""What a case of the zoo is, and which cases are held out."""

from hashlib import sha256


def held_out(name: str) -> bool:
    """Whether the case called `name` belongs to the third that no threshold may be tuned on. Fixed for good by the name."""
    return int(sha256(name.encode()).hexdigest(), 16) % 3 == 0
