"""The configs of the package, data only: `get_config(variant)`, RECIPES, and a docstring that is the promise.

`jpmhc configs` lists them; `--config=sudoku:tiny` names one.
"""
