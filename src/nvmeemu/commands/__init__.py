"""Admin commands that are families of their own."""
