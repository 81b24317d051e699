"""Compare the CSV tables of two folders of results, to the last digit.

    python scripts/compare_results.py BEFORE AFTER

Tables are matched by model (the first folder) and file name, so that a table that moved to the folder of its tensor is
still compared. Exit status 1 where a table is missing or differs in a byte.
"""

from __future__ import annotations

import sys
from pathlib import Path


def tables(folder: Path) -> dict[tuple[str, str], Path]:
    """Every CSV below a folder, by model and file name; those of a ternary head are named with their folder."""
    found = {}
    for path in sorted(folder.rglob("*.csv")):
        parts = path.relative_to(folder).parts
        name = f"ternary/{path.name}" if "ternary" in parts else path.name
        found[parts[0], name] = path
    return found


def main(before: str, after: str) -> int:
    """Print a line for each table; return the number of tables that are missing or different."""
    old, new = tables(Path(before)), tables(Path(after))
    different = 0
    for key, path in old.items():
        if key not in new:
            verdict = "missing"
        elif path.read_bytes() == new[key].read_bytes():
            verdict = "the same"
        else:
            lines = zip(path.read_text().splitlines(), new[key].read_text().splitlines(), strict=False)
            first = next((f"{a!r} is {b!r}" for a, b in lines if a != b), "another number of lines")
            verdict = f"different: {first}"
        different += verdict != "the same"
        print(f"{'/'.join(key)}: {verdict}")
    print(f"{len(old)} tables, {different} missing or different")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
