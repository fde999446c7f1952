"""The fields of data sets, a part of `config.schema`: name, type, default, meaning, bounds."""

import dataclasses

from jpmhc_jax.core.fields import field, group
from jpmhc_jax.core.scalars import LARGEST_SEED


@dataclasses.dataclass(frozen=True)
class ArcData:
  dataset: str = field(
    "arc1",
    "arc1 = the 800 public ARC-AGI-1 tasks, arc2 = the 1,120 public ARC-AGI-2 tasks, *concept = with ConceptARC added, "
    "folder = your own",
    ("arc1", "arc2", "arc1concept", "arc2concept", "folder"),
  )
  folder: str = field(
    "",
    "for dataset=folder: a folder with training/*.json and evaluation/*.json in the public ARC format, or with "
    "Kaggle's *_training_challenges.json, *_training_solutions.json and their like",
    path=True,
  )
  concept_folder: str = field("", "for *concept: ConceptARC's corpus folder", path=True)
  canvas: int = field(
    30,
    "side of the square token canvas; tasks with a larger grid are refused unless max_side filters them",
    ge=1,
    le=30,
  )
  min_side: int = field(1, "keep tasks in which the longest side of every grid is at least this", ge=1)
  max_side: int = field(30, "keep tasks in which the longest side of every grid is at most this", ge=1)
  max_tasks: int = field(0, "keep at most this many tasks of each subset (in builder order); 0 keeps all", ge=0)
  test_subset: str = field(
    "evaluation",
    "subset whose test pairs are held out, answered and, where their outputs are known, scored; test = a folder's "
    "test/*.json or *_test_challenges.json, whose demonstrations are trained on",
    ("training", "evaluation", "test"),
  )
  subsets: str = field("all", "subsets whose demonstrations are trained on", ("all", "training", "evaluation"))
  validation_tasks: int = field(0, "hold out the test pairs of this many training tasks for model selection", ge=0)
  augmentations: int = field(1000, "augmented copies of each task: dihedral x colour permutation", ge=0)
  recolour: bool = field(
    True, "whether the copies permute colours 1-9 as well; else there are 7 at most, the other symmetries of the grid"
  )
  evaluation_augmentations: int = field(
    1000, "augmented copies of each test pair that vote; at most `augmentations`", ge=0
  )
  translate: bool = field(True, "place training grids at a random offset on the canvas")
  builder_seed: int = field(
    42,
    "seed of the augmentation draw (the official builder's 42 reproduces its arrays)",
    ge=0,
    le=LARGEST_SEED,
  )


@dataclasses.dataclass(frozen=True)
class SudokuData:
  side: int = field(4, "side of the grid: 4, 6 or 9")
  train_puzzles: int = field(1000, "base puzzles to train on, each with a unique solution", ge=1)
  test_puzzles: int = field(200, "test puzzles, disjoint from training up to every symmetry of the grid", ge=1)
  min_holes: int = field(6, "fewest blank cells of a puzzle", ge=1)
  max_holes: int = field(10, "most blank cells of a puzzle", ge=1)
  shuffles: int = field(1000, "symmetry copies (digits, bands, rows, columns, transpose) of each training puzzle", ge=0)


@dataclasses.dataclass(frozen=True)
class MazeData:
  side: int = field(11, "side of the square maze; odd", ge=5)
  train_mazes: int = field(1000, "mazes to train on, each with a unique shortest path", ge=1)
  test_mazes: int = field(200, "test mazes, disjoint from training up to the 8 symmetries of the square", ge=1)
  min_path: int = field(12, "shortest path length, in cells, that a maze must have at least", ge=2)
  loops: float = field(
    0.05, "fraction of inner walls opened after carving, so that a choice of paths exists", ge=0, le=1
  )
  dihedral: bool = field(True, "train on the 8 symmetric copies of each maze")


