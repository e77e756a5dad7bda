"""Networks for inference: fusion, integers, and files that run without this package's code."""
