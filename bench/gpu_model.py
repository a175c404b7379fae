"""What compiled kernels would take on an H200, from their machine code: kernels/gpu/MODEL.md has the assumptions.

work = work_of(program, shape, "products")      instructions of a pair
bounds(work, shape)                             clocks of a tile on each pipe, and a prediction
seconds(work, shape, programs, pairs)           of a launch
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from bench.sass import Loop, Program

MULTIPROCESSORS = 132
CLOCK = 1.755e9
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 228 << 10, 64, 32
# of a multiprocessor in a clock
SLOTS = 4
LANES = {"special": 16, "integer": 64, "fp32": 128, "fp64": 64}
UNITS = ("issue", *LANES)
_EACH = MULTIPROCESSORS * CLOCK
TENSOR = 494e12 / _EACH
SHARED_BYTES = 128
STORE_BYTES = 4.3e12 / _EACH
L2_BYTES = 5.5e12 / _EACH
MEMORY = 4.3e12
# of its issue slots and of its tensor cores a loop keeps so much busy at the best
SHARE = 0.85
# clocks: a load from the second cache, a copy from there to shared memory, a barrier, the end of a product
LOAD, COPY, BARRIER, WAIT = 270, 400, 30, 50
# clocks from an instruction of straight code to the next of its warp
STEP = 6
# seconds of a launch on the device
LAUNCH = 3e-6


_ADDS, _MULTIPLIES = ("fadd", "dadd"), ("ffma", "fmul", "dfma", "dmul")


@dataclass(frozen=True)
class Shape:
    """Of a compiled kernel: what its launch and its compiler say."""

    bn: int
    bm: int
    warps: int
    registers: int
    shared: int
    # coordinates, and those that a product of a tile takes
    dims: int
    length: int = 0
    # products of pieces: of distances, of pulls
    products: int = 0
    pulls: int = 3
    stages: int = 1
    bandwidths: int = 1
    # coordinates of a product at a time
    bk: int = 0
    # tiles between two turns of the loop around that over tiles
    outer: int = 1
    # of a pair, as the compiler writes them: one that is used in two layouts may be computed twice
    exponentials: int = 1

    @property
    def per_thread(self):
        return self.bn * self.bm / (32 * self.warps)

    @property
    def resident(self):
        """Programs of a multiprocessor."""
        each = math.ceil(self.registers / 8) * 8 * 32 * self.warps
        return max(1, min(REGISTERS // max(1, each), SHARED // (self.shared + 1024), WARPS // self.warps, PROGRAMS))


@dataclass
class Part:
    """A loop of the way through a tile."""

    depth: int
    turns: float
    known: bool
    counts: Counter


@dataclass
class Work:
    """What a warp does for one tile of pairs."""

    # tiles of one turn of the loop
    tiles: int
    counts: Counter
    parts: list[Part]
    # of a program, beside its tiles
    outside: Counter
    # clocks that a warp waits
    stalls: float
    # no barrier holds all warps of a program in each tile
    free: bool
    form: str
    notes: list[str] = field(default_factory=list)


def outer_turns(ttir, bm):
    """Tiles between two turns of the loop around the loop over tiles, from the steps of loops; 1 if there is none."""
    constants = {m[1]: int(m[2]) for m in re.finditer(r"(%\S+) = arith\.constant (-?\d+) : i(?:32|64)\b", ttir)}
    chain, depth = [], 0
    for line in ttir.splitlines():
        line = re.sub(r"loc\(.*", "", line)
        m = re.search(r"scf\.for .* step (%\S+)", line)
        depth += line.count("{") - line.count("}")
        chain = [(at, step) for at, step in chain if at <= depth]
        if m:
            chain.append((depth, constants.get(m[1], 0)))
        if "math.exp2" in line or "tt.dot" in line:
            steps = [step for _, step in chain if step > 1]
            for outer, inner in pairwise(steps):
                if inner == bm and outer % inner == 0 and outer > inner:
                    return outer // inner
    return 1


def exponentials(ttgir, bn, bm):
    """How many of a tile's pairs the compiler writes, at least 1."""
    sizes = re.findall(r"math\.exp2 .*: tensor<(\d+)x(\d+)xf32", ttgir)
    return max(1, sum(int(n) * int(m) >= bn * bm for n, m in sizes))


