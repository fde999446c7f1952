"""The symbol-equivariant Tiny Recursive Model as the trainer sees it: TRM's supervision, halting and table."""

from flax import nnx

from jpmhc_jax.config import schema
from jpmhc_jax.core.errors import require
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.models.symbols import SymbolTRM
from jpmhc_jax.training.tasks.base import register_task, token_model
from jpmhc_jax.training.tasks.trm import DeepSupervision


@register_task("trm_symbols")
class SymbolEquivariant(DeepSupervision):
  """See `DeepSupervision`; for data whose symbols may change places: the colours of ARC, the digits of Sudoku."""

  data_kinds = ("arc", "sudoku")
  linearised = False

  def build(self, config: schema.Config, dataset: TokenDataset, rngs: nnx.Rngs) -> SymbolTRM:
    """A `SymbolTRM` for the data set's vocabulary."""
    return token_model(SymbolTRM, config, dataset, rngs)

  def check(self, config: schema.Config) -> None:
    """Raises ConfigError as TRM does, for sub-layers that know one axis of positions, and for copies by colours."""
    super().check(config)
    model, sharing = config.model, config.connection.sharing
    require(model.token_mixer == "attention", "model.token_mixer", model.token_mixer, "attention, along two axes")
    require(model.convolution == 0, "model.convolution", model.convolution, "0: it is for model.kind=trm and urm")
    require(sharing == "all", "connection.sharing", sharing, "all with model.kind=trm_symbols")
    copies = config.data.kind == "arc" and config.data.arc.augmentations and config.data.arc.recolour
    words = "False with model.kind=trm_symbols: its answers permute with the colours, and such copies teach it nothing"
    require(not copies, "data.arc.recolour", True, words)
