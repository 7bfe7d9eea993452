"""What a network is pretrained for: one file an objective."""
