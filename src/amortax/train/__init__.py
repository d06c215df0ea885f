"""The engine: one pure compiled step, blocks of steps on the device, and the Python between blocks."""
