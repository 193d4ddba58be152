"""What a model costs: parameters, bytes, multiply-adds, milliseconds, joules."""
