"""Networks for inference: tracing, fusion, integers."""
