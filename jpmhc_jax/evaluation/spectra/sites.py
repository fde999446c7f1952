"""What is said of one Jacobian: its measured spectrum beside the predicted ones, as JSON and as a line of a table."""

import dataclasses
from typing import Any

from jpmhc_jax.spectral import compare


@dataclasses.dataclass(frozen=True)
class Site:
  """One Jacobian: its measured spectrum and, where the theory covers it, the predicted one."""

  scale: str  # "part"; "recursion" and "carry", or "layer" and "depth", or "block", "stage" and "depth"
  name: str
  calls: int  # 1-based network call, layer or block; of the whole map their number
  size: int  # inputs of the Jacobian
  exact: bool
  floor: float  # singular value under which both sides are cut off
  measured: compare.Summary
  top: float  # the largest singular value, measured
  predicted: compare.Summary | None  # from the moments across all parts
  w1: float | None  # between the two, in log singular value
  independent: compare.Summary | None  # predicted as if every call had weights of its own
  independent_w1: float | None
  chance: float  # W1 that the random probes alone are expected to leave
  residual: float | None  # of the Dyson equation; None where it could not be solved, 0 where nothing is above the floor
  singular_values: tuple[float, ...]  # the axis of the densities of log s below
  measured_density: tuple[float, ...]
  predicted_density: tuple[float, ...] | None
  independent_density: tuple[float, ...] | None
  rotated: compare.Summary | None = None  # of sub-layers whose Jacobians are all turned by one random rotation
  rotated_w1: float | None = None
  rotated_density: tuple[float, ...] | None = None
  remark: str = ""  # why there is no prediction, and what to do

  def to_dict(self) -> dict[str, Any]:
    """Plain values for JSON."""
    sides = ("measured", "predicted", "independent", "rotated")
    summaries = {side: getattr(self, side) and getattr(self, side)._asdict() for side in sides}
    return dataclasses.asdict(self) | summaries


# Names of the columns, and below them their units.
HEADER = (
  f"{'Jacobian of':<20}{'size':>6}{'top':>9}{'99 % quantile':>18}{'stalled':>16}{'mean log':>16}{'spread':>14}"
  f"  {'W1':<14}{'independent':>12}\n"
  f"{'':<20}{'values':>6}{'factor':>9}{'factor':>18}{'share':>16}{'ln':>16}{'ln':>14}"
  f"  {'ln ± chance':<14}{'W1, ln':>12}"
)


def describe(site: Site) -> str:
  """A line below HEADER, and remarks: top, measured and predicted pairs, W1 with its chance, W1 if independent."""
  forms = (("largest", "9.3g"), ("stalled", "8.1%"), ("mean_log", "8.2f"), ("spread_log", "7.2f"))
  pairs = []
  for name, form in forms:
    for side in (site.measured, site.predicted):
      pairs.append(f"{getattr(side, name):{form}}" if side else f"{'–':>{form.split('.')[0]}}")
  distance = f"{site.w1:.3f} ± {site.chance:.3f}" if site.w1 is not None else "–"
  single = f"{site.independent_w1:.3f}" if site.independent_w1 is not None else "–"
  text = f"{site.name:<20}{site.size:>6}{site.top:9.3g}{''.join(pairs)}  {distance:<14}{single:>12}"
  notes = [site.remark] if site.remark else []
  if site.rotated:
    notes.append(
      f"with the sub-layers' own Jacobians, all turned by one random rotation, the 99 % quantile is "
      f"{site.rotated.largest:.3g} and W1 {site.rotated_w1:.3f}"
    )
  return "\n".join([text, *(f"  {site.name}: {note}" for note in notes)])
