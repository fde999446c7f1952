"""The picture of predicted spectra holds a named panel of every family, from one to all of them."""

import numpy as np
import pytest

from jpmhc_jax.mixers import FAMILIES
from jpmhc_jax.reporting.spectra import draw_predictions


@pytest.mark.parametrize("families", (1, 7, len(FAMILIES)))
@pytest.mark.parametrize("depths", (1, 5))
def test_every_family_has_its_panel_of_bands(families, depths, tmp_path):
  s = np.geomspace(0.1, 10, 20)
  density = np.exp(-(np.log(s) ** 2))
  names = list(FAMILIES)[:families]
  rows = [
    {"depth": depth, "mixer": name, "singular_values": s, "log_density": density}
    for depth in range(1, depths + 1)
    for name in names
  ]
  draw_predictions(rows, tmp_path / "spectrum.svg")
  picture = (tmp_path / "spectrum.svg").read_text()
  for name in names:
    assert picture.count(f">{name}</text>") == 1, name
  for words in ("middle 98%", "middle 80%", "median", "layers"):
    assert f">{words}</text>" in picture
