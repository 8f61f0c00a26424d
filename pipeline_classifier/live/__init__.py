"""PSRDADA rings and the live search."""
