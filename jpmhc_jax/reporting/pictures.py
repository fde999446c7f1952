"""Image examples of a report: the picture, its class and the model's."""

import base64
from collections.abc import Mapping, Sequence
import io
from typing import Any

import numpy as np

from jpmhc_jax.reporting import markup
from jpmhc_jax.reporting.markup import Markup, tag


def draw(example: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Markup:
  """The picture, magnified without smoothing, over what it is and what it was taken for."""
  truth = example.get("truth")
  taken = ", ".join(str(prediction.get("class", "?")) for prediction in predictions) or "not recorded"
  caption = tag("figcaption", f"class {truth}", tag("br"), f"answer {taken}")
  source = _png(example.get("input"), example.get("top"))
  if source is None:
    return tag("figure", markup.note("Not recorded."), caption, class_="picture")
  picture = tag("img", src=f"data:image/png;base64,{source}", alt=f"{example.get('task')}: class {truth}")
  return tag("figure", picture, caption, class_="picture")


def _png(pixels: Any, top: Any) -> str | None:
  """Base64 of a PNG file; pixels as (height, width, channels) values up to `top`, of which 1, 3 or 4 can be shown."""
  try:
    values = np.clip(np.asarray(pixels, np.float64) / float(top), 0, 1)
  except (TypeError, ValueError):
    return None
  if values.ndim != 3 or values.shape[-1] not in (1, 3, 4):
    return None
  from matplotlib import image  # slow to import, and only pictures need it

  file = io.BytesIO()
  image.imsave(file, np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values, format="png")
  return base64.b64encode(file.getvalue()).decode()
