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


SLICED = """\
HloModule jit_f

%fused (q.0: f32[500,64], q.1: s32[]) -> f32[64] {
  %q.0 = f32[500,64] parameter(0)
  %q.1 = s32[] parameter(1)
  %slice = f32[1,64] dynamic-slice(%q.0, %q.1, %q.1), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64] bitcast(%slice)
}

%stacked (r.0: f32[500,64], r.1: f32[64], r.2: s32[]) -> f32[500,64] {
  %r.0 = f32[500,64] parameter(0)
  %r.1 = f32[64] parameter(1)
  %r.2 = s32[] parameter(2)
  %row = f32[1,64] bitcast(%r.1)
  ROOT %new = f32[500,64] dynamic-update-slice(%r.0, %row, %r.2, %r.2)
}

ENTRY %main (x: f32[500,64], i: s32[]) -> f32[500,64] {
  %x = f32[500,64] parameter(0)
  %i = s32[] parameter(1)
  %one = f32[64] fusion(%x, %i), kind=kLoop, calls=%fused
  ROOT %all = f32[500,64] fusion(%x, %one, %i), kind=kLoop, calls=%stacked
}
"""


def test_of_a_stacked_array_only_the_slice_is_moved():
    """A row is read and written by each of the two, which also read their index."""
    assert read_contents(SLICED).traffic == 4 * (64 + 64 + 1) + 4 * (64 + 64 + 1)
    alone = SLICED.replace(
        "f32[64] fusion(%x, %i), kind=kLoop, calls=%fused",
        "f32[1,64] dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,64}",
    )
    assert read_contents(alone).traffic == 4 * 128 + 4 * (64 + 64 + 1)


def test_a_program_of_xla_is_read():
    def step(x, _):
        return jnp.tanh(x @ x), None

    scan = jax.jit(lambda x: jax.lax.scan(step, x, None, length=11)[0])
    contents = read_contents(scan.lower(jnp.ones((8, 8))).compile().as_text())
    assert contents.num_unknown_loops == 0
    assert contents.num_kernels >= 11 and contents.collectives == {}
