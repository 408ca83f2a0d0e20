"""Running any network: calling it, setting its mode, timing it, and knowing the sizes that its own code repeats."""
