"""The database of a study, from outside: what is none, or cannot be reached, is said in words."""

from collections.abc import Iterator
import contextlib
import pathlib

from jpmhc_jax.core.reading import check_regular
from jpmhc_jax.sweeps.space import SweepError


@contextlib.contextmanager
def opening(url: str) -> Iterator[None]:
  """Turns what Optuna and SQLAlchemy say of a database inside into a SweepError that names it, without its password.

  Raises DataError for a SQLite file that is a device, a pipe or a folder, before it is opened.
  """
  import optuna
  import sqlalchemy
  from sqlalchemy.exc import SQLAlchemyError

  shown = repr(url)
  try:
    parsed = sqlalchemy.make_url(url)
    shown = repr(parsed.render_as_string(hide_password=True))
    if parsed.get_backend_name() == "sqlite" and parsed.database and pathlib.Path(parsed.database).exists():
      check_regular(pathlib.Path(parsed.database), limit=2**63)
    yield
  except (ImportError, RuntimeError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
    reason = str(getattr(error, "orig", None) or error).splitlines()[0]
    raise SweepError(
      f"--storage={shown}: keeps no study of Optuna ({reason}); expected the URL of a database that can be written, "
      "such as sqlite:///study.db"
    ) from error
