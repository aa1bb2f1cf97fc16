"""Mixed-precision quantization policies by sharpness-aware search."""
