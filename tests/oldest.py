"""The lowest versions that pyproject.toml allows, as constraints for pip; `make test-oldest` installs them. Torch is the one that is tested anyway."""

import re
import tomllib
from pathlib import Path

REQUIRED = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]


def pins() -> list[str]:
    """name==version of every dependency but torch."""
    parts = (re.fullmatch(r"([\w.-]+)[>=]=([\d.]+)", one) for one in REQUIRED)
    return [f"{found[1]}=={found[2]}" for found in parts if found and found[1] != "torch"]


if __name__ == "__main__":
    print("\n".join(pins()))
