"""PSRDADA ring buffers in shared memory, in pure Python: PSRDADA need not be installed."""
