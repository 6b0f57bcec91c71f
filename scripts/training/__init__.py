"""How each starter is trained: one file per mode, and what they share."""
