"""Compare our corruptions with the package imagecorruptions at 224 px, if it is installed.

The comparison is that of benchmarks/corruption_agreement.py, with tolerances. Elastic is left out: the package
implements a different corruption under that name (docs/corruptions.md).
"""

from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pytest

from benchmarks.corruption_agreement import compared, mended_peer, photographs

pytestmark = pytest.mark.slow
# Number of images, and tolerances: difference of the means in grey levels; distance from 1 of the ratios of size
# and spread; distance from 1 of the ratio in each band.
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
    # Only a few of the five textures are drawn. The package enlarges its own, so they have less fine detail.
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
    """The package, unimported again at the end. Skip if it is not installed; fail if it cannot be imported."""
    if importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("imagecorruptions is not installed: pip install --editable '.[bench]'")
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that SciPy deprecates
        patched.setattr(np, "float_", np.float64, raising=False)
        try:
            yield mended_peer()
        finally:
            for name in [n for n in sys.modules if n.partition(".")[0] == "imagecorruptions"]:
                del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOLERANCES)
def test_a_corruption_changes_images_as_the_package_does(name, peer):
    count, mean, overall, band = TOLERANCES[name]
    found = compared(name, peer, photographs(count))
    assert "fails" not in found, found
    assert abs(found.pop("mean difference")) <= mean
    for key, ratio in found.items():
        assert ratio == pytest.approx(1, abs=overall if key in ("size", "spread") else band), (key, found)
