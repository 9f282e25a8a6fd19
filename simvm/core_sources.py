"""Which files the compiled core is built from, and their digest.

The build puts the digest into the core; `core_check` compares it with the sources that lie beside
the core. `setup.py` loads this file by its path, so it imports nothing of simvm.
"""

import hashlib
from pathlib import Path


def sources(package: Path) -> list[Path]:
    """The sources of the core under the folder `package`, by name; empty if none are there."""
    found = [*package.glob("_core.pyx"), *package.glob("_core.pxd"), *package.glob("core/*.px[di]"),
             *package.glob("core/*.h")]
    return sorted(found, key=lambda path: path.relative_to(package).as_posix())


def digest(package: Path) -> str:
    """SHA-256 over the names and the contents of `sources(package)`, in hexadecimal."""
    state = hashlib.sha256()
    for path in sources(package):
        content = path.read_bytes()
        state.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()
