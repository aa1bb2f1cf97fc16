"""What the ONNX export cannot do is named, and leaves nothing behind."""

import pathlib

import jax.numpy as jnp
import pytest
from flax import nnx

import asga_jax
from asga_jax.deploy.onnx import export as onnx_export
from asga_jax.deploy.onnx.values import ExportError


class Spectrum(nnx.Module):
  def __init__(self, rngs):
    self.inner = nnx.Dict(spectrum=Fourier())
    self.head = nnx.Linear(3, 2, rngs=rngs)

  def __call__(self, x):
    return self.head(self.inner["spectrum"](x).mean((1, 2)))


class Fourier(nnx.Module):
  def __call__(self, x):
    return jnp.fft.fft(x, axis=1).real


def test_an_unknown_operation_is_named_with_its_layer(tmp_path):
  file = tmp_path / "network.onnx"
  with pytest.raises(ExportError, match=r"'fft' of layer 'inner/spectrum'"):
    onnx_export.export_onnx(Spectrum(nnx.Rngs(0)), (4, 4, 3), file)
  assert list(tmp_path.iterdir()) == []


class Complex(nnx.Module):
  def __call__(self, x):
    return jnp.abs(x * 1j)


def test_complex_numbers_are_told_where_they_are_computed():
  with pytest.raises(ExportError, match=r"'mul' .*it computes in complex64"):
    onnx_export.export_onnx(Complex(), (4, 3))


def test_a_bad_path_is_found_before_the_conversion(tmp_path, monkeypatch):
  def trace(*_):
    raise AssertionError("converted")

  monkeypatch.setattr(onnx_export.onnx_trace, "trace", trace)
  network = Spectrum(nnx.Rngs(0))
  with pytest.raises(FileNotFoundError, match="missing"):
    onnx_export.export_onnx(network, (4, 4, 3), tmp_path / "missing" / "a.onnx")
  with pytest.raises(IsADirectoryError):
    onnx_export.export_onnx(network, (4, 4, 3), tmp_path)


def test_a_missing_extra_is_named(without_onnx):
  with pytest.raises(ValueError, match=r"asga-jax\[onnx\]"):
    asga_jax.export_onnx(Spectrum(nnx.Rngs(0)), (4, 4, 3), pathlib.Path("a"))
