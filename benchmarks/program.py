"""Counts the costs of a compiled program in its optimised HLO, on any platform, without running it.

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

REARRANGING = ("pad", "concatenate", "transpose", "copy")  # move data only
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# These read only a part of the operand, or write only a part of the result.
_SLICING = ("slice", "dynamic-slice", "gather")
# These access no memory themselves; the computations that they call are counted.
_FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
  "conditional", "async-start", "async-update", "async-done", "partition-id", "replica-id",
)  # fmt: skip
_CUDNN, _CUBLAS = "__cudnn$conv", "__cublas$"

Computation = Mapping[int, hlo_pb2.HloInstructionProto]


@dataclasses.dataclass(frozen=True)
class Chip:
  """What limits the speed of a program on a device, by the maker's figures.

  Attributes:
    peak: FLOP/s of products and convolutions by the type of their operands, 'bfloat16', 'float32'.
    bandwidth: bytes/s between the device and its memory.
    link: bytes/s that a device sends to others.
    scratch: memory space in HLO that is the core's own memory, which `bandwidth` does not limit.
  """

  peak: Mapping[str, float]
  bandwidth: float
  link: float
  scratch: int | None = None


@dataclasses.dataclass
class Cost:
  """The costs of one run of a program per device; loops count once per iteration.

  Attributes:
    flops: of convolutions and matrix products, two per multiplication.
    bytes: read from and written to memory, if every operation reads its operands and writes its
      results.
    collectives: bytes of the collectives' results.
    seconds: with a `Chip`, the sum over operations of the larger of FLOPs / peak and bytes /
      bandwidth, and of the collectives' bytes / link: a lower bound if operations do not overlap.
    products: convolutions and matrix products by kind.
    rearranged: operations of `REARRANGING` by kind, including those in fusions.
    rearranged_bytes: bytes of their results, by kind.
  """

  flops: float = 0
  bytes: float = 0
  collectives: float = 0
  seconds: float = 0
  products: Counter[str] = dataclasses.field(default_factory=Counter)
  rearranged: Counter[str] = dataclasses.field(default_factory=Counter)
  rearranged_bytes: Counter[str] = dataclasses.field(default_factory=Counter)


def count(compiled: jax.stages.Compiled, chip: Chip | None = None) -> Cost:
  """Counts the costs of a compiled program, and bounds its time if a chip is given."""
  (module,) = compiled.runtime_executable().hlo_modules()
  module = hlo_pb2.HloModuleProto.FromString(module.as_serialized_hlo_module_proto())
  return _Walk(module, chip or Chip({}, math.inf, math.inf)).cost


class _Walk:
  """Walks once through a module."""

  def __init__(self, module: hlo_pb2.HloModuleProto, chip: Chip):
    self.chip, self.cost = chip, Cost()
    self.computations = {c.id: {i.id: i for i in c.instructions} for c in module.computations}
    self.roots = {c.id: c.root_id for c in module.computations}
    self._walk(module.entry_computation_id, 1)

  def _walk(self, computation: int, times: int) -> None:
    """Adds the operations of a computation that runs `times` times."""
    instructions = self.computations[computation]
    for instruction in instructions.values():
      opcode, called = instruction.opcode, instruction.called_computation_ids
      if opcode in ("while", "call", "conditional", "async-start"):
        iterations = self._count_iterations(instruction) if opcode == "while" else 1
        for part in called:
          self._walk(part, times * iterations)
      elif opcode not in _FREE and not opcode.endswith("-done"):
        self._add_operation(instructions, instruction, times)

  def _count_iterations(self, loop) -> int:
    """Returns the iterations of a loop, known by the compiler or read from the loop's condition."""
    if known := re.search(rb'"known_trip_count":\{"n":"(\d+)"', loop.backend_config):
      return int(known[1])
    condition = self.computations[loop.called_computation_ids[1]]
    bounds = [
      inner.literal.s32s[0]
      for instruction in condition.values()
      for inner, _ in self._iterate_instructions(instruction, condition)
      if inner.opcode == "constant" and inner.literal.s32s
    ]
    return max(bounds, default=1)

  def _add_operation(self, instructions: Computation, instruction, times: int) -> None:
    """Adds one operation, a fusion or a single instruction."""
    cost, seconds = self.cost, 0.0
    for inner, scope in self._iterate_instructions(instruction, instructions):
      kind, flops, dtype = _count_product(inner, scope)
      if flops:
        cost.flops += times * flops
        cost.products[kind] += times
        seconds += flops / self.chip.peak.get(dtype, math.inf)
      if inner.opcode in REARRANGING:
        cost.rearranged[inner.opcode] += times
        cost.rearranged_bytes[inner.opcode] += times * _count_bytes(inner.shape)
    if instruction.opcode.removesuffix("-start") in _COLLECTIVES:
      shape = instruction.shape
      # The asynchronous form returns its operands with its results.
      size = _count_bytes(shape) / (2 if instruction.opcode == "all-gather-start" else 1)
      cost.collectives += times * size
      cost.seconds += times * size / self.chip.link
      return
    moved = self._count_traffic(instructions, instruction)
    cost.bytes += times * moved
    cost.seconds += times * max(seconds, moved / self.chip.bandwidth)

  def _iterate_instructions(self, instruction, scope: Computation) -> Iterator[tuple]:
    """Yields the instructions of an operation, each with the computation that contains it."""
    yield instruction, scope
    if instruction.opcode == "fusion":
      for called in instruction.called_computation_ids:
        for inner in self.computations[called].values():
          yield from self._iterate_instructions(inner, self.computations[called])

  def _count_traffic(self, scope: Computation, instruction) -> float:
    """Returns the bytes that an operation reads and writes."""
    space = self.chip.scratch
    operands = [scope[i] for i in instruction.operand_ids]
    if instruction.opcode in _SLICING:
      return 2 * _count_bytes(instruction.shape, space)
    if instruction.opcode == "dynamic-update-slice":
      return 2 * _count_bytes(operands[1].shape, space)
    if instruction.opcode.endswith("-start"):  # a copy, from or to the core's own memory
      result = instruction.shape.tuple_shapes[0]
      return _count_bytes(operands[0].shape, space) + _count_bytes(result, space)
    if instruction.opcode != "fusion":
      read = sum(_count_bytes(operand.shape, space) for operand in operands)
      return _count_bytes(instruction.shape, space) + read
    (called,) = instruction.called_computation_ids
    inner = self.computations[called]
    root = inner[self.roots[called]]
    updated = None
    if root.opcode == "dynamic-update-slice":  # in place
      updated = root.operand_ids[0]
      moved = _count_bytes(inner[root.operand_ids[1]].shape, space)
    else:
      moved = _count_bytes(instruction.shape, space)
    for parameter in inner.values():
      if parameter.opcode == "parameter" and parameter.id != updated:
        users = [i for i in inner.values() if parameter.id in i.operand_ids]
        read = users if users and all(u.opcode in _SLICING for u in users) else [parameter]
        operand = operands[parameter.parameter_number]
        if _count_bytes(operand.shape, space):
          moved += sum(_count_bytes(r.shape) for r in read)
    return moved


