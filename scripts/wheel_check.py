"""What the installed wheel has to hold, and one analysis with it; leaves a suite of checkpoints, ``walk``, behind.

Called by wheel_check.sh in an empty directory, with the folder of the environment that the wheel is installed in.
"""

from __future__ import annotations

import sys
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import safetensors.numpy

import pythia_dynamics as pyd

FILES = ("__init__.pyi", "py.typed", "report/page.html.j2", "report/style.css", "report/script.js")
DATA = (
    "published_lambada.csv",
    "blog_order_parameter.csv",
    "blog_train_loss_vs_order_parameter.csv",
    "calibration-143.json",
    "README.md",
)


def main() -> None:
    package = Path(pyd.__file__).parent
    assert package.is_relative_to(sys.argv[1]), f"{package} is not the installed wheel"
    assert metadata.version("pythia-dynamics") == pyd.__version__
    files = resources.files("pythia_dynamics")
    for name in (*FILES, *(f"data/{name}" for name in DATA)):
        assert files.joinpath(name).is_file(), f"{name} is not in the wheel"
    for name in pyd.__all__:
        getattr(pyd, name)

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((6, 40, 8), dtype=np.float32), axis=0)
    msd = pyd.msd(walk)
    assert msd.sizes["step"] == 6
    assert bool(np.isfinite(msd["msd"]).all())
    for step, weights in enumerate(walk, 1):
        folder = Path("walk") / f"step{step}000"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "gpt_neox"}')
        safetensors.numpy.save_file({"embed_out.weight": weights}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
