"""The network side: quantizers, bit choice, layers and surgery."""
