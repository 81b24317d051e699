"""The command ``pythia-dyn``, also ``python -m pythia_dynamics``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. An interruption while its modules are imported gives one line, as it does later."""
    try:
        from pythia_dynamics.cli import main as command_line

        command_line(prog_name="pythia-dyn")
    except KeyboardInterrupt:
        sys.stderr.write("pythia-dyn: interrupted; nothing written\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
