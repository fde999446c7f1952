"""Which network of a task `spectrum` linearises."""

import functools

import jax

from jpmhc_jax.core.errors import UserError
from jpmhc_jax.evaluation.spectra import resnet, transformer, trm
from jpmhc_jax.evaluation.spectra.network import Network
from jpmhc_jax.training.state import Setup
from jpmhc_jax.training.tasks.base import Task, TransformerPass
from jpmhc_jax.training.tasks.symbols import SymbolEquivariant
from jpmhc_jax.training.tasks.trm import DeepSupervision
from jpmhc_jax.training.tasks.urm import UniversalReasoning
from jpmhc_jax.training.tasks.vision import ResidualImageClass


@functools.singledispatch
def network_of(task: Task, setup: Setup) -> Network | resnet.Whole:
  """The task's network as functions to be linearised; `network_of.register(MyTask)` adds that of a task of one's own.

  Raises UserError for a task without one.
  """
  raise UserError(
    f"model.kind={setup.config.model.kind!r}: Jacobian spectra are measured for tasks with a network to linearise; "
    "register one by jpmhc_jax.evaluation.spectra.networks.network_of"
  )


def _own_coefficients(setup: Setup) -> Setup:
  """The setup; raises UserError where coefficients are not made of the streams that enter their connection."""
  connection = setup.config.connection
  if connection.single_pass == "previous" and connection.streams > 1:
    raise UserError(
      "connection.single_pass='previous': the laws are of connections whose coefficients come from the streams that "
      "enter them; those one connection old make the Jacobian one of two steps; take 'own' or 'off'"
    )
  return setup


@network_of.register
def _(task: DeepSupervision, setup: Setup) -> Network:
  if setup.config.connection.sublayer != "whole":
    raise UserError("connection.sublayer='stream': spectra are measured of sub-layers of the whole width; take 'whole'")
  return trm.Network.of(_own_coefficients(setup).graph, setup.config.model)


@network_of.register
def _(task: SymbolEquivariant, setup: Setup) -> Network:
  raise UserError(
    "model.kind='trm_symbols': spectra are measured of TRM's two latents and of transformers; a latent with an axis of "
    "symbols has no network to linearise here yet; take model.kind=trm"
  )


@network_of.register
def _(task: UniversalReasoning, setup: Setup) -> Network:
  raise UserError(
    "model.kind='urm': spectra are measured of TRM's two latents and of transformers; the loops of one latent have no "
    "network to linearise here yet; take model.kind=trm"
  )


@network_of.register
def _(task: TransformerPass, setup: Setup) -> Network:
  return transformer.Network.of(_own_coefficients(setup).graph, setup.config.model)


@network_of.register
def _(task: ResidualImageClass, setup: Setup) -> resnet.Whole:
  shapes = jax.eval_shape(setup.create)
  return resnet.Whole.of(setup.graph, setup.model(shapes.params, shapes.buffers))
