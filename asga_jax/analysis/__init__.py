"""What a finished run shows: pictures, and the health of its radius."""
