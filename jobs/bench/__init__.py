"""What `captioner bench` measures."""
