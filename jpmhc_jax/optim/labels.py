"""Which optimiser moves which leaf: a tree of roles that the model declares, checked against the parameters.

Roles are `trunk`, `mixer` (the connections' parameters), `puzzle` (the embedding table, moved by `sign_sgd_rows`
outside optax) and `manifold:<name>` (a matrix stored on a manifold, moved by Riemannian steps).
"""

from typing import Any

import jax

from jpmhc_jax.core.errors import ConfigError, nearest

__all__ = ["MANIFOLD_PREFIX", "ROLES", "label_tree", "manifold_names"]

ROLES = ("trunk", "mixer", "puzzle")
MANIFOLD_PREFIX = "manifold:"


def label_tree(params: Any, roles: Any, manifolds: tuple[str, ...] | None = None) -> Any:
  """A tree of params' structure whose leaves are optax.partition labels.

  `roles` holds a string wherever `params` holds an array. `manifolds` lists the names allowed after `manifold:` (None
  allows all). Raises ConfigError for a leaf without a role, a role without a leaf, or an unknown role, naming it.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  declared = {
    jax.tree_util.keystr(path): role
    for path, role in jax.tree_util.tree_flatten_with_path(roles, is_leaf=lambda leaf: leaf is None)[0]
  }
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  for name in names:
    _check_role(name, declared.get(name), declared, manifolds)
  unused = sorted(declared.keys() - set(names))
  if unused:
    raise ConfigError(f"role {declared[unused[0]]!r} is declared for {unused[0]}, but there is no such parameter.")
  return jax.tree.unflatten(structure, [declared[name] for name in names])


def manifold_names(roles: Any) -> tuple[str, ...]:
  """The names after `manifold:` that occur in a tree of roles, sorted."""
  leaves = [role for role in jax.tree.leaves(roles) if isinstance(role, str)]
  return tuple(sorted({r.removeprefix(MANIFOLD_PREFIX) for r in leaves if r.startswith(MANIFOLD_PREFIX)}))


def _check_role(name: str, role: Any, declared: dict[str, Any], manifolds: tuple[str, ...] | None) -> None:
  if role is None:
    raise ConfigError(
      f"parameter {name} has no role: declare one of {', '.join(ROLES)} or {MANIFOLD_PREFIX}<name> in its metadata."
      + nearest(name, (other for other, value in declared.items() if value is not None))
    )
  if not isinstance(role, str):
    raise ConfigError(f"parameter {name} has role {role!r}: expected a string.")
  if role.startswith(MANIFOLD_PREFIX):
    manifold = role.removeprefix(MANIFOLD_PREFIX)
    if manifolds is not None and manifold not in manifolds:
      raise ConfigError(
        f"parameter {name} has role {role!r}: expected a manifold out of {', '.join(manifolds) or '(none given)'}."
        + nearest(manifold, manifolds)
      )
  elif role not in ROLES:
    raise ConfigError(
      f"parameter {name} has role {role!r}: expected one of {', '.join(ROLES)} or {MANIFOLD_PREFIX}<name>."
      + nearest(role, ROLES)
    )
