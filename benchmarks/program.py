"""What a compiled program does, counted in its optimised HLO; of any platform, without running it.

The HLO is read through the protocol buffers that TensorFlow ships.
"""

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import jax
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

REARRANGING = ("pad", "concatenate", "transpose", "copy")  # move numbers, compute none
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Of these only a part of the operand is read, or of the result written.
_SLICING = ("slice", "dynamic-slice", "gather")
# Touch no memory themselves; what a called computation does is counted in it.
_FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
  "conditional", "async-start", "async-update", "async-done", "partition-id", "replica-id",
)  # fmt: skip
_CUDNN, _CUBLAS = "__cudnn$conv", "__cublas$"

Computation = Mapping[int, hlo_pb2.HloInstructionProto]


@dataclasses.dataclass(frozen=True)
class Chip:
  """What bounds a program's time on a device, by the maker's figures.

  Attributes:
    peak: FLOP/s of products and convolutions by the type of their operands, 'bfloat16', 'float32'.
    bandwidth: bytes a second between the device and its memory.
    link: bytes a second that a device sends to others.
    scratch: number of the memory space in HLO that is no such memory but the core's own.
  """

  peak: Mapping[str, float]
  bandwidth: float
  link: float
  scratch: int | None = None


@dataclasses.dataclass
class Cost:
  """What one run of a program costs a device; loops count as often as they turn.

  Attributes:
    flops: of convolutions and matrix products, two for each product of numbers.
    bytes: read from and written to memory, if every operation reads its operands and writes its
      results.
    collectives: bytes of the collectives' results.
    seconds: with a `Chip`, the sum over operations of the larger of FLOPs / peak and bytes /
      bandwidth, and of the collectives' bytes / link: a bound that nothing running one after the
      other undercuts, no measurement.
    products: convolutions and matrix products by kind.
    rearranged: operations of `REARRANGING` by kind, in fusions too.
    rearranged_bytes: of their results.
  """

  flops: float = 0
  bytes: float = 0
  collectives: float = 0
  seconds: float = 0
  products: Counter[str] = dataclasses.field(default_factory=Counter)
  rearranged: Counter[str] = dataclasses.field(default_factory=Counter)
  rearranged_bytes: Counter[str] = dataclasses.field(default_factory=Counter)


def count(compiled: jax.stages.Compiled, chip: Chip | None = None) -> Cost:
  """Returns what a compiled program costs.

  Args:
    compiled: of `jax.jit(...).lower(...).compile()`.
    chip: for the time; None: only counts.
  """
  (module,) = compiled.runtime_executable().hlo_modules()
  module = hlo_pb2.HloModuleProto.FromString(module.as_serialized_hlo_module_proto())
  return _Counting(module, chip or Chip({}, math.inf, math.inf)).cost


