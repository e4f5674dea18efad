"""What devices tell each other, read off a compiled program."""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


def collective_bytes(program: str) -> int:
  """Bytes of the results of all collectives of a compiled program's text, on one device."""
  total = 0
  for line in program.splitlines():
    match = re.match(rf"\s*(?:ROOT )?\S+ = (.*?) (?:{'|'.join(KINDS)})(?:-start)?\(", line)
    if match:
      for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
        total += BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)
  return total
