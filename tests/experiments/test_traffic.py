"""What is counted in a compiled program, by hand on a few lines of HLO."""

from experiments.benchmarks import traffic

HLO = """
HloModule test

%body (arg: (f32[7,10,4], bf16[10,4])) -> (f32[7,10,4], bf16[10,4]) {
  %arg = (f32[7,10,4]{2,1,0}, bf16[10,4]{1,0}) parameter(0)
  %stack = f32[7,10,4]{2,1,0} get-tuple-element(%arg), index=0
  %state = bf16[10,4]{1,0} get-tuple-element(%arg), index=1
  %near = f32[10,4]{1,0:T(8,128)S(1)} fusion(%stack, %state), kind=kLoop, backend_config={"estimated_cycles":"300"}
  %far = bf16[10,4]{1,0} fusion(%near), kind=kLoop, backend_config={"estimated_cycles":"45"}
  ROOT %out = (f32[7,10,4]{2,1,0}, bf16[10,4]{1,0}) tuple(%stack, %far)
}

ENTRY %main (x: bf16[10,4]) -> bf16[10,4] {
  ROOT %x = bf16[10,4]{1,0} parameter(0)
}
"""


def test_reads_and_writes_of_main_memory_are_counted_and_a_stack_by_its_slice():
  bodies = dict(traffic._COMPUTATION.findall(HLO))
  assert set(bodies) == {"body", "main"}
  # near reads a slice of the stack (160 bytes) and the state (80) into on-chip memory; far writes 80 from there
  assert traffic.body_traffic(bodies["body"]) == (160 + 80 + 80, 345)
  assert traffic.body_traffic(bodies["main"]) == (0, 0)
  assert traffic.main_memory_bytes("(f32[], pred[8], f32[3,5]{1,0:T(8,128)})") == 4 + 8 + 60
