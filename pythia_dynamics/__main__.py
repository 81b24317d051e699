"""``python -m pythia_dynamics``: the command line."""

from __future__ import annotations

from pythia_dynamics.cli.app import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="pythia-dyn")
