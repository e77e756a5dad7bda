"""What a network costs, and pictures of its filters and outputs."""
