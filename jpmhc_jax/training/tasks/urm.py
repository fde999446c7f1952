"""The Universal Reasoning Model as the trainer sees it: TRM's supervision, halting and table around one latent."""

from flax import nnx

from jpmhc_jax.config import schema
from jpmhc_jax.data import TokenDataset
from jpmhc_jax.models.urm import URM
from jpmhc_jax.training.tasks.base import register_task, token_model
from jpmhc_jax.training.tasks.trm import DeepSupervision


@register_task("urm")
class UniversalReasoning(DeepSupervision):
  """See `DeepSupervision`; model.recursion.inner loops a cycle, of which there are model.recursion.outer."""

  linearised = False

  def build(self, config: schema.Config, dataset: TokenDataset, rngs: nnx.Rngs) -> URM:
    """A `URM` for the data set's vocabulary."""
    return token_model(URM, config, dataset, rngs)
