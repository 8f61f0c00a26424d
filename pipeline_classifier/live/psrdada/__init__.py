"""PSRDADA rings in shared memory, without PSRDADA."""