class _Counting:
  """One walk through a module."""

  def __init__(self, module: hlo_pb2.HloModuleProto, chip: Chip):
    self.chip, self.cost = chip, Cost()
    self.computations = {c.id: {i.id: i for i in c.instructions} for c in module.computations}
    self.roots = {c.id: c.root_id for c in module.computations}
    self._walk(module.entry_computation_id, 1)

  def _walk(self, computation: int, times: int) -> None:
    """Counts a computation that runs `times` times, operation by operation."""
    instructions = self.computations[computation]
    for instruction in instructions.values():
      opcode, called = instruction.opcode, instruction.called_computation_ids
      if opcode == "while":
        for part in called:
          self._walk(part, times * self._turns(instruction))
      elif opcode in ("call", "conditional", "async-start"):
        for part in called:
          self._walk(part, times)
      elif opcode not in _FREE and not opcode.endswith("-done"):
        self._operation(instructions, instruction, times)

  def _turns(self, loop) -> int:
    """How often a loop turns, as the compiler knows it or the loop's condition says."""
    known = re.search(rb'"known_trip_count":\{"n":"(\d+)"', loop.backend_config)
    if known:
      return int(known[1])
    condition = self.computations[loop.called_computation_ids[1]]
    bounds = [
      inner.literal.s32s[0]
      for instruction in condition.values()
      for inner, _ in self._inside(instruction, condition)
      if inner.opcode == "constant" and inner.literal.s32s
    ]
    return max(bounds, default=1)

  def _operation(self, instructions: Computation, instruction, times: int) -> None:
    """Adds one operation, a fusion or a single instruction."""
    cost, seconds = self.cost, 0.0
    for inner, scope in self._inside(instruction, instructions):
      kind, flops, dtype = _product(inner, scope)
      if flops:
        cost.flops += times * flops
        cost.products[kind] += times
        seconds += flops / self.chip.peak.get(dtype, math.inf)
      if inner.opcode in REARRANGING:
        cost.rearranged[inner.opcode] += times
        cost.rearranged_bytes[inner.opcode] += times * _bytes(inner.shape)
    if instruction.opcode.removesuffix("-start") in _COLLECTIVES:
      shape = instruction.shape
      # A started one returns its operands beside its results.
      size = _bytes(shape) / (2 if instruction.opcode == "all-gather-start" else 1)
      cost.collectives += times * size
      cost.seconds += times * size / self.chip.link
      return
    moved = self._traffic(instructions, instruction)
    cost.bytes += times * moved
    cost.seconds += times * max(seconds, moved / self.chip.bandwidth)

  def _inside(self, instruction, scope: Computation) -> Iterator[tuple]:
    """An operation's instructions, each with the computation that it stands in."""
    yield instruction, scope
    if instruction.opcode == "fusion":
      for called in instruction.called_computation_ids:
        for inner in self.computations[called].values():
          yield from self._inside(inner, self.computations[called])

  def _traffic(self, scope: Computation, instruction) -> float:
    """Bytes that an operation reads and writes."""
    space = self.chip.scratch
    operands = [scope[i] for i in instruction.operand_ids]
    if instruction.opcode in _SLICING:
      return 2 * _bytes(instruction.shape, space)
    if instruction.opcode == "dynamic-update-slice":
      return 2 * _bytes(operands[1].shape, space)
    if instruction.opcode.endswith("-start"):  # a copy, from or to the core's own memory
      return _bytes(operands[0].shape, space) + _bytes(instruction.shape.tuple_shapes[0], space)
    if instruction.opcode != "fusion":
      return _bytes(instruction.shape, space) + sum(_bytes(o.shape, space) for o in operands)
    (called,) = instruction.called_computation_ids
    inner = self.computations[called]
    root = inner[self.roots[called]]
    updated = None
    if root.opcode == "dynamic-update-slice":  # in place
      updated = root.operand_ids[0]
      moved = _bytes(inner[root.operand_ids[1]].shape, space)
    else:
      moved = _bytes(instruction.shape, space)
    for parameter in inner.values():
      if parameter.opcode == "parameter" and parameter.id != updated:
        users = [i for i in inner.values() if parameter.id in i.operand_ids]
        read = users if users and all(u.opcode in _SLICING for u in users) else [parameter]
        operand = operands[parameter.parameter_number]
        if _bytes(operand.shape, space):
          moved += sum(_bytes(r.shape) for r in read)
    return moved


def _bytes(shape: xla_data_pb2.ShapeProto, but_in: int | None = None) -> int:
  """Bytes of an array, or of all in a tuple; but those in a memory space."""
  if shape.tuple_shapes:
    return sum(_bytes(part, but_in) for part in shape.tuple_shapes)
  if but_in is not None and shape.layout.memory_space == but_in:
    return 0
  bits = re.fullmatch(r"[A-Z]+?(\d+)\w*", xla_data_pb2.PrimitiveType.Name(shape.element_type))
  return math.prod(shape.dimensions) * (int(bits[1]) if bits else 8) // 8


def _product(instruction, scope: Computation) -> tuple[str, float, str]:
  """Kind, FLOPs and the operands' type of a convolution or matrix product; else no FLOPs."""
  if instruction.opcode not in ("dot", "convolution", "custom-call"):
    return "", 0, ""
  target = instruction.custom_call_target
  if instruction.opcode == "custom-call" and not target.startswith((_CUDNN, _CUBLAS)):
    return "", 0, ""
  left, right = (scope[i].shape for i in instruction.operand_ids[:2])
  result = (*instruction.shape.tuple_shapes, instruction.shape)[0]  # cuDNN adds its workspace
  dtype = "bfloat16" if left.element_type == xla_data_pb2.BF16 else "float32"
  if instruction.opcode == "dot" or target.startswith(_CUBLAS):
    if target:
      config = json.loads(instruction.backend_config)["gemm_backend_config"]
      axes = config["dot_dimension_numbers"]["lhs_contracting_dimensions"]
    else:
      axes = instruction.dot_dimension_numbers.lhs_contracting_dimensions
    contracted = math.prod(left.dimensions[int(axis)] for axis in axes)
    return "product", 2 * math.prod(result.dimensions) * contracted, dtype
  numbers, window = instruction.convolution_dimension_numbers, instruction.window.dimensions
  if not window:  # a product that a TPU's compiler writes as convolution
    contracted = left.dimensions[numbers.input_feature_dimension]
    return "product", 2 * math.prod(result.dimensions) * contracted, dtype
  # For each place of the output as many products as the kernel has numbers for one output channel.
  places, kernel = result, right
  kind = "convolution"
  if target:
    kind = target.removeprefix(_CUDNN)
    if kind.startswith("BackwardInput"):
      places = left
    elif kind.startswith("BackwardFilter"):
      places, kernel = right, result
  flops = 2 * math.prod(places.dimensions) * math.prod(kernel.dimensions)
  flops /= kernel.dimensions[numbers.kernel_output_feature_dimension]
  # Zeros between the numbers of a gradient are not multiplied.
  return f"{kind} {len(window)}D", flops / math.prod(d.base_dilation or 1 for d in window), dtype
