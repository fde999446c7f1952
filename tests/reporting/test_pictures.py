"""Pictures in a report are the pixels of the example; what cannot be drawn is said."""

import base64
import io
import re

from matplotlib import image
import numpy as np
import pytest

from jpmhc_jax.reporting.examples import draw_example


def _card(pixels, top=255):
  example = {"kind": "images", "task": "image 7", "input": pixels, "top": top, "truth": 3, "solved_at": None}
  return str(draw_example(example | {"predictions": [{"class": 5}]}))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_holds_the_pixels(channels):
  pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels))
  page = _card(pixels.tolist())
  source = re.search(r"base64,([^\"]+)", page).group(1)
  drawn = image.imread(io.BytesIO(base64.b64decode(source)))
  np.testing.assert_allclose(drawn[..., :3], np.broadcast_to(pixels / 255, (4, 6, 3)), atol=1 / 255)
  assert "class 3" in page and "answer 5" in page and "not solved" in page


@pytest.mark.parametrize("pixels", [None, [[1, 2]], [[[1, 2]]]])
def test_an_image_that_cannot_be_drawn_is_said_to_be_missing(pixels):
  page = _card(pixels)
  assert "Not recorded" in page and "<img" not in page
