"""Event files, decoded from their bytes: TFRecord frames and protobuf."""

import importlib.util
import math
import struct

import pytest

from asga_jax.runs import tensorboard as tensorboard_log


def crc32c(data):
  """Castagnoli's CRC, bit by bit (RFC 3720, appendix B.4)."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data):
  """The checksum of a TFRecord: rotated by 15 bits, plus a constant."""
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frames(data):
  """The records of a TFRecord file, with both checksums checked."""
  while data:
    head, (crc,) = data[:8], struct.unpack("<I", data[8:12])
    assert crc == masked(head)
    (size,) = struct.unpack("<Q", head)
    body, (crc,) = (
      data[12 : 12 + size],
      struct.unpack_from("<I", data, 12 + size),
    )
    assert crc == masked(body)
    yield body
    data = data[16 + size :]


def varint(data, at):
  value = shift = 0
  while True:
    value |= (data[at] & 127) << shift
    shift, at = shift + 7, at + 1
    if data[at - 1] < 128:
      return value, at


def fields(data):
  """The fields of a protobuf message: (number, value)."""
  at = 0
  while at < len(data):
    key, at = varint(data, at)
    kind = key & 7
    if kind == 0:
      value, at = varint(data, at)
    else:
      size = {1: 8, 5: 4}.get(kind)
      if size is None:
        size, at = varint(data, at)
      value, at = data[at : at + size], at + size
    yield key >> 3, value


def scalars(directory):
  """(tag, step, value) of every scalar in a directory's event files.

  Event: 2 step, 5 summary. Summary: 1 value. Value: 1 tag, 2 simple_value.
  """
  found = []
  for file in sorted(directory.glob("events.out.tfevents.*")):
    for record in frames(file.read_bytes()):
      event = dict(fields(record))
      for _, value in fields(event.get(5, b"")):
        parts = dict(fields(value))
        (number,) = struct.unpack("<f", parts[2])
        found.append((parts[1].decode(), event.get(2, 0), number))
  return found


def test_the_decoder_knows_the_published_checksum():
  # RFC 3720, appendix B.4: 32 bytes of zeros.
  assert crc32c(bytes(32)) == 0x8A9136AA


def test_every_figure_is_written_once_at_its_step(tmp_path):
  directory = tmp_path / "tensorboard"
  with tensorboard_log.TensorBoardWriter(directory) as writer:
    writer.write([{"step": 1, "loss": 2.5, "gap": 0.25}])
    writer.write([{"step": 300, "loss": 1.5, "gap": None}])
  assert scalars(directory) == [
    ("loss", 1, 2.5),
    ("gap", 1, 0.25),
    ("loss", 300, 1.5),
  ]


def test_what_is_not_finite_is_left_out(tmp_path):
  with tensorboard_log.TensorBoardWriter(tmp_path) as writer:
    writer.write([{"step": 1, "loss": math.nan, "gap": math.inf, "a": 1}])
  assert scalars(tmp_path) == [("a", 1, 1.0)]


def test_a_run_that_goes_on_writes_no_step_twice(tmp_path):
  records = [{"step": step, "loss": step / 4} for step in range(1, 7)]
  first = tensorboard_log.TensorBoardWriter(tmp_path)
  first.write(records[:5])
  # Killed here; the checkpoint was that of step 3.
  (tmp_path / "notes.txt").write_text("mine")
  with tensorboard_log.TensorBoardWriter(tmp_path, records[:3]) as writer:
    writer.write(records[3:])
  assert scalars(tmp_path) == [("loss", r["step"], r["loss"]) for r in records]
  assert (tmp_path / "notes.txt").read_text() == "mine"
  first.close()


def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  for act in (
    tensorboard_log.check_installed,
    lambda: tensorboard_log.TensorBoardWriter(tmp_path / "events"),
  ):
    with pytest.raises(ValueError, match="pip install tensorboardX"):
      act()
  assert not (tmp_path / "events").exists()
