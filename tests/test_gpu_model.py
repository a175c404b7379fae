"""Machine code is read, and speeds of GPU kernels modelled: counts by hand, and those of a kernel known by heart."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench import gpu_model, hazards, sass
from bench.gpu_model import Shape, bounds, per_pair, seconds, work_of

ROOT = Path(__file__).parent.parent


def code(text):
    """As cuobjdump prints it: an instruction a line, 16 bytes each. Labels before a colon stand for addresses."""
    lines = [line.strip() for line in text.strip().splitlines()]
    places, plain = {}, []
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = 16 * len(plain)
        else:
            plain.append(line)
    for label, at in places.items():
        plain = [line.replace(f"<{label}>", hex(at)) for line in plain]
    return "\n".join(f"        /*{16 * k:04x}*/      {line} ;    /* 0x0 */" for k, line in enumerate(plain))


# 16 x 16 pairs by four warps: two pairs a thread. Two exponentials, a loop over coordinates of one a turn, a value
DIFFERENCES = """
    S2R R0, SR_TID.X
    LDG.E R1, desc[UR4][R2.64]
    tile:
    LDG.E R3, desc[UR4][R4.64]
    coordinates:
    LDS R5, [R6]
    LDS.64 R8, [R7]
    FADD R10, R5, -R8
    FADD R11, R5, -R9
    FFMA R12, R10, R10, R12
    FFMA R13, R11, R11, R13
    IADD3 R14, R14, 0x1, RZ
    ISETP.GE.AND P0, PT, R14, R15, PT
    @!P0 BRA <coordinates>
    FMUL R12, R12, R16
    FMUL R13, R13, R16
    MUFU.EX2 R12, R12
    MUFU.EX2 R13, R13
    FFMA R17, R12, R18, R17
    FFMA R17, R13, R19, R17
    BAR.SYNC.DEFER_BLOCKING 0x0
    @P1 BRA <tile>
    STG.E desc[UR4][R20.64], R17
    EXIT
"""
# products where P2 says so, else differences: 128 x 64 pairs by four warps would be 64 a thread; here it is two
BOTH = """
    S2R R0, SR_TID.X
    tile:
    @P2 BRA <products>
    coordinates:
    FADD R10, R5, -R8
    FADD R11, R5, -R9
    FFMA R12, R10, R10, R12
    FFMA R13, R11, R11, R13
    @!P0 BRA <coordinates>
    BRA <join>
    products:
    LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64]
    HGMMA.64x8x16.F32 R12, gdesc[UR8], R12, gsb0
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    join:
    MUFU.EX2 R12, R12
    MUFU.EX2 R13, R13
    @P1 BRA <tile>
    EXIT
