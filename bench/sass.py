"""Reads NVIDIA's machine code: its loops, and what one turn of a loop issues.

    program = Program(text)                 of cuobjdump --dump-sass
    program.loops                           Loop, outermost first
    program.path(region, turns, prefer)     counts of a turn, by the way through that is preferred

A count is of instructions that a warp issues, or of bytes and multiply-adds that belong to a warp.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"0x([0-9a-f]+)")
# threads of a warp
WARP = 32

# what a pipe runs at less than full rate, by the first part of an instruction's name
INTEGER = {
    *(
        "IADD3",
        "IADD",
        "IABS",
        "IMNMX",
        "VIMNMX",
        "VIMNMX3",
        "VIADD",
        "VIADDMNMX",
        "ISETP",
        "LEA",
        "LOP3",
        "LOP",
        "PLOP3",
    ),
    *("SHF", "SHL", "SHR", "SEL", "SGXT", "BMSK", "PRMT", "P2R", "R2P", "VABSDIFF"),
    *("FSEL", "FSETP", "FMNMX", "FMNMX3", "HMNMX2", "HSETP2", "F2FP", "I2FP", "I2IP"),
}
FP32 = {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "FSWZADD"}
FP64 = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX"}
# the pipe of special functions also converts
SPECIAL = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"}
# tensor cores of Ampere, Hopper, Blackwell
TENSOR = {
    "HMMA",
    "IMMA",
    "DMMA",
    "QMMA",
    "OMMA",
    "HGMMA",
    "QGMMA",
    "IGMMA",
    "UTCHMMA",
    "UTCQMMA",
    "UTCOMMA",
    "UTCIMMA",
}
# multiply-adds of a warp; HMMA names M and N and K in one number
_HMMA = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "16832": 16 * 8 * 32, "884": 8 * 8 * 4}


class Instruction(NamedTuple):
    at: int
    guard: str
    name: str
    operands: str

    @property
    def base(self):
        return self.name.partition(".")[0]


def parse(text):
    found = (_LINE.match(line) for line in text.splitlines())
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in found if m]


def width(name):
    """Bytes that a lane loads or stores."""
    parts = name.split(".")
    if "M88" in parts:
        # matrices of 8 x 8 halves, of which a lane has 4 bytes each
        return 4 * max((int(p) for p in parts if p in ("2", "4")), default=1)
    for part, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in parts:
            return size
    return 4


def multiply_adds(instruction):
    """Of a warp, of what it takes from shared memory, in bytes; HGMMA is shared by four warps."""
    name, parts = instruction.base, instruction.name.split(".")
    shape = next((p for p in parts if re.fullmatch(r"\d+x\d+x\d+", p)), "")
    if name in ("HGMMA", "QGMMA", "IGMMA") and shape:
        m, n, k = map(int, shape.split("x"))
        size = 1 if name != "HGMMA" else 2 if k == 16 else 4
        # the first source is a register where the left factor is in registers
        sources = [s.strip() for s in instruction.operands.split(",")][1:]
        left = 0 if sources and re.match(r"R\d+", sources[0]) else m * k * size
        return m * n * k / 4, (left + n * k * size) / 4
    return _HMMA.get(next((p for p in parts if p in _HMMA), ""), 0), 0


def shape_of(instruction):
    """M, N and K of a product, as its name says."""
    parts = instruction.name.split(".")
    named = next((p for p in parts if re.fullmatch(r"\d+x\d+x\d+", p) or p in _HMMA), "")
    return f"{instruction.base}.{named}" if named else instruction.base


def counts_of(instruction):
    base, name = instruction.base, instruction.name
    found = Counter(instructions=1)
    if base in FP32:
        found["fp32"] = 1
        # Blackwell's work on two numbers
        found[base[:4].lower()] = 2 if base.endswith("2") else 1
    elif base in FP64:
        found["fp64"] = 1
        found[base[:4].lower()] = 1
    elif base in SPECIAL:
        found["special"] = 1
        found["exp2"] = int(name.startswith("MUFU.EX2"))
    elif base in INTEGER:
        found["integer"] = 1
    elif base in TENSOR:
        found["tensor"] = 1
        found["multiply_adds"], found["tensor_bytes"] = multiply_adds(instruction)
    elif base == "LDG":
        found["global_loads"], found["global_bytes"] = 1, WARP * width(name)
    elif base == "LDGSTS":
        found["copies"], found[f"copies_{width(name)}"], found["copy_bytes"] = 1, 1, WARP * width(name)
        # those of 16 bytes pass by the first cache, others are often of the same few numbers, which it holds
        found["l2_bytes"] = WARP * width(name) if "BYPASS" in name else 0
    elif base in ("UTMALDG", "UBLKCP"):
        found["bulk_copies"] = 1
    elif base in ("LDS", "LDSM"):
        found["shared_loads"], found["shared_bytes"] = 1, WARP * width(name)
    elif base in ("STS", "STSM"):
        found["shared_stores"], found["shared_bytes"] = 1, WARP * width(name)
    elif base == "STG":
        found["stores"], found["store_bytes"] = 1, WARP * width(name)
    elif base in ("LDL", "STL"):
        found["local"] = 1
    elif base in ("SHFL", "REDUX"):
        found["shuffles"] = 1
    elif base == "BAR":
        found["barriers"] = 1
    elif base in ("WARPGROUP", "SYNCS") and ("DEPBAR" in name or "TRYWAIT" in name):
        found["waits"] = 1
    return found


@dataclass(eq=False)
class Block:
    """Instructions without a branch among them, by their places in the program."""

    start: int
    stop: int
    next: list["Block"] = field(default_factory=list)


@dataclass(eq=False)
class Loop:
    header: Block | None
    blocks: set
    parent: "Loop | None" = None
    children: list["Loop"] = field(default_factory=list)

    @property
    def depth(self):
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def parents(self):
        return [] if self.parent is None else [self.parent, *self.parent.parents]


def _jumps(instruction):
    """Whether it goes elsewhere, and whether it may also go on."""
    base, always = instruction.base, instruction.guard in ("", "PT", "UPT")
    if base == "BRA":
        # the way of warps that have split up, which they seldom do here
        if ".DIV" in instruction.name:
            return False, True
        return True, not (always and not re.match(r"!?U?P\d", instruction.operands))
    if base == "CALL" and not always:
        # a way out of a loop on Ampere and Ada; other calls return
        return True, True
    if base in ("EXIT", "RET"):
        return False, not always
    return False, True


class Program:
    def __init__(self, text):
        self.instructions = parse(text)
        self.blocks = self._blocks()
        # the whole program is a loop of one turn
        self.whole = Loop(None, set(self.blocks))
        self.loops = self._loops()

    def _blocks(self):
        """Those that the first one leads to."""
        code = self.instructions
        if not code:
            return []
        place = {instruction.at: k for k, instruction in enumerate(code)}
        starts, jumps = {0}, {}
        for k, instruction in enumerate(code):
            away, on = _jumps(instruction)
            target = _TARGET.findall(instruction.operands) if away else []
            if target and int(target[-1], 16) in place:
                jumps[k] = place[int(target[-1], 16)]
                starts.add(jumps[k])
            if away or not on or instruction.base in ("EXIT", "RET"):
                starts.add(k + 1)
        order = sorted(s for s in starts if s < len(code))
        blocks = {s: Block(s, e) for s, e in zip(order, [*order[1:], len(code)], strict=True)}
        for block in blocks.values():
            last = block.stop - 1
            if last in jumps:
                block.next.append(blocks[jumps[last]])
            if _jumps(code[last])[1] and block.stop in blocks:
                block.next.append(blocks[block.stop])
        reached, waiting = [], [blocks[0]]
        while waiting:
            block = waiting.pop()
            if block not in reached:
                reached.append(block)
                waiting += block.next
        return sorted(reached, key=lambda block: block.start)

    def _loops(self):
        """Natural loops: a branch back to a block that every way to it passes."""
        if not self.blocks:
            return []
        before = {block: [b for b in self.blocks if block in b.next] for block in self.blocks}
        first, everything = self.blocks[0], set(self.blocks)
        dominators = {block: {block} if block is first else everything for block in self.blocks}
        changed = True
        while changed:
            changed = False
            for block in self.blocks[1:]:
                found = set.intersection(*(dominators[b] for b in before[block])) | {block}
                changed |= found != dominators[block]
                dominators[block] = found
        loops = {}
        for block in self.blocks:
            for header in block.next:
                if header in dominators[block]:
                    loop = loops.setdefault(header, Loop(header, {header}))
                    waiting = [block]
                    while waiting:
                        at = waiting.pop()
                        if at not in loop.blocks:
                            loop.blocks.add(at)
                            waiting += before[at]
        found = sorted(loops.values(), key=lambda loop: (-len(loop.blocks), loop.header.start))
        for k, loop in enumerate(found):
            around = [other for other in found[:k] if loop.header in other.blocks and other is not loop]
            loop.parent = around[-1] if around else self.whole
            loop.parent.children.append(loop)
        return found

    def counts(self, block):
        found = Counter()
        for instruction in self.instructions[block.start : block.stop]:
            found.update(counts_of(instruction))
        return found

    def inside(self, loop):
        """Counts of everything in a loop, each instruction once."""
        found = Counter()
        for block in loop.blocks:
            found.update(self.counts(block))
        return found

    def own(self, loop):
        """Counts of a loop without the loops in it, each instruction once."""
        return self.inside(loop) - sum((self.inside(child) for child in loop.children), Counter())

    def path(self, loop, turns, prefer):
        """Counts of one turn: of the way from its header back, or to the end, for which prefer(counts) is greatest.

        turns(child) is how often a turn passes through a loop in it. Beside instructions, `loading` counts the turns
        of this loop and of those in it that load from global memory, `copying` those that copy from there to shared
        memory, and `copying_...` what these issue in all.
        """
        inner = {block: child for child in loop.children for block in child.blocks}
        nodes = [loop.header or self.blocks[0]]
        best = {}

        def node_of(block):
            return inner.get(block, block)

        def leaves(node):
            """Nodes that follow in the loop, and whether a turn may end here."""
            blocks = node.blocks if isinstance(node, Loop) else [node]
            out = [b for block in blocks for b in block.next if not (isinstance(node, Loop) and b in blocks)]
            ends = any(b is loop.header for b in out) or (loop.header is None and any(not b.next for b in blocks))
            return [node_of(b) for b in out if b in loop.blocks and b is not loop.header], ends

        def weight(node):
            if not isinstance(node, Loop):
                found = self.counts(node)
                loads, copies = found["global_loads"], found["copies"] + found["bulk_copies"]
                return found + Counter(own_loads=loads, own_copies=copies)
            often = turns(node)
            if not often:
                return Counter()
            return Counter({name: often * n for name, n in self.path(node, turns, prefer).items()})

        # depth first, without recursion; an edge back into what is open is left out
        stack, state = [(node_of(nodes[0]), None)], {}
        while stack:
            node, following = stack.pop()
            if following is None:
                if node in state:
                    continue
                state[node] = "open"
                following = leaves(node)
                stack.append((node, following))
                stack += [(n, None) for n in following[0] if n not in state]
                continue
            after, ends = following
            ways = [best[n] for n in after if n in best]
            if ends:
                ways.append(Counter())
            state[node] = "done"
            if ways:
                best[node] = weight(node) + max(ways, key=prefer)
        found = best.get(node_of(nodes[0]), Counter()).copy()
        if found.pop("own_loads", 0):
            found["loading"] += 1
        if found.pop("own_copies", 0):
            found["copying"] += 1
            for name in ("instructions", "multiply_adds"):
                found[f"copying_{name}"] += found[name]
        return found
