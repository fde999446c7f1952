"""The format of a data set's images: all that a vision model needs to know of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ImageFormat:
  """Rows hold height·width·channels pixel values from 0 to `top`, channels last; labels are 0 … classes−1."""

  height: int
  width: int
  channels: int
  top: int
  classes: int

  @property
  def values(self) -> int:
    """Numbers an image is made of."""
    return self.height * self.width * self.channels
