"""Ours against the package imagecorruptions at 224 px, where it is installed: benchmarks/corruption_agreement.py, held.

Elastic is left out: in the package it is another corruption (docs/corruptions.md).
"""

from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pytest

from benchmarks.corruption_agreement import compared, mended_peer, photographs

pytestmark = pytest.mark.slow
# Images, the mean's difference in grey levels, and how far size and spread, and every band, may be from 1.
NOTHING_DRAWN, NOISE, WEATHER = (4, 0.1, 0.02, 0.08), (16, 0.2, 0.01, 0.05), (16, 1.5, 0.12, 0.15)
TOLERANCES = {
    "gaussian_noise": NOISE,
    "shot_noise": NOISE,
    "impulse_noise": NOISE,
    "speckle_noise": NOISE,
    "defocus_blur": NOTHING_DRAWN,
    "glass_blur": (2, 0.2, 0.02, 0.08),
    "motion_blur": WEATHER,
    "zoom_blur": NOTHING_DRAWN,
    "gaussian_blur": NOTHING_DRAWN,
    "snow": WEATHER,
    # Of five textures, few are drawn; the package's are enlarged, so have less of the finest detail.
    "frost": (16, 10, 0.2, 0.6),
    "fog": WEATHER,
    "spatter": WEATHER,
    "brightness": NOTHING_DRAWN,
    "contrast": NOTHING_DRAWN,
    "saturate": NOTHING_DRAWN,
    "pixelate": NOTHING_DRAWN,
    "jpeg_compression": NOTHING_DRAWN,
}


@pytest.fixture(scope="module")
def peer():
    """The package, where it is installed: then it must be importable. Nothing of it stays imported."""
    if importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("imagecorruptions is not installed: pip install --editable '.[bench]'")
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that SciPy gives up
        patched.setattr(np, "float_", np.float64, raising=False)
        try:
            yield mended_peer()
        finally:
            for name in [n for n in sys.modules if n.partition(".")[0] == "imagecorruptions"]:
                del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOLERANCES)
def test_changes_are_those_of_the_package(name, peer):
    count, mean, overall, band = TOLERANCES[name]
    found = compared(name, peer, photographs(count))
    assert "fails" not in found, found
    assert abs(found.pop("mean difference")) <= mean
    for key, ratio in found.items():
        assert ratio == pytest.approx(1, abs=overall if key in ("size", "spread") else band), (key, found)
