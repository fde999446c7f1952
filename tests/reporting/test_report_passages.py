"""Text examples: prompt, truth and continuation as text, with the first difference marked; no grid."""

from jpmhc_jax.reporting.examples import draw_example

EXAMPLE = {"kind": "text", "task": "text 7", "test": 0, "input": "def f(x):\n", "truth": "  return x\n"}


def test_what_follows_the_first_difference_is_marked_and_everything_is_escaped():
  card = str(draw_example(EXAMPLE | {"predictions": [{"text": "  return <b>\n"}], "solved_at": None}))
  assert "<svg" not in card and "text 7" in card and "not solved" in card
  assert '<pre tabindex="0">def f(x):\n</pre>' in card and '<pre tabindex="0">  return x\n</pre>' in card
  assert "  return <mark>&lt;b&gt;\n</mark></pre>" in card
  assert "9 of 11 characters before the first difference" in card


def test_a_right_continuation_has_no_mark_and_a_missing_one_is_said_to_be():
  card = str(draw_example(EXAMPLE | {"predictions": [{"text": EXAMPLE["truth"]}], "solved_at": 1}))
  assert "<mark>" not in card and "11 of 11 characters" in card and 'data-solved="solved"' in card
  assert "No continuation was recorded." in str(draw_example(EXAMPLE | {"predictions": []}))
  broken = draw_example({"kind": "text", "predictions": [{"text": 3}]})
  assert str(broken).count("Not recorded.") == 3
