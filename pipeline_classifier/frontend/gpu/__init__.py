"""The front end in torch, on the device of its input: for CUDA, and on the CPU in tests."""
