"""The two numbers that mean nothing: what fills up a row of tokens, and a label that no loss counts."""

PAD = 0
IGNORED = -100
