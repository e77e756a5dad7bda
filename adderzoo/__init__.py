"""adderzoo: adder networks for PyTorch."""