"""
SHAPE = Shape(bn=16, bm=16, warps=4, registers=64, shared=0, dims=5)


def test_loops_are_nested_and_counted_exactly():
    program = sass.Program(code(DIFFERENCES))
    tile, coordinates = program.loops
    assert (tile.depth, coordinates.depth, coordinates.parent) == (1, 2, tile)
    inside = program.path(coordinates, lambda _: 1, lambda counts: counts["instructions"])
    expected = {"instructions": 9, "fp32": 4, "fadd": 2, "ffma": 2, "integer": 2, "shared_loads": 2}
    assert inside == Counter(expected | {"shared_bytes": 32 * (4 + 8)})
    turn = program.path(tile, lambda _: 5, lambda counts: counts["instructions"])
    assert turn["instructions"] == 1 + 5 * 9 + 8
    assert (turn["fp32"], turn["special"], turn["barriers"]) == (5 * 4 + 4, 2, 1)
    assert (turn["global_loads"], turn["global_bytes"]) == (1, 128)


def test_turns_of_the_coordinates_follow_from_their_number():
    program = sass.Program(code(DIFFERENCES))
    work = work_of(program, SHAPE, "differences")
    assert work.tiles == 1
    assert work.counts["instructions"] == 1 + 5 * 9 + 8
    assert [(part.depth, part.turns) for part in work.parts] == [(1, 1), (2, 5)]
    # a pair has a half of what a thread has
    assert per_pair(work, SHAPE)["fp32"] == (5 * 4 + 4) / 2
    assert work.outside["instructions"] == 4
    assert not work.free
    # a load in each tile, and a barrier
    assert work.stalls == gpu_model.LOAD + gpu_model.BARRIER


def test_two_tiles_of_one_turn_are_told_by_their_exponentials():
    twice = DIFFERENCES.replace(
        "MUFU.EX2 R12, R12", "MUFU.EX2 R12, R12\n    MUFU.EX2 R21, R21\n    MUFU.EX2 R22, R22"
    )
    assert work_of(sass.Program(code(twice)), SHAPE, "differences").tiles == 2


def test_exponentials_in_two_layouts_are_of_one_tile():
    ttgir = """
        %k = math.exp2 %t : tensor<16x16xf32, #mma>
        %l = math.exp2 %u : tensor<16x16xf32, #ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 2}>>
        %m = math.exp2 %v : tensor<16xf32, #ttg.slice<{dim = 1, parent = #mma}>>
    """
    assert gpu_model.exponentials(ttgir, 16, 16) == 2
    assert gpu_model.exponentials("", 16, 16) == 1
    more = "MUFU.EX2 R21, R21\n    MUFU.EX2 R22, R22\n    "
    program = sass.Program(code(DIFFERENCES.replace("MUFU.EX2 R12, R12", f"{more}MUFU.EX2 R12, R12")))
    work = work_of(program, replace(SHAPE, exponentials=2), "differences")
    assert (work.tiles, work.counts["exp2"]) == (1, 4)


def test_a_tile_that_is_far_is_not_counted():
    program = sass.Program(code(BOTH))
    shape = replace(SHAPE, length=16, products=1, bk=16)
    assert gpu_model.form_of(shape) == "products"
    products = work_of(program, shape, "products")
    assert products.counts["multiply_adds"] == 64 * 8 * 16 / 4
    assert (products.counts["copies_16"], products.counts["fadd"]) == (1, 0)
    assert products.counts["instructions"] == 1 + 3 + 3
    assert products.stalls == gpu_model.WAIT + gpu_model.COPY
    assert gpu_model.form_of(SHAPE) == "differences"
    # with the same products on both ways the one without differences
    joined = "HGMMA.64x8x16.F32 R12, gdesc[UR8], R12, gsb0"
    program = sass.Program(code(BOTH.replace(f"    {joined}\n", "").replace("tile:", f"tile:\n    {joined}")))
    assert work_of(program, shape, "products").counts["fadd"] == 0


def test_spills_are_told_by_their_loops():
    """Of two turns the second one, narrower and by differences too, may spill."""
    turn = """
    {0}:
    HGMMA.64x8x16.F32 R12, gdesc[UR8], R12, gsb0
    {1}MUFU.EX2 R12, R12
    {2}
    @P1 BRA <{0}>
    """
    differences = """coordinates:
    FADD R10, R5, -R8
    FADD R11, R5, -R9
    FFMA R12, R10, R10, R12
    FFMA R13, R11, R11, R13
    @!P0 BRA <coordinates>
    """
    spill, second = "STL [R1], R3\n    LDL R3, [R1]\n    ", "MUFU.EX2 R13, R13"
    shape = replace(SHAPE, length=16, products=1, bk=16)

    def spilled(in_first="", in_second="", before=""):
        first = turn.format("first", in_first, second)
        text = before + first + turn.format("second", in_second + differences, "NOP") + "EXIT"
        return gpu_model.spilled(sass.Program(code(text)), shape)

    assert spilled(in_first=spill) == 2
    assert spilled(in_second=spill, before=spill) == 0
    # a kernel without pairs: any loop
    sums = "sums:\n    " + spill + "FADD R1, R2, R3\n    @P1 BRA <sums>\n    EXIT"
    assert gpu_model.spilled(sass.Program(code(sums)), None) == 2


def test_products_over_coordinates_turn_as_often_as_their_multiply_adds_say():
    text = """
    tile:
    MOV R2, R3
    product:
    HGMMA.64x8x16.F32.BF16 R12, gdesc[UR8], R12, gsb0
    @!P0 BRA <product>
    MUFU.EX2 R12, R12
    MUFU.EX2 R13, R13
    MUFU.EX2 R14, R14
    MUFU.EX2 R15, R15
    @P1 BRA <tile>
    EXIT
    """
    # 64 x 8 pairs, of 48 coordinates, by three products, are nine of 16 coordinates
    shape = replace(SHAPE, bn=64, bm=8, length=48, products=3)
    work = work_of(sass.Program(code(text)), shape, "products")
    assert [part.turns for part in work.parts] == [1, 9]
    assert per_pair(work, shape)["multiply_adds"] == 3 * 48


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # left factor in shared memory, and in registers
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0", (16384, (64 * 16 + 64 * 16) * 2 / 4)),
        ("HGMMA.64x32x16.F32 R24, R4, gdesc[UR8], R24", (8192, 32 * 16 * 2 / 4)),
        ("HMMA.16816.F32.BF16 R4, R8, R10, R4", (2048, 0)),
    ],
)
def test_multiply_adds_of_a_warp(line, expected):
    assert sass.multiply_adds(sass.parse(code(line))[0]) == expected


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [("LDG.E", 4), ("LDG.E.128", 16), ("LDGSTS.E.64", 8), ("LDSM.16.M88.4", 16), ("LDG.E.U16", 2)],
)
def test_width_of_a_load(name, bytes_):
    assert sass.width(name) == bytes_


def test_instructions_on_two_numbers():
    counts = sass.counts_of(sass.parse(code("FFMA2 R4, R6, R8, R4"))[0])
    assert counts == Counter(instructions=1, fp32=1, ffma=2)


def test_the_way_of_split_warps_is_not_counted():
    text = """
    BRA.DIV UR4, <slow>
    MUFU.EX2 R1, R1
    EXIT
    slow:
    MUFU.EX2 R2, R2
    MUFU.EX2 R3, R3
    EXIT
    """
    program = sass.Program(code(text))
    assert program.path(program.whole, lambda _: 1, lambda counts: counts["instructions"])["instructions"] == 3


def test_a_loop_that_is_left_by_a_call():
    """As on Ampere and Ada."""
    text = """
    outer:
    MOV R1, R2
    inner:
    MUFU.EX2 R1, R1
    @!P0 CALL.REL.NOINC <end>
    BRA <inner>
    end:
    CALL.REL.NOINC <routine>
    @P1 BRA <outer>
    EXIT
    routine:
    RET.REL.NODEC R4 0x0
    """
    outer, inner = sass.Program(code(text)).loops
    assert inner.parent is outer
    assert (len(outer.blocks), len(inner.blocks)) == (4, 2)


def test_turns_of_the_loop_around_follow_from_the_steps():
    ttir = """
        %c1024_i32 = arith.constant 1024 : i32 loc(#loc)
        %c64_i32 = arith.constant 64 : i32 loc(#loc)
        %0 = scf.for %j0 = %a to %b step %c1024_i32 iter_args(%v = %w) -> (tensor<64xf64>)  : i32 {
          %1 = scf.for %j = %j0 to %c step %c64_i32 iter_args(%t = %u) -> (tensor<64x64xf32>)  : i32 {
            %k = math.exp2 %d2 : tensor<64x64xf32> loc(#loc)
          } loc(#loc)
        } loc(#loc)
    """
    assert gpu_model.outer_turns(ttir, 64) == 16
    assert gpu_model.outer_turns(ttir, 32) == 1
    assert gpu_model.outer_turns(ttir.replace("scf.for %j0", "scf.if %j0"), 64) == 1


# ---- the model


def work(stalls=0.0, free=False, **counts):
    return gpu_model.Work(1, Counter(counts), [], Counter(), stalls, free, "products")


def test_bounds_of_a_tile():
    # of 128 x 64 pairs, 32 a thread of eight warps; one program of 255 registers has the multiprocessor for itself
    shape = Shape(bn=128, bm=64, warps=8, registers=255, shared=0, dims=64)
    assert shape.resident == 1
    # ten instructions, one of them an exponential, and 64 multiply-adds a pair
    of = bounds(work(instructions=320, special=32, multiply_adds=64 * 32 * 32), shape)
    issue = 320 * 8 / 4 / gpu_model.SHARE
    tensor = 128 * 64 * 64 / gpu_model.TENSOR / gpu_model.SHARE
    # a barrier in each tile: nothing overlaps
    assert of.clocks == pytest.approx(issue + tensor)
    assert of.predicted == pytest.approx(of.serial)
    assert of.binding == "issue + waits"
    assert of.overlapped == pytest.approx(128 * 64 * 132 * 1.755e9 / 1e12 / max(issue, tensor))
    # without one, two groups of four warps each fill half of the other's waits
    freely = bounds(work(free=True, instructions=320, special=32, multiply_adds=64 * 32 * 32), shape)
    alone, most = (issue + tensor) / 2, max(issue, tensor)
    assert freely.clocks == pytest.approx(most + (alone - most / 2) / 2)


def test_the_slowest_pipe_binds():
    shape = Shape(bn=128, bm=64, warps=8, registers=64, shared=0, dims=64)
    many = {"instructions": 100, "special": 10}
    for pipe, counts in {
        "special": {"special": 60},
        "integer": {"integer": 1000},
        "tensor": {"multiply_adds": 10**6},
        "store": {"store_bytes": 10**5},
        "L2": {"l2_bytes": 10**5},
        "shared": {"shared_loads": 500},
    }.items():
        assert bounds(work(**many | counts), shape).binding.startswith(pipe)


def test_more_programs_hide_more():
    shape = Shape(bn=128, bm=64, warps=8, registers=64, shared=0, dims=64)
    one = work(stalls=2000.0, instructions=320, special=32)
    rates = [bounds(one, shape, resident).predicted for resident in (1, 2, 4)]
    assert rates == sorted(rates)
    assert rates[-1] < bounds(one, shape).overlapped


@pytest.mark.parametrize(
    ("bm", "dims", "multiply_adds", "instructions", "special", "reported"),
    [
        # attention's forward pass in Triton on an H100, two products of 64 a pair: 350e12 operations a second
        (64, 64, 128, 10, 1, 350e12 / 256 / 1e12),
        # distances by one product and a running minimum, on an H200
        (128, 64, 64, 5, 0, 2.14),
        (128, 128, 128, 5, 0, 1.6),
    ],
)
def test_the_model_is_near_what_is_reported(bm, dims, multiply_adds, instructions, special, reported):
    shape = Shape(bn=128, bm=bm, warps=8, registers=230, shared=0, dims=dims)
    of_pair = {"instructions": instructions, "special": special, "multiply_adds": multiply_adds * 32}
    one = work(stalls=60.0, **{name: n * shape.per_thread for name, n in of_pair.items()})
    assert bounds(one, shape).predicted == pytest.approx(reported, rel=0.4)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(255, 0, 8, 1), (128, 0, 8, 2), (64, 100 << 10, 4, 2), (32, 0, 32, 2), (168, 0, 4, 3)],
)
def test_resident_programs(registers, shared, warps, resident):
    assert replace(SHAPE, registers=registers, shared=shared, warps=warps).resident == resident


def test_waves_of_a_launch():
    shape = Shape(bn=64, bm=64, warps=8, registers=255, shared=0, dims=64)
    one = work(instructions=1000)
    tile = bounds(one, shape).clocks / gpu_model.CLOCK
    for programs, waves in ((1, 1), (132, 1), (133, 2), (264, 2), (265, 3)):
        took = seconds(one, shape, programs, programs * 10 * 64 * 64)
        assert took - gpu_model.LAUNCH == pytest.approx(waves * 10 * tile)
    # a program that meets less than a tile computes a whole one
    assert seconds(one, shape, 1, 1) - gpu_model.LAUNCH == pytest.approx(tile)


# ---- the compiler's mistakes


BLACKWELL = """
    %acc = ttng.tmem_alloc : () -> !ttg.memdesc<64x64xf32, #tmem, mutable>
    ttng.tc_gen5_mma %a, %b, %acc, %false, %true, %bar[%true] {is_async} : !ttg.memdesc<64x32xbf16>
    ttng.wait_barrier %bar, %c0, %true : !ttg.memdesc<1xi64>
    %x = ttng.tmem_load %acc : !ttg.memdesc<64x64xf32, #tmem, mutable> -> tensor<64x64xf32>
"""
# the product of a turn is waited for in the next turn, and behind the loop
PIPELINED = """
    %acc = ttng.tmem_alloc : () -> !ttg.memdesc<64x64xf32, #tmem, mutable>
    ttng.tc_gen5_mma %a, %b, %acc, %false, %true, %bar0[%true] {is_async} : !ttg.memdesc<64x32xbf16>
    %r:2 = scf.for %i = %c0 to %n step %c1 iter_args(%old = %bar0, %k = %c0) -> (!ttg.memdesc<1xi64>, i32)  : i32 {
      %new = ttg.memdesc_index %bars[%k] : !ttg.memdesc<2x1xi64> -> !ttg.memdesc<1xi64>
      ttng.wait_barrier %old, %phase deps %a, %b : !ttg.memdesc<1xi64>
      %x = ttng.tmem_load %acc : !ttg.memdesc<64x64xf32, #tmem, mutable> -> tensor<64x64xf32>
      ttng.tc_gen5_mma %a, %b, %acc, %true, %true, %new[%true] {is_async} : !ttg.memdesc<64x32xbf16>
      scf.yield %new, %k : !ttg.memdesc<1xi64>, i32
    }
    ttng.wait_barrier %r#0, %phase : !ttg.memdesc<1xi64>
    %y = ttng.tmem_load %acc : !ttg.memdesc<64x64xf32, #tmem, mutable> -> tensor<64x64xf32>
"""


def test_products_that_are_waited_for_are_no_hazard():
    assert hazards.unwaited(BLACKWELL) == []
    assert hazards.unwaited(PIPELINED) == []


def test_a_buffer_that_is_read_before_its_product_is_waited_for():
    swapped = BLACKWELL.strip().splitlines()
    swapped[2:] = swapped[:1:-1]
    assert hazards.unwaited("\n".join(swapped)) == ["line 3: load of %acc, product of line 2"]
    # of the product of the turn before
    late = PIPELINED.replace("ttng.wait_barrier %old, %phase deps %a, %b : !ttg.memdesc<1xi64>\n", "")
    assert any("load of %acc" in found for found in hazards.unwaited(late))
    # behind the loop
    assert hazards.unwaited(PIPELINED.replace("wait_barrier %r#0", "wait_barrier %other"))
    # a barrier has seen the products before its own
    chained = BLACKWELL.replace("%bar[%true]", "%first[%true]", 1).replace(
        "    ttng.wait_barrier",
        "    ttng.tc_gen5_mma %a, %b, %acc, %true, %true, %bar[%true] {is_async} : !ttg.memdesc<64x32xbf16>\n"
        "    ttng.wait_barrier",
    )
    assert hazards.unwaited(chained) == []
    assert hazards.unwaited(chained.replace("wait_barrier %bar", "wait_barrier %first"))


HOPPER = """
    %r = scf.for %i = %c0 to %n step %c1 iter_args(%acc = %zero) -> (tensor<64x64xf32, #mma>)  : i32 {
      %d = ttng.warp_group_dot %w, %y, %acc {isAsync = true} : LEFT * !ttg.memdesc<32x64xbf16> -> tensor<64x64xf32>
      %e:2 = ttng.warp_group_dot_wait %d, %y {pendings = PENDING : i32} : tensor<64x64xf32>, !ttg.memdesc<32x64xbf16>
      scf.yield %e#0 : tensor<64x64xf32, #mma>
    }
"""


@pytest.mark.parametrize(
    ("left", "pending", "found"),
    [
        ("tensor<64x32xbf16>", "0", 0),
        ("tensor<64x32xbf16>", "1", 1),
        # shared memory may be read on: its copy is awaited by the pipeline
        ("!ttg.memdesc<64x32xbf16>", "1", 0),
    ],
)
def test_a_product_of_registers_ends_before_its_loop_turns(left, pending, found):
    assert len(hazards.in_flight(HOPPER.replace("LEFT", left).replace("PENDING", pending))) == found


# the left factor is loaded in each turn, and multiplied
REGISTERS = """
    tile:
    LDS.64 R4, [R20]
    LDS.64 R6, [R20+0x40]
    WARPGROUP.ARRIVE
    HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR12].tnspB, R24, gsb0
    HGMMA.64x32x16.F32.BF16 R40, gdesc[UR16], R40, gsb0
    WARPGROUP.DEPBAR.LE gsb0, 0x1
    FADD R8, R8, R9
    @P0 BRA <tile>
    WARPGROUP.DEPBAR.LE gsb0, 0x0
    EXIT
"""


def test_registers_that_are_written_under_a_product():
    def found(text):
        return hazards.overwritten(sass.Program(code(text)))

    # all but the last product have ended
    assert found(REGISTERS) == []
    late = REGISTERS.replace("gsb0, 0x1", "gsb0, 0x2")
    assert found(late)[0] == "R4 is written at 0x0, product at 0x30 may still read it"
    assert len(found(late)) == 4
    assert "such writes" in hazards.hazards("", code(late))[0][1]
    # a wait before they are written again, and other registers
    assert found(late.replace("LDS.64 R4, [R20]", "WARPGROUP.DEPBAR.LE gsb0, 0x0\n    LDS.64 R4, [R20]")) == []
    assert found(late.replace("LDS.64 R4", "LDS.64 R60").replace("LDS.64 R6,", "LDS.64 R62,")) == []
    # within a turn
    assert found(late.replace("FADD R8", "FADD R7").replace("@P0 BRA <tile>", "NOP")) == [
        "R7 is written at 0x60, product at 0x30 may still read it"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FADD R5, R4, R3", (5,)),
        ("LDS.128 R8, [R2]", (8, 9, 10, 11)),
        ("LDSM.16.M88.4 R8, [R2]", (8, 9, 10, 11)),
        ("SHFL.BFLY PT, R5, R4, 0x2, 0x1f", (5,)),
        ("ISETP.GE.AND P5, PT, R127, R135, PT", ()),
        ("STS.64 [R5], R8", ()),
        ("F2F.F64.F32 R6, R5", (6, 7)),
        ("IMAD.WIDE R6, R5, R4, R2", (6, 7)),
        ("HGMMA.64x32x16.F32.BF16 R24, R4, gdesc[UR12], R24", tuple(range(24, 40))),
    ],
)
def test_registers_that_an_instruction_writes(line, expected):
    assert hazards.written(sass.parse(code(line))[0]) == expected


# ---- a kernel known by heart


KERNEL = """
import json, sys
from typing import NamedTuple
sys.path.insert(0, ROOT)
import torch
import triton
import triton.language as tl
from bench import gpu_model, launches

class Variant(NamedTuple):
    BN: int
    BM: int

@triton.jit
def sums_kernel(x_ptr, y_ptr, out_ptr, M, VARIANT: tl.constexpr):
    BN: tl.constexpr = VARIANT.BN
    BM: tl.constexpr = VARIANT.BM
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    x = tl.load(x_ptr + rows)
    total = tl.zeros([BN, BM], tl.float32)
    for j in range(0, M, BM):
        y = tl.load(y_ptr + j + tl.arange(0, BM))
        total += tl.exp2(x[:, None] + y[None, :])
    tl.store(out_ptr + rows, tl.sum(total, 1))

target = launches.TARGETS["90"]

def call():
    x = launches.empty(2**20)
    # not a byte of it is touched
    huge = launches.empty(2**29)
    assert huge.device.type == x.new_empty(3).device.type == torch.empty(3, device=x.device).device.type == "cuda"
    count = torch.cuda.get_device_properties(x.device).multi_processor_count
    sums_kernel[(count,)](x, huge, x, 2**20, VARIANT=Variant(64, 128), num_warps=4)

launch, = launches.recorded(target, call)
shape, work = gpu_model.read(launch, launches.compile_for(target, launch))
bound = gpu_model.bounds(work, shape)
other = launches.compile_for(launches.TARGETS["gfx942"], launch)
print(json.dumps({
    "grid": launch.grid, "tiles": work.tiles, "pair": gpu_model.per_pair(work, shape), "free": work.free,
    "binding": bound.binding, "amd": "v_exp_f32" in other.assembly, "unknown": work.notes,
}))
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """In a process of its own, because the interpreter is on in this one."""
    path = tmp_path_factory.mktemp("known") / "known.py"
    path.write_text(KERNEL.replace("ROOT", repr(str(ROOT)), 1))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_counts_of_a_compiled_kernel_are_those_by_hand(known):
    pair = known["pair"]
    # an addition of x and y, one to the sum, and an exponential; beside them loads of y, and the loop
    assert pair["fp32"] == pytest.approx(2, rel=0.03)
    assert pair["special"] == pytest.approx(1, rel=0.03)
    assert pair["instructions"] == pytest.approx(3, rel=0.2)
    assert pair.get("multiply_adds", 0) == 0
    assert known["free"]
    assert known["tiles"] >= 1
    assert not known["unknown"]


@pytest.mark.slow
def test_a_pretended_gpu_is_that_of_the_target(known):
    assert known["grid"] == [132]
    assert known["binding"].startswith("special")
    assert known["amd"]


@pytest.mark.slow
def test_bars_are_told(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "bench/offline.py", "--bars", "--only", "matmul N=100000 M=100000 D=3"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    head, bar, *of_kernels = result.stdout.splitlines()
    assert "H200" in head
    assert "bar 2.6, target 2.9" in bar
    assert len(of_kernels) >= 1
    assert "instructions" in of_kernels[0]
