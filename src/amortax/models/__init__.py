"""Ready-made models: each module is one model function with its data and, where known, its exact answer."""