@dataclasses.dataclass(frozen=True)
class TextData:
  folder: str = field("", "folder of the files; empty takes the standard library of the running Python", path=True)
  files: tuple[str, ...] = field(
    ("**/*.py",),
    "patterns of the files below the folder, such as **/*.txt, **/*.md, **/*.jsonl; a *.jsonl is cut into its lines, "
    "any other than *.py at its lines into pieces of 16,384 bytes",
  )
  jsonl_field: str = field("text", "field of a line of a *.jsonl file that holds the text")
  tokenizer: str = field(
    "bytes", "bytes, a tokenizer.json of the package `tokenizers`, or module:name of one of your own"
  )
  window: int = field(128, "tokens of one example", ge=2)
  held_out: int = field(20, "one file or piece in so many, chosen by a hash of its path, is held out", ge=2)
  sha256: str = field(
    "", "content that the corpus must have (`jpmhc train` prints it when it differs); empty takes what is there"
  )


@dataclasses.dataclass(frozen=True)
class ImageData:
  file: str = field(
    "",
    ".npz file with x_train, x_test (n, height, width[, channels]) of uint8 and y_train, y_test (n,) of classes",
    path=True,
  )
  folder: str = field(
    "",
    "folder with train and val (or validation, test), each with one folder of PNG or JPEG files a class; or with the "
    "files of CIFAR-10 or CIFAR-100, binary or for Python",
    path=True,
  )
  builtin: str = field(
    "digits",
    "what is taken without file and folder: digits = the 8x8 digits of scikit-learn, shapes = drawn 32x32 pictures of "
    "ten shapes, noise = noise of `size` and `classes`, for plans and timing",
    ("digits", "shapes", "noise"),
  )
  shapes: int = field(4000, "builtin=shapes: pictures to train on; a quarter as many are held out", ge=10)
  classes: int = field(1000, "builtin=noise: number of classes", ge=2)
  size: int = field(224, "pictures of a folder, and noise: side in pixels to which they are brought", ge=1)
  area: float = field(
    0.08,
    "pictures of a folder: smallest share of a picture that a training crop shows; 0 = training and evaluation show "
    "the whole middle square",
    ge=0,
    le=1,
  )
  verify: bool = field(False, "pictures of a folder: decode all once before the run, and name those that are damaged")
  shift: int = field(1, "images in arrays: those to train on are moved by up to so many pixels in each direction", ge=0)
  mirror: bool = field(False, "training images are mirrored left to right half of the time")


@dataclasses.dataclass(frozen=True)
class PairData:
  source: str = field(
    "",
    ".npz file with `latents` (n, m), as `jpmhc latents` writes, or with x (n, m) and y (n, k); empty takes two random "
    "networks' features of scikit-learn's digits",
    path=True,
  )
  target: str = field(
    "", "another with `latents` (n, k), matched by `ids`; empty where the source file has x and y", path=True
  )
  source_array: str = field(
    "latents", "array of the source file: latents, or inputs for model.transport.source_run", ("latents", "inputs")
  )
  target_array: str = field(
    "latents", "array of the target file: latents, or inputs for model.transport.target_run", ("latents", "inputs")
  )
  known: float = field(1.0, "share of the rows to train on whose partner is known", ge=0, le=1)
  held_out: float = field(0.2, "share of the rows that is held out, the same for every seed", gt=0, lt=1)


@dataclasses.dataclass(frozen=True)
class Data:
  kind: str = field("arc", "the data set: arc, sudoku, maze, text, images, pairs, or one that a plugin registers")
  prefetch: int = field(2, "batches prepared ahead of the step, in threads; 0 builds them in the loop", ge=0)
  workers: int = field(
    0,
    "processes that prepare the batches, such as for decoding pictures, each with threads of its own; 0 = this one",
    ge=0,
  )
  epochs_per_interval: int = field(
    100, "passes over the groups that one sampling plan covers; a plan's last partial batch is dropped", ge=1
  )
  arc: ArcData = group(ArcData, "ARC-AGI tasks")
  sudoku: SudokuData = group(SudokuData, "generated Sudoku")
  maze: MazeData = group(MazeData, "generated mazes")
  text: TextData = group(TextData, "text of files, Python's own sources by default")
  images: ImageData = group(ImageData, "images and their classes")
  pairs: PairData = group(PairData, "latents of the same examples in two spaces")
