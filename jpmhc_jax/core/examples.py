"""What data and models agree on of an example: two numbers of tokens, and the format of images."""

import dataclasses

PAD = 0  # fills up a row of tokens
IGNORED = -100  # a label that no loss counts


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
