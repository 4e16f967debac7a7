"""Plugins of our own, made of nothing but what users' plugins have: docs/extend.md."""
