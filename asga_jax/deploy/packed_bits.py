"""Codes of a few bits without gaps, as bytes."""

import math

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
  """Pack signed codes without gaps.

  The lowest `bits` bits of each code in two's complement follow each other, the
  lowest bit of the first code in the lowest bit of the first byte.

  Args:
    codes: integers in -2^(bits-1)..2^(bits-1) - 1, any shape.
    bits: 2..8.

  Returns:
    ceil(codes.size * bits / 8) bytes, uint8; the last is filled with zeros.

  Raises:
    ValueError: other bits, or a code out of range.
  """
  _check_bits(bits)
  codes = np.asarray(codes)
  lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  if codes.size and not lowest <= codes.min() <= codes.max() <= highest:
    raise ValueError(
      f"codes lie in {codes.min()}..{codes.max()}; expected {lowest}.."
      f"{highest}, which {bits} bits hold."
    )
  raw = codes.astype(np.int8).reshape(-1, 1).view(np.uint8)
  single = np.unpackbits(raw, axis=1, count=bits, bitorder="little")
  return np.packbits(single, bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
  """Undo `pack`.

  Args:
    packed: uint8, from `pack`.
    bits: 2..8.
    shape: of the codes.

  Returns:
    The codes, int8.

  Raises:
    ValueError: other bits, or bytes of another number or type.
  """
  _check_bits(bits)
  count = math.prod(shape)
  expected = packed_bytes(count, bits)
  packed = np.asarray(packed)
  if packed.shape != (expected,) or packed.dtype != np.uint8:
    raise ValueError(
      f"packed is {packed.dtype} of shape {packed.shape}; expected uint8 of"
      f" shape ({expected},) for {count} codes of {bits} bits."
    )
  single = np.unpackbits(packed, count=count * bits, bitorder="little")
  raw = np.packbits(single.reshape(-1, bits), axis=1, bitorder="little")
  # The sign: up to the top of the byte and back.
  codes = (raw.reshape(shape) << (8 - bits)).astype(np.uint8).view(np.int8)
  return codes >> (8 - bits)


def packed_bytes(count: int, bits: int) -> int:
  """Count the bytes of `count` packed codes."""
  return -(-count * bits // 8)


def _check_bits(bits: int) -> None:
  if bits not in range(2, 9):
    raise ValueError(f"bits is {bits!r}; expected an integer in 2..8.")
