"""How the window grows."""
