"""Reads what Triton made of a kernel for two of its mistakes.

    unwaited      Blackwell: a buffer of tensor memory is read or written while a product that writes it may still run
    in_flight     Hopper: a product whose left factor is in registers runs on over the back edge of a loop
    overwritten   Hopper: such registers are written while the product may still run

The first two read Triton's own text (TTGIR), the last one machine code. In flight is harmless until something is
overwritten. Loops are walked twice, so that what one turn leaves meets the next; barriers are followed through what
loops carry.
"""

import re
from dataclasses import dataclass, field

from bench import sass

_NAME = r"%[\w$.#-]+"


@dataclass
class Region:
    """A line with the lines in its braces, in one or two groups."""

    line: str
    at: int
    bodies: list[list["Region"]] = field(default_factory=list)


def parsed(text):
    """The lines of a function, nested."""
    top = Region("", 0, [[]])
    stack = [top]
    for at, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"\s*loc\(.*\)\s*$", "", line).strip()
        if line.startswith("}"):
            if "{" in line[1:] and "else" in line:
                stack[-1].bodies.append([])
            elif len(stack) > 1:
                stack.pop()
            continue
        if not line or line.startswith("#"):
            continue
        node = Region(line, at)
        stack[-1].bodies[-1].append(node)
        if line.endswith("{"):
            node.bodies.append([])
            stack.append(node)
    return top


@dataclass
class Product:
    at: int
    barrier: str | None


class _Walk:
    """Follows values through loops; `products` run, oldest first."""

    def __init__(self):
        self.values, self.products, self.found, self.turn = {}, [], [], 0

    def value(self, name):
        """What it stands for: the same name in another turn is another value."""
        return self.values.get(name, name)

    def walk(self, body):
        for node in body:
            operation = re.search(r"\b(scf\.for|scf\.while|scf\.if)\b", node.line)
            if operation is None:
                name = re.match(rf"({_NAME})(?::\d+)? = ", node.line)
                if name:
                    self.values[name[1]] = f"{name[1]}@{self.turn}"
                self.step(node)
                for inner in node.bodies:
                    self.walk(inner)
            elif operation[1] == "scf.if":
                for inner in node.bodies:
                    self.walk(inner)
            else:
                self.loop(node)

    def loop(self, node):
        carried = re.search(r"iter_args\((.*?)\) ->", node.line)
        pairs = re.findall(rf"({_NAME}) = ({_NAME})", carried[1]) if carried else []
        names, given = [name for name, _ in pairs], [self.value(start) for _, start in pairs]
        for _ in range(2):
            self.turn += 1
            self.values |= dict(zip(names, given, strict=True))
            self.walk(node.bodies[-1])
            last = node.bodies[-1][-1].line if node.bodies[-1] else ""
            if last.startswith("scf.yield"):
                given = [self.value(name) for name in re.findall(_NAME, last.partition(" : ")[0])][: len(names)]
                self.back_edge(node)
            if len(given) != len(names):
                break
        result = re.match(r"(%[\w$.-]+)(?::\d+)? = ", node.line)
        if result:
            self.values |= {f"{result[1]}#{k}": value for k, value in enumerate(given)}
            if len(given) == 1:
                self.values[result[1]] = given[0]

    def step(self, node):
        raise NotImplementedError

    def back_edge(self, node):
        pass


class _Unwaited(_Walk):
    def step(self, node):
        line = node.line
        names = re.findall(_NAME, line.partition(" : ")[0])
        if "ttng.tc_gen5_mma" in line:
            operands = re.findall(_NAME, line.partition("tc_gen5_mma")[2].partition(" : ")[0])
            barrier = re.search(rf"({_NAME})\[{_NAME}\]", line)
            # without a barrier of its own a later commit names one; not asynchronous, it is waited for
            if "is_async" in line:
                product = Product(node.at, self.value(barrier[1]) if barrier else None)
                self.products.append((self.value(operands[2]), product))
        elif "ttng.tc_gen5_commit" in line:
            for _, product in self.products:
                product.barrier = product.barrier or self.value(names[-1])
        elif "ttng.wait_barrier" in line:
            # a barrier that a product signals has seen all products before it
            barrier = self.value(re.findall(_NAME, line.partition("wait_barrier")[2])[0])
            seen = [k for k, (_, product) in enumerate(self.products) if product.barrier == barrier]
            if seen:
                del self.products[: seen[-1] + 1]
        elif "ttng.tmem_load" in line or "ttng.tmem_store" in line:
            word, place = ("load", 0) if "tmem_load" in line else ("store", 1)
            buffer = self.value(re.findall(_NAME, line.partition(f"tmem_{word}")[2])[place])
            for of, product in self.products:
                if of == buffer:
                    self.found.append(
                        f"line {node.at}: {word} of {buffer.partition('@')[0]}, product of line {product.at}"
                    )