class _Reading:
    """One program read as one form."""

    def __init__(self, program: Program, shape: Shape, form: str):
        self.program, self.shape, self.form = program, shape, form
        self.tiles, self.parts = 1, {}
        self.inside = {loop: program.inside(loop) for loop in (*program.loops, program.whole)}
        self.own = {loop: program.own(loop) for loop in self.inside}
        # loops over coordinates, and those with products
        self.measuring = {
            loop
            for loop, own in self.own.items()
            if own["tensor"] or (loop is not program.whole and self.differs(own) >= 1 and not own["exp2"])
        }
        self.exponentials = any(map(self.has_exponentials, self.own))

    def prefer(self, counts):
        if self.form == "products":
            # a tile that is far takes differences too, coordinate by coordinate
            return counts["multiply_adds"], counts["tensor"], -self.differs(counts) // 4, counts["instructions"]
        return self.differs(counts), counts["instructions"]

    def differs(self, counts):
        """Coordinates whose differences are squared, or pulled by, for each pair."""
        adds, multiplies = (sum(counts[name] for name in names) for names in (_ADDS, _MULTIPLIES))
        found = min(adds, multiplies) / self.shape.per_thread
        # a polynomial, as of a float64 exponential, multiplies more often than it subtracts, and loads no coordinates
        loaded = counts["global_loads"] + counts["shared_loads"] >= found or not counts["fp64"]
        return found if multiplies <= 3 * adds and loaded else 0.0

    def is_far(self, loop):
        """Whether a loop is the turn of tiles that are far, of which there are none."""
        return self.form == "products" and any(self.own[inner]["exp2"] for inner in (loop, *self.below(loop)))

    def has_exponentials(self, loop):
        """Those of a whole tile. A second turn, for tiles that are far, has narrower ones."""
        return self.own[loop]["exp2"] >= 0.75 * self.shape.per_thread

    def has_distances(self, loop):
        """Whether the pairs of a tile are measured in the loop, rather than only weighed by another bandwidth."""
        if self.measuring:
            return not self.measuring.isdisjoint((loop, *self.below(loop)))
        return self.own[loop]["fadd"] >= 2 * self.shape.per_thread

    def below(self, loop):
        return [inner for child in loop.children for inner in (child, *self.below(child))]

    def tile_loop(self):
        regions = [*self.program.loops, self.program.whole]
        if self.exponentials:
            found = [loop for loop in regions if self.has_exponentials(loop)]
        else:
            # stored weights are multiplied with points
            key = next(
                k for k in ("multiply_adds", "fp64", "fp32") if self.inside[self.program.whole][k] or k == "fp32"
            )
            found = [max(regions, key=lambda loop: self.own[loop][key])]
        found = [
            loop.parent if loop.parent and not self.has_distances(loop) and self.has_distances(loop.parent) else loop
            for loop in found
        ]
        if self.form == "products":
            found = [loop for loop in found if self.inside[loop]["tensor"]] or found
        elif any(not self.inside[loop]["tensor"] for loop in found):
            found = [loop for loop in found if not self.inside[loop]["tensor"]]
        # of a loop over whole tiles and one over those at an edge the former is the hot one, and the shorter
        return min(found, key=lambda loop: self.inside[loop]["instructions"])

    def hot(self):
        """The loop over tiles, or where the whole program is one tile the loops with products or exponentials."""
        region = self.tile_loop()
        loops = [region, *self.below(region)]
        if region is self.program.whole:
            loops = [loop for loop in self.below(region) if self.inside[loop]["tensor"] or self.inside[loop]["exp2"]]
        if self.form == "products":
            loops = [loop for loop in loops if self.own[loop]["tensor"] or loop not in self.measuring]
        return loops

    def turns(self, loop: Loop):
        """How often a tile passes through a loop in it, by the work that a tile is known to need."""
        counts = self.program.path(loop, self.turns, self.prefer)
        shape, known = self.shape, True
        often = 1.0
        if counts["tensor"]:
            after = min(block.start for block in loop.blocks) > self.last_exponential()
            products = shape.pulls if after else shape.products
            needed = self.tiles * shape.bn * shape.bm * shape.length * products
            done = counts["multiply_adds"] * shape.warps
            often = needed / done if done else shape.length / max(1, shape.bk)
        elif counts["exp2"] >= shape.per_thread / 2:
            often = shape.bandwidths
        elif self.differs(counts) >= self.tiles:
            often = shape.dims / max(1, self.differs(counts) // self.tiles)
        else:
            known = False
        often = max(1, math.ceil(often - 0.25))
        self.parts[loop] = Part(loop.depth, often, known, counts)
        return often

    def last_exponential(self):
        names = (i.name for i in self.program.instructions)
        return max((k for k, name in enumerate(names) if name.startswith("MUFU.EX2")), default=math.inf)

    def stalls(self, counts):
        """Clocks that the warps of a program wait."""
        waits = counts["barriers"] * BARRIER + counts["waits"] * WAIT + counts["loading"] * LOAD
        if counts["copying"]:
            turn = counts["copying_instructions"] / SLOTS + counts["copying_multiply_adds"] / TENSOR
            turn *= self.shape.warps / counts["copying"]
            waits += counts["copying"] * max(0.0, COPY - max(0, self.shape.stages - 1) * turn)
        return waits

    def work(self):
        shape, program = self.shape, self.program
        region = self.tile_loop()
        # an unrolled loop has those of several tiles
        written = self.inside[region]["exp2"] / shape.per_thread / shape.exponentials
        self.tiles = max(1, round(written)) if self.exponentials else 1
        counts = program.path(region, self.turns, self.prefer)
        parts = [Part(region.depth, 1, True, counts), *self.parts.values()]
        stalls, outside = self.stalls(counts), Counter()
        if region.parent is not None and region.parent is not program.whole:
            around = program.path(region.parent, lambda c: 0 if c is region else 1, self.prefer)
            share = self.tiles / shape.outer if shape.outer > 1 else 0
            parts.append(Part(region.parent.depth, share, shape.outer > 1, around))
            counts = counts + Counter({name: n * share for name, n in around.items()})
            # once in a program, if nothing is known
            outside = Counter() if share else around
        skipped = {region, *region.parents}
        if region is not program.whole:
            straight = program.path(
                program.whole, lambda c: int(c not in skipped and not self.is_far(c)), lambda c: c["instructions"]
            )
            outside = outside + straight
        each = Counter({name: n / self.tiles for name, n in counts.items()})
        notes = [f"loop of {p.counts['instructions']:.0f} instructions: turns unknown" for p in parts if not p.known]
        free = counts["barriers"] < 0.5 * self.tiles
        return Work(self.tiles, each, parts, outside, stalls / self.tiles, free, self.form, notes)


def meets_pairs(program: Program, shape: Shape):
    """Whether a kernel has exponentials, products, or differences of a tile, and not only its constants."""
    found = _Reading(program, shape, "products")
    return bool(found.exponentials or found.measuring or found.inside[program.whole]["fp64"])


def work_of(program: Program, shape: Shape, form: str):
    """What a tile of pairs takes by that form, "products" or "differences"."""
    return _Reading(program, shape, form).work()


def form_of(shape: Shape):
    """How a kernel finds distances. One by products finds those of tiles that are far by differences: seldom."""
    return "products" if shape.products else "differences"


def spilled(program: Program, shape: Shape | None):
    """Loads and stores of registers that were short, in loops: the hot ones, or of a kernel without pairs in all."""
    if shape is None or not meets_pairs(program, shape):
        return sum(program.own(loop)["local"] for loop in program.loops)
    reading = _Reading(program, shape, form_of(shape))
    return sum(reading.own[loop]["local"] for loop in reading.hot())


def per_pair(work: Work, shape: Shape):
    """Instructions of a thread, bytes and multiply-adds for one pair."""
    found = Counter({name: n / shape.per_thread for name, n in work.counts.items()})
    for name in found:
        if name.endswith("bytes") or name == "multiply_adds":
            found[name] /= 32
    return found


def pipes(counts, warps):
    """Clocks of a multiprocessor for what each of so many warps does, by pipe."""
    memory = sum(counts[name] for name in ("global_loads", "shared_loads", "shared_stores", "stores", "copies"))
    moved = sum(counts[name] for name in ("global_bytes", "shared_bytes", "store_bytes", "copy_bytes"))
    found = {name: counts[name] * 32 / lanes for name, lanes in LANES.items()}
    found["issue"] = counts["instructions"] / SLOTS / SHARE
    found["tensor"] = counts["multiply_adds"] / TENSOR / SHARE
    found["operands"] = counts["tensor_bytes"] / SHARED_BYTES
    found["shared"] = max(memory, moved / SHARED_BYTES) + counts["shuffles"] + found["operands"]
    found["L2"] = counts["l2_bytes"] / L2_BYTES
    found["store"] = counts["store_bytes"] / STORE_BYTES
    return {name: warps * clocks for name, clocks in found.items()}


@dataclass
class Bounds:
    """Of pairs, 10^12 a second."""

    overlapped: float
    serial: float
    predicted: float
    binding: str
    # clocks for a tile by each of so many resident programs
    clocks: float


def bounds(work: Work, shape: Shape, resident=None):
    resident = resident or shape.resident
    of_program = pipes(work.counts, shape.warps)
    # programs, and groups of four warps where no barrier joins them, work at different places of a tile
    groups = max(1, shape.warps // 4) if work.free else 1
    streams = resident * groups
    slowest = max(of_program, key=of_program.get)
    of_units = max(of_program[name] for name in UNITS)
    of_units = max(of_units, of_program["shared"] - of_program["operands"])
    alone = (of_units + max(of_program["tensor"], of_program["operands"])) / groups + work.stalls
    overlapped = resident * of_program[slowest]
    predicted = max(overlapped, overlapped + (alone - overlapped / streams) / streams)
    binding = slowest if predicted < 1.25 * overlapped else f"{slowest} + waits"
    rate = shape.bn * shape.bm * resident * _EACH / 1e12
    serial = max(overlapped, alone * groups * resident)
    return Bounds(rate / overlapped, rate / serial, rate / predicted, binding, predicted)


def seconds(work: Work, shape: Shape, programs: int, pairs: float):
    """Of a launch of so many programs that meet so many pairs."""
    tiles = max(1.0, pairs / programs / (shape.bn * shape.bm))
    outside = work.outside["instructions"] * max(STEP, shape.warps / SLOTS / SHARE)
    left, total = programs, LAUNCH
    while left > 0:
        here = min(left, MULTIPROCESSORS * shape.resident)
        resident = math.ceil(here / MULTIPROCESSORS)
        # full waves are alike
        waves = max(1, left // (MULTIPROCESSORS * shape.resident))
        total += waves * (outside + tiles * bounds(work, shape, resident).clocks) / CLOCK
        left -= waves * here
    return total


def shape_of(launch, compiled):
    """None of a kernel that has no tile of pairs."""
    variant = launch.variant
    if variant is None or not getattr(variant, "BM", 0):
        return None
    named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
    length, products = getattr(variant, "DP", 0), getattr(variant, "DOT", 0)
    return Shape(
        bn=variant.BN,
        bm=variant.BM,
        warps=launch.warps,
        registers=compiled.registers,
        shared=compiled.shared,
        dims=named.get("D") or length or 1,
        length=length,
        products=products,
        pulls=3 if products > 1 else products,
        stages=launch.options.get("num_stages") or 1,
        bandwidths=named.get("S") or 1,
        bk=getattr(variant, "BK", 0),
        outer=outer_turns(compiled.ttir, variant.BM),
        exponentials=exponentials(compiled.ttgir, variant.BN, variant.BM),
    )


def read(launch, compiled):
    """The shape of a compiled kernel, and its work; None and None where there is no tile of pairs."""
    shape = shape_of(launch, compiled)
    if shape is None:
        return None, None
    program = Program(compiled.code)
    if not meets_pairs(program, shape):
        return None, None
    return shape, work_of(program, shape, form_of(shape))