def _count_bytes(shape: xla_data_pb2.ShapeProto, except_in: int | None = None) -> int:
  """Returns the bytes of an array or a tuple of arrays, without those in a memory space."""
  if shape.tuple_shapes:
    return sum(_count_bytes(part, except_in) for part in shape.tuple_shapes)
  if except_in is not None and shape.layout.memory_space == except_in:
    return 0
  bits = re.fullmatch(r"[A-Z]+?(\d+)\w*", xla_data_pb2.PrimitiveType.Name(shape.element_type))
  return math.prod(shape.dimensions) * (int(bits[1]) if bits else 8) // 8


def _count_product(instruction, scope: Computation) -> tuple[str, float, str]:
  """Returns kind, FLOPs and operand type of a convolution or product; otherwise 0 FLOPs."""
  target = instruction.custom_call_target
  if not (instruction.opcode in ("dot", "convolution") or target.startswith((_CUDNN, _CUBLAS))):
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
  if not window:  # the TPU compiler writes products as convolutions
    contracted = left.dimensions[numbers.input_feature_dimension]
    return "product", 2 * math.prod(result.dimensions) * contracted, dtype
  # Per position of the output, one multiplication per kernel weight of one output channel.
  positions, kernel = result, right
  kind = "convolution"
  if target:
    kind = target.removeprefix(_CUDNN)
    if kind.startswith("BackwardInput"):
      positions = left
    elif kind.startswith("BackwardFilter"):
      positions, kernel = right, result
  flops = 2 * math.prod(positions.dimensions) * math.prod(kernel.dimensions)
  flops /= kernel.dimensions[numbers.kernel_output_feature_dimension]
  # Zeros between the values of a dilated gradient are not multiplied.
  return f"{kind} {len(window)}D", flops / math.prod(d.base_dilation or 1 for d in window), dtype