class _InFlight(_Walk):
    def step(self, node):
        line = node.line
        if "ttng.warp_group_dot_wait" in line:
            pending = int(re.search(r"pendings = (\d+)", line)[1])
            del self.products[: max(0, len(self.products) - pending)]
        elif "ttng.warp_group_dot " in line and "isAsync = true" in line:
            # types: left * right -> result
            left = re.search(r" : (tensor|!ttg\.memdesc)<", line)
            self.products.append((node.at, bool(left) and left[1] == "tensor"))

    def back_edge(self, node):
        for at, in_registers in self.products:
            if in_registers:
                self.found.append(
                    f"line {at}: left factor in registers, in flight at the end of the loop of {node.at}"
                )


def _of(walk, text):
    walk.walk(parsed(text).bodies[0])
    return list(dict.fromkeys(walk.found))


def unwaited(ttgir):
    return _of(_Unwaited(), ttgir)


def in_flight(ttgir):
    return _of(_InFlight(), ttgir)


# ---- in machine code


_NOTHING_WRITTEN = (
    *("ST", "RED", "BAR", "BRA", "EXIT", "DEPBAR", "LDGSTS", "LDGDEPBAR", "MEMBAR", "WARP", "FENCE", "SYNCS"),
    *("PLOP3", "R2P", "FCHK", "BSSY", "BSYNC"),
)


def written(instruction):
    """Registers that it writes."""
    base, parts = instruction.base, instruction.name.split(".")
    if base.startswith(_NOTHING_WRITTEN) or base.endswith("SETP"):
        return ()
    operands = [operand.strip() for operand in instruction.operands.split(",")]
    # predicates that are results stand first
    while operands and re.fullmatch(r"!?U?P[\dT]", operands[0]):
        del operands[0]
    first = re.match(r"R(\d+)\b", operands[0]) if operands else None
    if not first:
        return ()
    count = 1
    if base in sass.TENSOR:
        shape = re.search(r"(\d+)x(\d+)x(\d+)", instruction.name)
        count = int(shape[2]) // 2 if shape else 4
    elif base in ("LDG", "LDS", "LDSM", "LDL", "LDC", "ATOM", "ATOMG", "LD"):
        count = max(1, sass.width(instruction.name) // 4)
    elif base in sass.FP64 or "WIDE" in parts or (base == "CS2R" and "32" not in parts) or parts[1:2] == ["F64"]:
        count = 2
    return tuple(range(int(first[1]), int(first[1]) + count))


def overwritten(program):
    """Registers that are written while a product of Hopper that reads them may still run."""
    # of each block: the products that may run when it begins, in their order, each with its registers
    begins, waiting, found = {}, [(program.blocks[0], ())], []
    while waiting:
        block, running = waiting.pop()
        if running in begins.setdefault(block, set()):
            continue
        begins[block].add(running)
        groups, opened = list(running), []
        for instruction in program.instructions[block.start : block.stop]:
            if instruction.base == "HGMMA":
                source = re.match(r"R(\d+)\b", instruction.operands.split(",")[1].strip())
                # of 64 x 16 halves, or of as many bytes, a thread has four registers
                opened += [(instruction.at, int(source[1]) + k) for k in range(4)] if source else []
                if "gsb0" in instruction.operands:
                    groups.append(tuple(opened))
                    opened = []
                continue
            if instruction.name.startswith("WARPGROUP.DEPBAR"):
                left = int(instruction.operands.split(",")[-1], 16)
                groups = groups[len(groups) - left :] if left < len(groups) else groups
                continue
            writes = set(written(instruction))
            for at, register in [pair for group in (*groups, opened) for pair in group]:
                if register in writes:
                    found.append(
                        f"R{register} is written at {instruction.at:#x}, product at {at:#x} may still read it"
                    )
        # what nobody waits for is the same after some turns
        waiting += [(after, tuple(groups[-8:])) for after in block.next]
    return list(dict.fromkeys(found))


def hazards(ttgir, code=""):
    """What is wrong, and what is only remarkable."""
    wrong, notes = unwaited(ttgir), in_flight(ttgir)
    if "HGMMA" in code:
        found = overwritten(sass.Program(code))
        wrong += [*found[:1], f"{len(found)} such writes"] if found else []
    return wrong, notes
