"""The text of a compiled program is read as it was written."""

import jax
import jax.numpy as jnp
import pytest

from experiments.compile.contents import count_bytes, read_contents

PROGRAM = """\
HloModule jit_f

%condition (p.1: (s32[], f32[4,4])) -> pred[] {
  %p.1 = (s32[], f32[4,4]) parameter(0)
  %constant.9 = s32[] constant(19)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i, %constant.9), direction=LT
}

%body (p.2: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p.2 = (s32[], f32[4,4]) parameter(0)
  %x = f32[4,4] get-tuple-element(%p.2), index=1
  %dot.1 = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %all-reduce.1 = f32[4,4] all-reduce(%dot.1), to_apply=%sum
  ROOT %out = (s32[], f32[4,4]) tuple(%p.2, %all-reduce.1)
}

%dynamic (p.3: (s32[], s32[])) -> pred[] {
  %p.3 = (s32[], s32[]) parameter(0)
  %a = s32[] get-tuple-element(%p.3), index=0
  %b = s32[] get-tuple-element(%p.3), index=1
  ROOT %lt.2 = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x.1 = f32[4,4] parameter(0)
  %while.1 = (s32[], f32[4,4]) while(%t), condition=%condition, body=%body
  %while.2 = (s32[], f32[4,4]) while(%t), condition=%dynamic, body=%body
  %while.3 = (s32[], f32[4,4]) while(%t), condition=%dynamic, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %custom-call.1 = f32[4,4] custom-call(%x.1), custom_call_target="library"
}
"""


@pytest.mark.quick
def test_loops_are_counted_as_often_as_they_turn():
    contents = read_contents(PROGRAM)
    assert contents.collectives == {"all-reduce": 19 + 1 + 5}
    assert contents.num_kernels == 2 * 25 + 1
    assert contents.num_unknown_loops == 1
    assert contents.custom_calls == ("library",)
    assert not contents.has_float64
    # A product reads its matrix twice, for its two operands, and writes one.
    assert contents.traffic == 64 * (25 * (3 + 2) + 2)


@pytest.mark.parametrize(
    "shape, num",
    [
        ("f32[3,5]{1,0}", 60),
        ("bf16[3,5]", 30),
        ("(f32[2], pred[8]{0}, s8[])", 17),
        ("u32[]", 4),
        ("f32[16,8]{1,0:T(8,128)}", 4 * 16 * 128),
        ("f32[16,8]{0,1:T(8,128)}", 4 * 128 * 8),
        ("f32[16,8]{1,0:T(8,128)S(1)}", 0),
    ],
)
def test_bytes_are_those_in_the_main_memory(shape, num):
    assert count_bytes(shape) == num


def test_a_program_of_xla_is_read():
    def step(x, _):
        return jnp.tanh(x @ x), None

    scan = jax.jit(lambda x: jax.lax.scan(step, x, None, length=11)[0])
    contents = read_contents(scan.lower(jnp.ones((8, 8))).compile().as_text())
    assert contents.num_unknown_loops == 0
    assert contents.num_kernels >= 11 and contents.collectives == {}
